"""Training in actors of Ray, which keep the model between calls: python examples/ray_digits.py.

Needs `pip install '.[ray]' scikit-learn` in a checkout.
"""

import ray

import tfddl.ray


class Trainer:
    """One worker: its model stays from one call to the next."""

    def __init__(self) -> None:
        import keras
        from sklearn.datasets import load_digits

        import tfddl

        tfddl.init()
        keras.utils.set_random_seed(1)
        images, labels = load_digits(return_X_y=True)
        self.data = tfddl.shard_dataset(images / 16, labels, batch_size=32, seed=1)
        self.model = keras.Sequential(
            [keras.Input((64,)), keras.layers.Dense(10, activation="softmax")]
        )
        self.model.compile(
            tfddl.DistributedOptimizer(keras.optimizers.Adam(1e-2)),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )

    def train(self, epochs: int) -> float:
        """Trains on; returns the job's accuracy."""
        history = self.model.fit(self.data, epochs=epochs, verbose=0)
        return round(float(history.history["accuracy"][-1]), 3)


if __name__ == "__main__":
    ray.init(num_cpus=2)
    executor = tfddl.ray.RayExecutor(num_workers=2)
    executor.start(Trainer)
    for _ in range(2):
        accuracies = executor.execute(lambda trainer: trainer.train(1))
        print(f"accuracies of the 2 workers: {accuracies}")
    executor.shutdown()
    ray.shutdown()
