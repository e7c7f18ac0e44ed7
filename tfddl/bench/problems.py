"""Small training problems, and what one process with plain Keras makes of them.

Knows nothing of tfddl, and isn't imported by whom it is compared with: the one process runs this
file by its path. ``python -P problems.py FOLDER`` reads which examples each step had from
``batches.json`` there, as {problem: [epoch][step][example]}, and writes the weights that it
arrives at to ``one.npz``.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

EPOCHS = 4
STEPS = 5
"""Of an epoch."""

_FEATURES = 5
_CLASSES = 3

Batches = Sequence[Sequence[Sequence[int]]]
"""The examples of each step of each epoch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """What is trained, and how."""

    optimizer: str = "momentum"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of the optimizer."""

    loss: str = "cross-entropy"
    reduction: str = "sum_over_batch_size"
    sample_weights: bool = False
    class_weights: bool = False
    l2: bool = False
    embedding: bool = False
    order: str = "global"
    batch_size: int = 4
    """Of each worker."""

    missing: int = STEPS
    """How many examples an epoch has less than its steps have room for."""

    def num_examples(self, num_workers: int) -> int:
        """Of an epoch."""
        return STEPS * num_workers * self.batch_size - self.missing


PROBLEMS: Mapping[str, Problem] = {
    "SGD with momentum, mean squared error": Problem(loss="mse"),
    "Adam, binary cross-entropy": Problem(optimizer="adam", loss="bce"),
    "AdamW, cross-entropy": Problem(optimizer="adamw"),
    "sample weights": Problem(sample_weights=True),
    "a loss divided by the weights' sum": Problem(
        sample_weights=True, reduction="mean_with_sample_weight"
    ),
    "class weights": Problem(class_weights=True),
    "L2 regularizer": Problem(l2=True),
    "accumulation over 3 steps": Problem(options={"gradient_accumulation_steps": 3}),
    "clipping by the global norm": Problem(options={"global_clipnorm": 0.05}),
    "embedding, sparse gradients": Problem(embedding=True),
    "block order": Problem(order="block"),
    "a step without an example for a worker": Problem(batch_size=1, missing=1),
    "everything divides": Problem(missing=0),
}
"""By name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Arrays with an example in each row."""

    x: np.ndarray
    y: np.ndarray
    weights: np.ndarray | None

    def rows(self, indices: Sequence[int]) -> tuple[np.ndarray, ...]:
        """Some examples, as Keras takes them."""
        parts = (self.x, self.y) if self.weights is None else (self.x, self.y, self.weights)
        return tuple(part[list(indices)] for part in parts)


def make_data(problem: Problem, num_examples: int) -> Data:
    """The same on every worker."""
    rng = np.random.default_rng(7)
    x: np.ndarray = rng.normal(size=(num_examples, _FEATURES)).astype("float32")
    scores = x @ rng.normal(size=(_FEATURES, _CLASSES))
    scores += 0.5 * rng.normal(size=scores.shape)
    if problem.embedding:
        x = (x > 0).astype("int32") + 2 * np.arange(_FEATURES, dtype="int32")
    y = {
        "mse": scores[:, :1].astype("float32"),
        "bce": (scores[:, :1] > 0).astype("float32"),
        "cross-entropy": scores.argmax(1).astype("int32"),
    }[problem.loss]
    weights = rng.uniform(0.2, 2.0, num_examples).astype("float32")
    return Data(x=x, y=y, weights=weights if problem.sample_weights else None)


def class_weights(problem: Problem) -> dict[int, float] | None:
    """By class, where there are any."""
    return {0: 0.5, 1: 1.0, 2: 2.0} if problem.class_weights else None


def make_model(problem: Problem) -> keras.Model:
    """The same weights on every worker."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    decay = keras.regularizers.L2(0.01) if problem.l2 else None
    layers: list[Any] = [keras.Input((_FEATURES,), dtype="int32" if problem.embedding else None)]
    if problem.embedding:
        layers += [keras.layers.Embedding(2 * _FEATURES, 4), keras.layers.Flatten()]
    layers.append(keras.layers.Dense(8, activation="tanh", kernel_regularizer=decay))
    layers.append(
        {
            "mse": lambda: keras.layers.Dense(1),
            "bce": lambda: keras.layers.Dense(1, activation="sigmoid"),
            "cross-entropy": lambda: keras.layers.Dense(_CLASSES, activation="softmax"),
        }[problem.loss]()
    )
    return keras.Sequential(layers)


def make_optimizer(problem: Problem) -> keras.optimizers.Optimizer:
    """A plain one."""
    options = dict(problem.options)
    if problem.optimizer == "momentum":
        rate = 0.01 if problem.loss == "mse" else 0.1  # A larger one diverges.
        return keras.optimizers.SGD(rate, momentum=0.9, **options)
    if problem.optimizer == "adam":
        return keras.optimizers.Adam(0.01, **options)
    return keras.optimizers.AdamW(0.01, weight_decay=0.02, **options)


def make_loss(problem: Problem) -> keras.losses.Loss:
    """With its reduction."""
    kinds = {
        "mse": keras.losses.MeanSquaredError,
        "bce": keras.losses.BinaryCrossentropy,
        "cross-entropy": keras.losses.SparseCategoricalCrossentropy,
    }
    return kinds[problem.loss](reduction=problem.reduction)


def weights_of(model: keras.Model) -> list[np.ndarray]:
    """What was trained."""
    return [np.asarray(variable) for variable in model.trainable_variables]


def train_alone(problem: Problem, batches: Batches) -> list[np.ndarray]:
    """Trains in one process, on literal lists of examples.

    Returns:
        The weights.
    """
    data = make_data(problem, sum(map(len, batches[0])))
    model = make_model(problem)
    model.compile(make_optimizer(problem), loss=make_loss(problem))
    epochs = iter(batches)

    def epoch() -> Iterator[tuple[np.ndarray, ...]]:
        return (data.rows(indices) for indices in next(epochs))

    specs = tuple(tf.TensorSpec((None, *p.shape[1:]), p.dtype) for p in data.rows([0]))
    dataset = tf.data.Dataset.from_generator(epoch, output_signature=specs)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(batches[0])))
    model.fit(dataset, epochs=len(batches), class_weight=class_weights(problem), verbose=0)
    return weights_of(model)


def _main(directory: Path) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    found: dict[str, Any] = {}
    for name, batches in json.loads((directory / "batches.json").read_text()).items():
        sys.stdout.write(f"one process: {name}\n")
        sys.stdout.flush()
        for i, weights in enumerate(train_alone(PROBLEMS[name], batches)):
            found[f"{name} {i}"] = weights
    if any(name.partition(".")[0] == "tfddl" for name in sys.modules):
        sys.exit("the one process that tfddl is compared with has imported tfddl")
    np.savez(directory / "one.npz", **found)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
