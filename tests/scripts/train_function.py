"""A training function with a configuration, as schedulers of workers call it; an epoch per `fit`.

In the manner of Ray Train's TensorFlow example; run by `tfddlrun`.
"""

import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfddl
from tests.digits import load_digits


def dataset(batch_size: int) -> tf.data.Dataset:
    digits = load_digits()
    x, y = digits.data, digits.target
    x = (x / 16).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, y.astype("int32"))).batch(batch_size)


def build_model(config: dict[str, Any]) -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(config["hidden"], activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.Adam(config["lr"]),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def train_func(config: dict[str, Any]) -> list[dict[str, float]]:
    tfddl.init()
    strategy = tfddl.strategy()
    with strategy.scope():
        model = build_model(config)
    batches = dataset(config["batch_size"] * strategy.num_replicas_in_sync)
    results = []
    for _ in range(config["epochs"]):
        history = model.fit(batches, verbose=0)
        results.append({name: float(values[-1]) for name, values in history.history.items()})
    evaluated = model.evaluate(batches, verbose=0, return_dict=True)
    predicted = model.predict(batches, verbose=0).argmax(1)
    truth = np.concatenate([np.asarray(y) for _, y in batches])
    results.append({**evaluated, "right": float((predicted == truth).mean())})
    return results


if __name__ == "__main__":
    found = train_func({"lr": 1e-2, "batch_size": int(sys.argv[1]), "epochs": 3, "hidden": 32})
    print(found[-1], flush=True)
