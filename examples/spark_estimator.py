"""Training on a DataFrame of Spark: python examples/spark_estimator.py, or spark-submit.

Needs `pip install '.[spark]' scikit-learn` in a checkout, and Java.
"""

import keras
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession, functions
from sklearn.datasets import load_digits

import tfddl.spark

if __name__ == "__main__":
    spark = SparkSession.builder.master("local[2]").appName("digits").getOrCreate()
    images, labels = load_digits(return_X_y=True)
    rows = [(Vectors.dense(image / 16), int(n)) for image, n in zip(images, labels, strict=True)]
    df = spark.createDataFrame(rows, ["features", "label"])
    train_df, test_df = df.randomSplit([0.8, 0.2], seed=1)

    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, activation="softmax")])
    estimator = tfddl.spark.KerasEstimator(
        model=model,
        optimizer=keras.optimizers.Adam(1e-2),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        feature_cols=["features"],
        label_cols=["label"],
        batch_size=32,
        epochs=2,
        num_proc=2,
        random_seed=1,
    )
    fitted = estimator.fit(train_df).setOutputCols(["probabilities"])

    best = functions.expr(
        "cast(array_position(probabilities, array_max(probabilities)) - 1 as double)"
    )
    predicted = fitted.transform(test_df).withColumn("predicted", best)
    evaluator = MulticlassClassificationEvaluator(
        predictionCol="predicted", labelCol="label", metricName="accuracy"
    )
    print(f"history: {fitted.getHistory()}")
    print(f"accuracy on test_df: {evaluator.evaluate(predicted):.3f}")
    spark.stop()
