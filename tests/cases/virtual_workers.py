"""Cases with virtual workers: what a training comes to, bit for bit."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfddl
from tests import problem

CLASSES = 3


def data(n: int, part: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([5, part])
    x = rng.normal(size=(n, 6)).astype("float32")
    return x, (x @ rng.normal(size=(6, CLASSES))).argmax(1).astype("int32")


def model(spec: dict[str, Any]) -> keras.Model:
    keras.utils.clear_session()
    keras.utils.set_random_seed(spec.get("init_seed", 3))
    policy = spec.get("policy", "float32")
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(16, use_bias=False, dtype=policy)(inputs)
    if spec.get("batch_normalization"):
        synchronized = spec["batch_normalization"] == "synchronized"
        hidden = keras.layers.BatchNormalization(momentum=0.8, synchronized=synchronized)(hidden)
    hidden = keras.layers.Activation("tanh")(hidden)
    if spec.get("dropout"):
        hidden = keras.layers.Dropout(0.3, seed=11)(hidden)
    if spec.get("embedding"):
        rows = keras.ops.cast(keras.ops.clip(inputs[:, 0] * 2 + 3, 0, 5), "int32")
        hidden = keras.layers.Concatenate()([hidden, keras.layers.Embedding(6, 4)(rows)])
    for units in spec.get("wide", ()):
        hidden = keras.layers.Dense(units, activation="tanh")(hidden)
    outputs = keras.layers.Dense(CLASSES, activation="softmax", dtype="float32")(hidden)
    return keras.Model(inputs, outputs)


def augment(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> Any:
    return x + rng.normal(size=x.shape).astype("float32") / 8, y


def compiled(spec: dict[str, Any]) -> keras.Model:
    made = model(spec)
    optimizer = problem.optimizer({"optimizer": "adam", **spec})
    optimizer = tfddl.DistributedOptimizer(optimizer, virtual_workers=spec["virtual_workers"])
    if spec.get("policy") == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**20)
    made.compile(
        optimizer,
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        run_eagerly=spec.get("run_eagerly", False),
    )
    return made


def dataset(spec: dict[str, Any]) -> tf.data.Dataset:
    found = tfddl.shard_dataset(
        *data(spec.get("n", 59)),
        batch_size=spec.get("batch_size", 3),
        seed=1,
        order=spec.get("order", "global"),
        augment=augment if spec.get("augment") else None,
        virtual_workers=spec["virtual_workers"],
    )
    return found.map(lambda x, y, *rest: (x * 2, y, *rest))


def train(
    spec: dict[str, Any], directory: str | None = None, stop_after: int | None = None
) -> dict[str, Any]:
    """What `fit`, `evaluate` and `predict` come to; stopped after so many steps, if asked."""
    made = compiled({**spec, "init_seed": 3 + tfddl.rank()})
    callbacks: list[Any] = []
    if directory is not None:
        callbacks.append(tfddl.callbacks.Checkpoint(directory, save_every_steps=1))
    if stop_after is not None:
        callbacks.append(_Stop(stop_after))
    validation = data(21, 1)
    history = made.fit(
        dataset(spec),
        epochs=spec.get("epochs", 2),
        validation_data=validation,
        class_weight={0: 0.5, 2: 2.0} if spec.get("class_weight") else None,
        callbacks=callbacks,
        verbose=0,
    )
    if stop_after is not None:
        return {}
    return {
        "variables": [
            np.asarray(v).tobytes() for v in [*made.variables, *made.optimizer.variables]
        ],
        "history": history.history,
        "evaluated": made.evaluate(*validation, batch_size=4, verbose=0),
        "predicted": made.predict(validation[0], batch_size=4, verbose=0).tobytes(),
    }


class _Stop(keras.callbacks.Callback):
    def __init__(self, after: int) -> None:
        super().__init__()
        self._left = after

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._left -= 1
        if not self._left:
            self.model.stop_training = True
