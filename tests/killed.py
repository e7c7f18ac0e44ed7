"""A script of a user's, for a test that kills it: trains, and writes the weights it ends with."""

import sys

import keras
import numpy as np

import tfddl
from tests import problem

SPEC = {"n": 1200, "loss": "bce"}


def main(directory: str, out: str) -> None:
    tfddl.init()
    keras.utils.set_random_seed(3)
    layers = [
        keras.Input((problem.FEATURES,)),
        keras.layers.Dense(8),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(1, activation="sigmoid"),
    ]
    model = keras.Sequential(layers)
    model.compile(
        tfddl.DistributedOptimizer(keras.optimizers.Adam(0.01)), loss="binary_crossentropy"
    )
    data = tfddl.shard_dataset(
        problem.data(SPEC)[0][:, 1:], problem.labels(SPEC), batch_size=4, seed=1
    )

    def tell(batch: int, logs: object) -> None:
        print(f"step {batch}", flush=True)

    callbacks = [
        tfddl.callbacks.Checkpoint(directory, save_every_steps=20),
        keras.callbacks.LambdaCallback(on_train_batch_end=tell),
    ]
    model.fit(data, epochs=2, callbacks=callbacks, verbose=0)
    if tfddl.rank() == 0:
        np.savez(out, *[np.asarray(w) for w in model.weights])


if __name__ == "__main__":
    main(*sys.argv[1:])
