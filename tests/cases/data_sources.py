"""Cases that train on examples that are loaded, augmented, or come from a dataset."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfddl
from tests import problem

SPEC: dict[str, Any] = {"n": 23, "loss": "scce", "optimizer": "sgd", "batch_size": 4}


def seen_in(epochs: int) -> dict[str, list[list[int]]]:
    """The examples of every batch, for each kind of data."""
    x, y = problem.data(SPEC)[0], problem.labels(SPEC)

    def load(i: int, label: int) -> Any:
        return x[i], np.int32(label)

    def augment(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> Any:
        noise = rng.normal(size=x.shape).astype("float32")
        noise[0] = 0  # The number of the example.
        return x + noise, y

    dataset = tf.data.Dataset.from_tensor_slices((x, y)).map(lambda *parts: parts)
    kinds = {
        "files": tfddl.shard_dataset(
            list(range(len(x))), list(y), batch_size=4, seed=2, load=load, augment=augment
        ),
        "dataset": tfddl.shard_dataset(dataset, batch_size=4),
        "block of a dataset": tfddl.shard_dataset(dataset, batch_size=4, order="block"),
    }
    found = {}
    for name, data in kinds.items():
        model, recorder = problem.model(SPEC)
        optimizer = tfddl.DistributedOptimizer(keras.optimizers.SGD(0.1))
        model.compile(optimizer, loss="sparse_categorical_crossentropy")
        model.fit(data, epochs=epochs, verbose=0)
        found[name] = recorder.seen
    return found
