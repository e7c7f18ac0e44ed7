"""Cases about what a job logs of its losses and metrics, against NumPy; run by every worker."""

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

import tfddl
from tfddl._src.keras_hooks import progress_bar

RNG = np.random.default_rng(0)
X = RNG.normal(size=(23, 3)).astype("float32")
A = (RNG.normal(size=(23, 1)) ** 3).astype("float32")
B = RNG.normal(size=(23, 2)).astype("float32")
# Where the batches are smallest, the examples are the worst: a mean over batches is far off.
A[[-1, 6, 11]] = 9.0
WEIGHTS = RNG.uniform(0.2, 3.0, size=23).astype("float32")
L2 = 0.01

PACKED: dict[str, Callable[[Any, Any], Any]] = {
    "dictionary": lambda a, b: {"a": a, "b": b},
    "list": lambda a, b: [a, b],
    "nested": lambda a, b: {"both": {"a": a, "b": b}},
}

# How Keras calls what it logs of each output.
NAMES: dict[str, tuple[str, str]] = {
    "dictionary": ("a", "b"),
    "list": ("a", "b"),
    "nested": ("both/a", "both/b"),
}


def distance(y_true: Any, y_pred: Any) -> Any:
    """A metric that returns one number for a batch."""
    return keras.ops.mean(keras.ops.abs(y_true - y_pred))


def _model(structure: str, *, under_scope: bool = False, **compiled: Any) -> keras.Model:
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    pack = PACKED[structure]
    with tfddl.strategy().scope() if under_scope else contextlib.nullcontext():
        inputs = keras.Input((3,))
        a = keras.layers.Dense(1, name="to_a", kernel_regularizer=keras.regularizers.L2(L2))(inputs)
        b = keras.layers.Dense(2)(inputs)
        # Keras 3.11 calls outputs after their layers.
        outputs = keras.layers.Identity(name="a", dtype="float32")(a)
        others = keras.layers.Identity(name="b", dtype="float32")(b)
        model = keras.Model(inputs, pack(outputs, others))
        optimizer = keras.optimizers.SGD(0.0)  # The weights stay: only what is logged matters.
        model.compile(
            optimizer if under_scope else tfddl.DistributedOptimizer(optimizer),
            loss=pack("mse", "mae"),
            loss_weights=pack(0.3, 2.0),
            metrics=pack([keras.metrics.RootMeanSquaredError(name="rmse"), distance], []),
            weighted_metrics=pack([], ["mae"]),
            **compiled,
        )
    return model


def _true(
    model: keras.Model, structure: str, examples: slice, weights: np.ndarray | None
) -> dict[str, float]:
    """The means over the examples, of what Keras' documentation says that it logs of each."""
    a, b = (np.asarray(p, "float64") for p in tf.nest.flatten(model(X[examples])))
    one, other = NAMES[structure]
    errors, mae = a - A[examples], np.abs(b - B[examples]).mean(1)
    mse = (errors**2).mean(1)
    weighed = np.ones(len(mse)) if weights is None else weights[examples].astype("float64")
    a_loss, b_loss = float(np.mean(weighed * mse)), float(np.mean(weighed * mae))
    kernel = np.asarray(model.get_layer("to_a").kernel, "float64")
    return {
        "loss": 0.3 * a_loss + 2 * b_loss + L2 * float(np.sum(kernel**2)),
        f"{one}_loss": a_loss,
        f"{other}_loss": b_loss,
        "a_rmse": float(np.sqrt(np.mean(mse))),
        "a_distance": float(np.mean(np.abs(errors))),
        "b_mae": float(np.sum(weighed * mae) / np.sum(weighed)),
    }


def everywhere(policy: str = "float32", **options: Any) -> dict[str, list[dict[str, float]]]:
    """What is logged in training, in validation and by `evaluate`: [found, true] for each."""
    keras.mixed_precision.set_global_policy(policy)
    try:
        return _everywhere(**options)
    finally:
        keras.mixed_precision.set_global_policy("float32")


def _parts(structure: str, examples: slice, *, weighted: bool) -> tuple[Any, ...]:
    """x, y, and perhaps weights of each output."""
    pack = PACKED[structure]
    y, own = pack(A[examples], B[examples]), WEIGHTS[examples]
    weights = pack(own, own)
    if isinstance(y, list):  # A list of arrays is one array to a dataset.
        y, weights = tuple(y), tuple(weights)
    return (X[examples], y, weights) if weighted else (X[examples], y)


def _everywhere(
    structure: str,
    *,
    weighted: bool = False,
    batch_size: int = 4,
    validation: tuple[str, ...] = ("arrays", "shard"),
    **made: Any,
) -> dict[str, list[dict[str, float]]]:
    model = _model(structure, **made)

    def parts(examples: slice) -> tuple[Any, ...]:
        return _parts(structure, examples, weighted=weighted)

    train, held_out = slice(0, 23), slice(0, 13)
    start, stop = tfddl.shard_range(13, tfddl.rank(), tfddl.size())
    own_part = parts(slice(start, stop))
    in_batches = tf.data.Dataset.from_tensor_slices(own_part).batch(3)

    def batches() -> Iterator[Any]:
        yield from in_batches

    ways: dict[str, dict[str, Any]] = {
        "arrays": {"validation_data": parts(held_out), "validation_batch_size": 4},
        "shard": {"validation_data": tfddl.shard_dataset(*parts(held_out), batch_size=batch_size)},
        "generator": {"validation_data": batches(), "validation_steps": len(in_batches)},
        # Under the scope it would be of global batches.
        "dataset": {"validation_data": in_batches},
    }
    found: dict[str, dict[str, float]] = {}
    for way in validation:
        data = tfddl.shard_dataset(*parts(train), batch_size=batch_size, seed=2)
        logs = model.fit(data, verbose=0, **ways[way]).history
        found[f"fit, {way}"] = {k: v[0] for k, v in logs.items() if not k.startswith("val_")}
        found[f"validation, {way}"] = {
            k.removeprefix("val_"): v[0] for k, v in logs.items() if k.startswith("val_")
        }
    x, y, *weights = parts(held_out)
    found["evaluate, arrays"] = model.evaluate(
        x, y, 4, sample_weight=weights[0] if weights else None, verbose=0, return_dict=True
    )
    shard = tfddl.shard_dataset(*parts(held_out), batch_size=batch_size)
    found["evaluate, shard"] = model.evaluate(shard, verbose=0, return_dict=True)
    each = WEIGHTS if weighted else None
    true = {
        way: _true(model, structure, train if way.startswith("fit") else held_out, each)
        for way in found
    }
    return {way: [logs, true[way]] for way, logs in found.items()}


class Own(keras.Model):
    """Steps as Keras' guides write them, with a `keras.metrics.Mean` of a number."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.tracked = keras.metrics.Mean(name="tracked")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.dense(x)

    @property
    def metrics(self) -> list[Any]:
        return [self.tracked]

    def train_step(self, data: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss = self._loss(data)
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return self._logs(loss)

    def test_step(self, data: Any) -> dict[str, Any]:
        return self._logs(self._loss(data))

    def _loss(self, data: Any) -> Any:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        return tf.reduce_mean((self(x) - y) ** 2)

    def _logs(self, loss: Any) -> dict[str, Any]:
        self.tracked.update_state(loss)
        return {"tracked": self.tracked.result(), "last": loss}


def own_steps(batch_size: int) -> dict[str, list[float]]:
    """What steps of one's own log: [a mean over the epoch, the last step's], and the true ones."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    model = Own()
    model(X[:1])
    model.compile(tfddl.DistributedOptimizer(keras.optimizers.SGD(0.0)))
    shard, held_out = (
        tfddl.shard_dataset(X[:n], A[:n], batch_size=size)
        for n, size in ((7, batch_size), (10, batch_size + 1))
    )
    history = model.fit(shard, validation_data=held_out, verbose=0).history
    true = []
    for n, size in ((7, batch_size), (10, batch_size + 1)):
        errors = (np.asarray(model(X[:n]), "float64") - A[:n]) ** 2
        steps = -(-n // (size * tfddl.size()))
        last, _ = tfddl.shard_range(n, steps - 1, steps)
        true += [float(np.mean(errors)), float(np.mean(errors[last:]))]
    names = ("tracked", "last", "val_tracked", "val_last")
    return {"found": [history[name][0] for name in names], "true": true}


def stops_early() -> tuple[list[float], list[float]]:
    """`val_a_loss` of each epoch until EarlyStopping ends training by it, and the true ones.

    One example is far off, in a batch of its own. The output moves towards it, and away from the
    others: a mean over batches would think that it gets better.
    """
    keras.utils.clear_session()
    inputs = keras.Input((3,))
    outputs = {name: keras.layers.Dense(1, name=name)(inputs) for name in ("a", "b")}
    model = keras.Model(inputs, outputs)
    model.compile(tfddl.DistributedOptimizer(keras.optimizers.SGD(0.0)), loss="mse")
    targets = np.zeros((9, 1), "float32")
    targets[{1: 8, 2: 4}[tfddl.size()]] = 10.0
    true: list[float] = []

    def move(epoch: int, logs: Any = None) -> None:
        bias = 1.0 + 2 * epoch
        model.get_layer("a").set_weights([np.zeros((3, 1)), np.full(1, bias)])
        true.append(float(np.mean((targets - bias) ** 2)))

    y = {"a": targets, "b": targets}
    history = model.fit(
        tfddl.shard_dataset(X[:9], y, batch_size=4),
        validation_data=(X[:9], y),
        validation_batch_size=4,
        epochs=4,
        verbose=0,
        callbacks=[
            keras.callbacks.LambdaCallback(on_epoch_begin=move),
            keras.callbacks.EarlyStopping("val_a_loss", mode="min", patience=1),
        ],
    )
    return history.history["val_a_loss"], true


def by_weight(n: int) -> dict[str, list[dict[str, float]]]:
    """Losses that are divided by the sum of the weights: [found, true]."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    inputs = keras.Input((3,))
    outputs = {name: keras.layers.Dense(1, name=name)(inputs) for name in ("a", "b")}
    model = keras.Model(inputs, outputs)
    loss = keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")
    model.compile(tfddl.DistributedOptimizer(keras.optimizers.SGD(0.0)), {"a": loss, "b": loss})
    # Weights and errors grow together; some batches hardly weigh anything.
    weights = np.where(np.arange(n) % 5 < 3, 0.0, np.arange(n)).astype("float32")
    y = {"a": np.arange(n, dtype="float32")[:, None], "b": B[:n, :1]}
    shard = tfddl.shard_dataset(X[:n], y, weights, batch_size=1)
    history = model.fit(shard, validation_data=shard, verbose=0).history
    one = keras.Model(inputs, outputs["a"])
    one.compile(tfddl.DistributedOptimizer(keras.optimizers.SGD(0.0)), loss)
    errors = {k: (np.asarray(v, "float64") - y[k])[:, 0] ** 2 for k, v in model(X[:n]).items()}
    # In training as Keras does: the mean over the global batches, by their examples.
    steps = -(-n // tfddl.size())
    batches = [slice(*tfddl.shard_range(n, step, steps)) for step in range(steps)]
    trained, true = (
        {f"{name}_loss": mean(values, weights) for name, values in errors.items()}
        for mean in (
            lambda v, w: sum(len(v[b]) * _weighted_mean(v[b], w[b]) for b in batches) / n,
            _weighted_mean,
        )
    )
    names = ("loss", "a_loss", "b_loss")
    evaluated = one.evaluate(X[:n], y["a"], 4, sample_weight=weights, verbose=0, return_dict=True)
    return {
        "fit": [{k: history[k][0] for k in names}, {"loss": sum(trained.values()), **trained}],
        "validation": [
            {k: history[f"val_{k}"][0] for k in names},
            {"loss": sum(true.values()), **true},
        ],
        "evaluate": [evaluated, {"loss": true["a_loss"]}],
    }


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    return float(np.sum(values * weights) / max(float(np.sum(weights)), 1e-300))


def batches_by_hand() -> list[list[dict[str, float]]]:
    """`test_on_batch` and `train_on_batch` log the rank's own batch: [found, true] of each."""
    model = _model("dictionary")
    start = 6 * tfddl.rank()
    logged = []
    for on_batch in (model.test_on_batch, model.train_on_batch):
        for part in (slice(start, start + 5), slice(start + 5, start + 6)):
            y = {"a": A[part], "b": B[part]}
            found = on_batch(X[part], y, return_dict=True)
            logged.append([found, _true(model, "dictionary", part, None)])
    return logged


def examples_per_second(*, own_data: bool, verbose: int) -> dict[str, Any]:
    """Two epochs whose steps end a second after each other; what is shown and what is logged."""
    rank, size = tfddl.rank(), tfddl.size()
    dataset = tf.data.Dataset.from_tensor_slices((X[rank::size], A[rank::size])).batch(4)
    if not own_data:
        dataset = tfddl.shard_dataset(X, A, batch_size=4)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(tfddl.DistributedOptimizer(keras.optimizers.SGD(0.0)), loss="mse")
    seconds = iter(range(1000))
    clock = SimpleNamespace(perf_counter=lambda: float(next(seconds)))
    seen: set[str] = set()
    recorder = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.update(logs),
        on_epoch_end=lambda epoch, logs: seen.update(logs),
    )
    with (
        mock.patch.object(progress_bar, "time", clock),
        contextlib.redirect_stdout(io.StringIO()) as shown,
    ):
        history = model.fit(
            dataset,
            epochs=2,
            validation_data=tfddl.shard_dataset(X, A, batch_size=4),
            verbose=verbose,
            callbacks=[recorder],
        )
    lines = [line.split("\r")[-1] for line in shown.getvalue().split("\n")]
    rates = [re.findall(r" examples/s: ([\d.]+)", line) for line in lines if " loss: " in line]
    return {"rates": rates, "logged": sorted(seen | set(history.history))}
