"""A small training problem, described by a dictionary; knows nothing of tfddl.

Both sides of an exactness test build the same model from it: the workers, and the one process they
are compared with.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

FEATURES = 5
CLASSES = 3


def data(spec: dict[str, Any], part: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """x of shape (n, 1 + FEATURES), whose first column is the example's number; y of shape (n,)."""
    n = spec["n"] if part == "train" else spec["n_val"]
    rng = np.random.default_rng([7, part == "train"])
    dtype = spec.get("dtype", "float32")
    x = rng.normal(size=(n, FEATURES)).astype("float32").astype(dtype)
    scores = x @ rng.normal(size=(FEATURES, CLASSES)) + 0.5 * rng.normal(size=(n, CLASSES))
    y: Any = scores.argmax(1) if spec["loss"] != "mse" else scores[:, :1]
    ids = np.arange(n, dtype=dtype)[:, None]
    return np.concatenate([ids, x], 1), y.astype(dtype if spec["loss"] == "mse" else "int32")


def sample_weights(spec: dict[str, Any]) -> np.ndarray | None:
    if not spec.get("sample_weight"):
        return None
    weights = np.random.default_rng(11).uniform(0.2, 2.0, spec["n"]).astype("float32")
    weights = weights.astype(spec.get("dtype", "float32"))
    if spec["sample_weight"] == "some zero":  # Batches without any weight among them.
        weights[: spec["n"] // 2] = 0
    return weights


@contextlib.contextmanager
def precision(spec: dict[str, Any]) -> Iterator[None]:
    """What losses, layers and optimizers are made in."""
    keras.config.set_floatx(spec.get("dtype", "float32"))
    yield
    keras.config.set_floatx("float32")


class _Log:
    """A list that Keras doesn't track."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []


@keras.saving.register_keras_serializable("tests")
class Recorder(keras.layers.Layer):
    """Takes the example's number off the input, and writes down which ones were trained on."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._log = _Log()
        self._in_layer = True

    @property
    def seen(self) -> list[list[int]]:
        """The numbers of the examples of every batch, in order."""
        return self._log.batches

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if training and self._in_layer:
            with tf.control_dependencies([self._write_down(inputs)]):
                return tf.identity(inputs[:, 1:])
        return inputs[:, 1:]

    def record(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Writes down the batches of a dataset instead: XLA compiles no call into Python."""
        self._in_layer = False

        def recorded(x: tf.Tensor, *more: tf.Tensor) -> tuple[tf.Tensor, ...]:
            with tf.control_dependencies([self._write_down(x)]):
                return tf.identity(x), *more

        return dataset.map(recorded)

    def _write_down(self, inputs: tf.Tensor) -> tf.Tensor:
        def write_down(ids: np.ndarray) -> Any:
            self._log.batches.append(ids.astype(int).tolist())
            return np.int32(0)

        return tf.numpy_function(write_down, [inputs[:, 0]], tf.int32)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (input_shape[0], FEATURES)


def model(
    spec: dict[str, Any], scope: contextlib.AbstractContextManager[Any] | None = None
) -> tuple[keras.Model, Recorder]:
    keras.utils.clear_session()  # Names count from the beginning, on every rank alike.
    keras.utils.set_random_seed(spec.get("init_seed", 3))
    with contextlib.nullcontext() if scope is None else scope:
        return _model(spec)


def _model(spec: dict[str, Any]) -> tuple[keras.Model, Recorder]:
    recorder = Recorder()
    inputs = keras.Input((1 + FEATURES,))
    decay = keras.regularizers.L2(0.01) if spec.get("l2") else None
    if "batch_normalization" in spec:
        hidden = _normalizing(spec, recorder(inputs), decay)
    else:
        dense = keras.layers.Dense(
            spec.get("units", 8), activation="tanh", kernel_regularizer=decay
        )
        features = recorder(inputs)
        hidden = dense(features)
        if spec.get("embedding"):
            hidden = keras.layers.Concatenate()([hidden, _embedded(features)])
    if spec["loss"] in ("bce", "dice"):
        outputs = keras.layers.Dense(1, activation="sigmoid")(hidden)
    elif spec["loss"] == "mse":
        outputs = keras.layers.Dense(1)(hidden)
    else:
        outputs = keras.layers.Dense(CLASSES, activation="softmax")(hidden)
    return keras.Model(inputs, outputs), recorder


def _embedded(features: Any) -> Any:
    """Sparse gradients: rows of a table, by one of the features."""
    rows = keras.ops.cast(keras.ops.clip(features[:, 0] * 2 + 3, 0, 5), "int32")
    return keras.layers.Embedding(6, 4)(rows)


def _normalizing(spec: dict[str, Any], inputs: Any, decay: Any) -> Any:
    """Layers that normalize, on the workers by the batch of all of them."""
    options = {"synchronized": spec.get("synchronized", False), "momentum": 0.8}
    hidden = keras.layers.Dense(8, use_bias=False, kernel_regularizer=decay)(inputs)
    hidden = keras.layers.BatchNormalization(**options)(hidden)
    hidden = keras.layers.Activation("tanh")(hidden)
    if spec["batch_normalization"] == "conv":
        hidden = keras.layers.Reshape((4, 2))(hidden)
        hidden = keras.layers.Conv1D(3, 2, use_bias=False)(hidden)
        hidden = keras.layers.BatchNormalization(axis=1, **options)(hidden)
        hidden = keras.layers.Flatten()(keras.layers.Activation("tanh")(hidden))
    return hidden


def optimizer(spec: dict[str, Any]) -> keras.optimizers.Optimizer:
    kinds = {
        "sgd": lambda **kw: keras.optimizers.SGD(
            spec.get("learning_rate", 0.1), momentum=0.9, **kw
        ),
        "adam": lambda **kw: keras.optimizers.Adam(0.01, **kw),
        "lion": lambda **kw: keras.optimizers.Lion(0.01, **kw),
        "adamw": lambda **kw: keras.optimizers.AdamW(0.01, weight_decay=0.02, **kw),
    }
    return kinds[spec["optimizer"]](**spec.get("optimizer_options", {}))


def batch_dice(y_true: Any, y_pred: Any) -> Any:
    """A loss that isn't a mean over examples."""
    both = tf.reduce_sum(y_true) + tf.reduce_sum(y_pred)
    return -(2 * tf.reduce_sum(y_true * y_pred) + 1) / (both + 1)


def compile_options(spec: dict[str, Any]) -> dict[str, Any]:
    reduction = spec.get("reduction", "sum_over_batch_size")
    if spec["loss"] == "mse":
        loss: Any = keras.losses.MeanSquaredError(reduction=reduction)
        metrics: list[Any] = ["mae"]
    elif spec["loss"] == "bce":
        loss = keras.losses.BinaryCrossentropy(reduction=reduction)
        metrics = ["accuracy", keras.metrics.AUC(name="auc"), keras.metrics.Precision(name="prec")]
    elif spec["loss"] == "dice":
        loss, metrics = batch_dice, ["accuracy"]
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(reduction=reduction)
        metrics = ["accuracy"]
    if spec.get("few_metrics"):  # The others take as long to trace as all else.
        metrics = metrics[:1]
    weighted = metrics[:1] if spec.get("sample_weight") or spec.get("class_weight") else None
    return {
        "loss": loss,
        "metrics": metrics,
        "weighted_metrics": weighted,
        "steps_per_execution": spec.get("steps_per_execution", 1),
        "run_eagerly": spec.get("run_eagerly", False),
        "jit_compile": spec.get("jit_compile", "auto"),
    }


def labels(spec: dict[str, Any], part: str = "train") -> Any:
    y = data(spec, part)[1]
    return (
        (y > 0).astype(spec.get("dtype", "float32"))[:, None]
        if spec["loss"] in ("bce", "dice")
        else y
    )


def class_weight(spec: dict[str, Any]) -> dict[int, float] | None:
    return {0: 0.5, 1: 1.0, 2: 2.0} if spec.get("class_weight") else None


def result(trained: keras.Model, history: Any) -> dict[str, Any]:
    return {
        "weights": {v.path: np.asarray(v) for v in trained.weights},
        "history": {k: [float(v) for v in values] for k, values in history.history.items()},
        "iterations": int(trained.optimizer.iterations.numpy()),
    }
