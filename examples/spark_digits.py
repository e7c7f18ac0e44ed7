"""Training on Spark's executors: python examples/spark_digits.py, or spark-submit.

Needs `pip install '.[spark]' scikit-learn` in a checkout, and Java.
"""

from pyspark.sql import SparkSession

import tfddl.spark


def train(epochs: int) -> float:
    """Trains on this task's worker; returns the job's accuracy."""
    import keras
    from sklearn.datasets import load_digits

    import tfddl

    tfddl.init()
    keras.utils.set_random_seed(1)
    images, labels = load_digits(return_X_y=True)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, activation="softmax")])
    model.compile(
        tfddl.DistributedOptimizer(keras.optimizers.Adam(1e-2)),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    data = tfddl.shard_dataset(images / 16, labels, batch_size=32, seed=1)
    history = model.fit(data, epochs=epochs, verbose=0)
    return round(float(history.history["accuracy"][-1]), 3)


if __name__ == "__main__":
    spark = SparkSession.builder.master("local[2]").appName("digits").getOrCreate()
    print(f"accuracies of the 2 workers: {tfddl.spark.run(train, (2,), num_proc=2)}")
    spark.stop()
