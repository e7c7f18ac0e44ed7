"""A problem for virtual workers, and a loop of plain Keras that trains it; no tfddl in it.

The loop accumulates the gradients of V small batches, in the order of a binary tree, by itself.
"""

import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests import problem

CLASSES = 3


def data(n: int, part: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([5, part])
    x = rng.normal(size=(n, 6)).astype("float32")
    return x, (x @ rng.normal(size=(6, CLASSES))).argmax(1).astype("int32")


def values(worker: int) -> list[np.ndarray]:
    """Of which only one order of adding gives the same bits."""
    rng = np.random.default_rng(worker)
    shapes = [((5, 7), "float32"), ((211,), "float32"), ((3,), "float64")]
    return [rng.normal(size=shape).astype(dtype) for shape, dtype in shapes]


def model(spec: dict[str, Any]) -> keras.Model:
    if not tf.distribute.has_strategy():  # It would forget the scope.
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
    if spec.get("noise"):
        hidden = Noise()(hidden)
    for units in spec.get("wide", ()):
        hidden = keras.layers.Dense(units, activation="tanh")(hidden)
    outputs = keras.layers.Dense(CLASSES, activation="softmax", dtype="float32")(hidden)
    kind = WithOwnStep if spec.get("own_step") else keras.Model
    return kind(inputs, outputs)


class Noise(keras.layers.Layer):
    """Draws in inference, too."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = keras.random.SeedGenerator(7)

    def call(self, x: Any) -> Any:
        return x + keras.random.normal(keras.ops.shape(x), seed=self.generator) / 8


class WithOwnStep(keras.Model):
    """Logs a number of the last step that no metric stands for."""

    def train_step(self, data: Any) -> Any:
        logs = super().train_step(data)
        return {**logs, "largest": tf.reduce_max(data[0])}


def optimizer(spec: dict[str, Any]) -> keras.optimizers.Optimizer:
    return problem.optimizer({"optimizer": "adam", **spec})


def train(spec: dict[str, Any], batches: list[list[list[list[int]]]]) -> list[bytes]:
    """The weights that the loop ends in; ``batches[epoch][step][v]`` lists a batch's examples."""
    x, y = data(spec["n"])
    made, applied = model(spec), optimizer(spec)
    variables = made.trainable_variables
    applied.build(variables)
    loss_function = keras.losses.SparseCategoricalCrossentropy()
    seeds = [v for v in made.variables if "seed" in v.name]
    states = [
        [_derived(np.asarray(seed), v) for seed in seeds] for v in range(spec["virtual_workers"])
    ]

    @tf.function(
        input_signature=[tf.TensorSpec((None, 6), tf.float32), tf.TensorSpec((None,), tf.int32)]
    )
    def gradients(x: tf.Tensor, y: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_function(y, made(x, training=True))
        return tape.gradient(loss, variables)

    @tf.function
    def apply(totals: Any, count: tf.Tensor) -> None:
        applied.apply([total / count for total in totals], variables)

    for step in (step for epoch in batches for step in epoch):
        weighted = []
        for v, indices in enumerate(step):
            for seed, state in zip(seeds, states[v], strict=True):
                seed.assign(state)
            of_batch = gradients(tf.constant(x[indices] * 2), tf.constant(y[indices]))
            weighted.append([g * float(len(indices)) for g in of_batch])
            states[v] = [np.asarray(seed) for seed in seeds]
        apply(_tree(weighted), tf.constant(float(sum(map(len, step)))))
    return [np.asarray(weight).tobytes() for weight in made.trainable_variables]


def _derived(state: np.ndarray, v: int) -> np.ndarray:
    return np.array([(int(state[0]) + v * 0x9E3779B1) % 2**32, state[1]], state.dtype)


def _tree(values: list[list[Any]]) -> list[Any]:
    if len(values) == 1:
        return values[0]
    middle = 1 << (len(values) - 1).bit_length() - 1
    first, second = _tree(values[:middle]), _tree(values[middle:])
    return [a + b for a, b in zip(first, second, strict=True)]


def main(jobs: list[tuple[dict[str, Any], Any]], results: Path) -> None:
    """Trains all, and writes what comes of it."""
    warnings.simplefilter("ignore")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    found = [train(spec, batches) for spec, batches in jobs]
    assert not [name for name in sys.modules if name.startswith("tfddl")]
    results.write_bytes(pickle.dumps(found))
