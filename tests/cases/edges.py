"""What once went wrong between fits, stops, orders and odd inputs; run by every worker."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

import tfddl
from tests.cases.fit import raised
from tfddl._src.checkpoint import CheckpointStore, Snapshot

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3)).astype("float32")
Y = (X.sum(1, keepdims=True) > 0).astype("float32")


def _model(**compiled: Any) -> keras.Model:
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    layers = [keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(1, "sigmoid")]
    model = keras.Sequential(layers)
    optimizer = tfddl.DistributedOptimizer(keras.optimizers.SGD(0.01))
    model.compile(optimizer, **{"loss": "binary_crossentropy", **compiled})
    return model


def _data(batch_size: int = 4, **options: Any) -> tf.data.Dataset:
    return tfddl.shard_dataset(X, Y, batch_size=batch_size, **{"seed": 1, **options})


def _newest(directory: str) -> Any:
    _, found = next(CheckpointStore(Path(directory)).newest_first())
    assert isinstance(found, Snapshot)
    return found.meta


class StopAt(keras.callbacks.Callback):
    """Ends training after a step of the first epoch."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == self._step:
            self.model.stop_training = True


class Interrupt(Exception):
    """Ends a fit on all ranks."""


class InterruptAt(keras.callbacks.Callback):
    """Raises at the beginning of a step of the first epoch, or at its end."""

    def __init__(self, step: int, *, at_end: bool) -> None:
        super().__init__()
        self._step, self._at_end = step, at_end

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == self._step and not self._at_end:
            raise Interrupt

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == self._step and self._at_end:
            raise Interrupt


class Lock(keras.callbacks.Callback):
    """Notes who has the lock of a folder, as another job would find it."""

    def __init__(self, directory: str) -> None:
        super().__init__()
        self._path = Path(directory, ".lock")
        self.holder: dict[str, Any] = {}

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        with self._path.open("rb+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.holder = json.loads(file.read())


class Odd(keras.callbacks.Callback):
    """Puts a number of NumPy's into the logs."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["mine"] = np.float32(1 + epoch)


def stopped_within_an_epoch(directory: str) -> dict[str, Any]:
    """And gone on with: the logs are those of a run that wasn't stopped."""
    fit: dict[str, Any] = {"epochs": 2, "verbose": 0, "validation_data": (X[:8], Y[:8])}
    metrics = {"metrics": ["accuracy"]}
    whole = _model(**metrics).fit(_data(), **fit)
    checkpoint = tfddl.callbacks.Checkpoint(directory)
    lock = Lock(directory)
    _model(**metrics).fit(_data(), **fit, callbacks=[StopAt(2), checkpoint, lock])
    begun = _newest(directory)
    pids = tfddl.allgather_object(os.getpid())
    assert lock.holder["pid"] == pids[0]
    assert not Path(directory, ".lock").exists()  # before rank 0 is here, it has let go of it
    # The user's own initial_epoch doesn't count any more.
    rest = _model(**metrics).fit(_data(), **fit, initial_epoch=1, callbacks=[checkpoint])
    assert rest.epoch == [0, 1]
    for name, values in whole.history.items():
        np.testing.assert_allclose(rest.history[name], values, rtol=1e-6)
    return {"begun": [begun["epoch"], begun["consumed"], begun["history"]["epoch"]]}


def fits_after_a_failed_one() -> list[int]:
    """The last rank wishes to stop after step 1: the others hear of it with step 2, if that comes.

    The fit before has failed by then, on all ranks. Returns the steps of each fit that follows.
    """
    model = _model()
    found = []
    for at_end in (False, True):
        stop = [StopAt(1)] if tfddl.rank() == tfddl.size() - 1 else []
        try:
            model.fit(_data(), verbose=0, callbacks=[*stop, InterruptAt(2, at_end=at_end)])
        except Interrupt:
            before = int(model.optimizer.iterations)
            model.fit(_data(), verbose=0)
            found.append(int(model.optimizer.iterations) - before)
    return found


def twice_with_other_batches(directory: str) -> list[int]:
    _model().fit(_data(), verbose=0, callbacks=[StopAt(2), tfddl.callbacks.Checkpoint(directory)])
    first = _newest(directory)["consumed"]
    checkpoint = tfddl.callbacks.Checkpoint(directory)
    _model().fit(_data(7), verbose=0, callbacks=[StopAt(2), checkpoint])
    return [first, _newest(directory)["consumed"]]


def unknown_length(directory: str) -> list[int]:
    spec = (tf.TensorSpec((None, 3)), tf.TensorSpec((None, 1)))
    data = tf.data.Dataset.from_generator(lambda: iter([(X[:4], Y[:4])] * 2), output_signature=spec)
    checkpoint = tfddl.callbacks.Checkpoint(directory)
    _model().fit(data, epochs=2, verbose=0, callbacks=[checkpoint])
    again = _model().fit(data, epochs=3, verbose=0, callbacks=[checkpoint])
    return [_newest(directory)["epoch"], again.epoch[-1]]


def odd_logs(directory: str) -> Any:
    """NumPy numbers, arrays and seeds; nested callbacks; what callbacks have added."""
    model = _model(metrics=[keras.metrics.F1Score(threshold=0.5)])
    checkpoint = tfddl.callbacks.Checkpoint(directory, monitor="mine", mode="max")
    writer = keras.callbacks.CSVLogger(f"{directory}/log.csv")
    data = _data(seed=np.int64(3))
    model.fit(data, epochs=2, verbose=0, callbacks=[[Odd(), writer], checkpoint])
    tfddl.barrier()
    return _newest(directory)["best"]


def predictions() -> None:
    """In the order of the data, whatever the epoch, the model and the executions."""
    plain = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    assert plain.predict(X, verbose=0).shape == (40, 1)
    model = _model(steps_per_execution=2)
    tfddl.broadcast_variables(model.variables)
    wanted = np.asarray(model(X))
    for epoch in (0, 3):
        found = model.predict(tfddl.shard_dataset(X, batch_size=4, seed=1, epoch=epoch), verbose=0)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    few = model.predict(tfddl.shard_dataset(X, batch_size=4), steps=3, verbose=0)
    np.testing.assert_allclose(few, wanted[: len(few)], rtol=1e-5)
    assert len(few) >= 3 * 4 * tfddl.size()


def metrics_of_validation() -> list[Any]:
    """Sums aren't counted twice, whatever the number of steps."""
    model = _model(metrics=[keras.metrics.TruePositives(name="tp")])
    options: dict[str, Any] = {"validation_data": (X, Y), "verbose": 0}
    history = model.fit(_data(), validation_steps=2, validation_batch_size=10, **options).history
    found = model.evaluate(X[:20], Y[:20], verbose=0, return_dict=True)
    return [history["val_tp"][0], found["tp"], raised(lambda: model.evaluate(X[:1], verbose=0))[:2]]


def far_means_and_no_weight() -> list[float]:
    """The moving variance of features far from zero; a step in which no example has a weight."""
    keras.utils.clear_session()
    layers = [keras.Input((3,)), keras.layers.BatchNormalization(momentum=0.9)]
    model = keras.Sequential([*layers, keras.layers.Dense(1)])
    loss = keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")
    optimizer = tfddl.DistributedOptimizer(keras.optimizers.SGD(1e-9))
    model.compile(optimizer, loss=loss)
    far = (1e5 + 0.1 * X).astype("float32")
    weights = np.where(np.arange(40) < 8, 0, 1).astype("float32")
    data = tfddl.shard_dataset(far, Y, weights, batch_size=2)
    model.fit(data, epochs=6, verbose=0)
    return np.asarray(model.layers[0].moving_variance).tolist()


def warm_up() -> float:
    model = _model(steps_per_execution=5)
    model.fit(
        _data(),
        epochs=3,
        verbose=0,
        callbacks=[tfddl.callbacks.LearningRateWarmup(0.2, warmup_epochs=2)],
    )
    return float(model.optimizer.learning_rate)


def unreadable_in_predict() -> tuple[str, str, float]:
    def load(row: np.ndarray) -> np.ndarray:
        if row[0] == X[33, 0]:
            raise ValueError("bad file")
        return row

    data = tfddl.shard_dataset(list(X), batch_size=4, load=load)
    return raised(lambda: _model().predict(data, verbose=0))


def repeated() -> tuple[str, str, float]:
    return raised(lambda: _model().fit(_data().repeat(), steps_per_epoch=3, verbose=0))


class _OwnStep(keras.Model):
    """Its step may have a tape of ours, of which `compile` knows nothing."""

    def train_step(self, data: Any) -> Any:
        return super().train_step(data)


def xla_on_gpus() -> list[bool]:
    """What "auto" means, where Keras would take it for True: models with plain optimizers."""
    with mock.patch.object(keras.Model, "_resolve_auto_jit_compile", return_value=True):
        found = []
        for kind in (_OwnStep, keras.Model):
            inputs = keras.Input((3,))
            model = kind(inputs, keras.layers.Dense(1)(inputs))
            model.compile(keras.optimizers.SGD(0.1), loss="mse")
            found.append(bool(model.jit_compile))
    return found


def compiled_by_xla() -> dict[str, Any]:
    """Collectives within `tf.function(jit_compile=True)`, and a graph where only a part is."""
    weight = tf.Variable([1.0, 2.0])

    def gradient() -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weight * weight)
        return tfddl.DistributedGradientTape(tape).gradient(loss, [weight])[0]

    x = tf.ones([4])
    calls = {
        "allreduce": lambda: tfddl.allreduce(x),
        "allgather": lambda: tfddl.allgather(x),
        "broadcast": lambda: tfddl.broadcast(x, 0),
        "alltoall": lambda: tfddl.alltoall(x),
        "reducescatter": lambda: tfddl.reducescatter(x),
        "gradient": gradient,
    }
    found: dict[str, Any] = {
        name: raised(tf.function(call, jit_compile=True))[:2] for name, call in calls.items()
    }
    made_before = tf.function(calls["allreduce"])
    made_before()
    found["made before"] = raised(tf.function(lambda: made_before(), jit_compile=True))[:2]

    @tf.function
    def step() -> tf.Tensor:
        return tfddl.allreduce(tf.function(tf.reduce_sum, jit_compile=True)(x), "sum")

    found["sum"] = float(step())
    return found
