"""Cases of `tests/test_monitor.py`, run by every worker."""

import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfddl
from tests import problem

SPEC: dict[str, Any] = {"n": 23, "n_val": 9, "loss": "scce", "optimizer": "sgd", "seed": 1}
FLAGS = {"learning_rate": 0.1, "batch_size": 4, "filters": (8, 16), "data_dir": None}


class Sleepy(keras.callbacks.Callback):
    """Makes one rank slow."""

    def __init__(self, rank: int | None) -> None:
        super().__init__()
        self._sleeps = rank == tfddl.rank()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._sleeps:
            time.sleep(0.15)


def _compiled(**options: Any) -> keras.Model:
    model, _ = problem.model(SPEC)
    rate = keras.optimizers.schedules.PolynomialDecay(0.1, 10, 0.0)
    optimizer = tfddl.DistributedOptimizer(keras.optimizers.SGD(rate))
    model.compile(
        optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"], **options
    )
    return model


def _data(part: str = "train", **options: Any) -> Any:
    x, y = problem.data(SPEC, part)[0], problem.labels(SPEC, part)
    return tfddl.shard_dataset(x, y, batch_size=4, **options)


def predictions(model: Any) -> dict[str, Any]:
    x = problem.data(SPEC, "val")[0][:5]
    scores = np.asarray(model(x, training=False))
    return {"scores": np.repeat(scores[:, None, :, None], 8, axis=1)}


def watched(
    log_dir: str,
    epochs: int = 3,
    slow: int | None = None,
    compiled: dict[str, Any] | None = None,
    order: str = "global",
    **monitor: Any,
) -> dict[str, list[float]]:
    """Trains with a Monitor; returns what was logged."""
    model = _compiled(**(compiled or {}))
    callbacks = [
        tfddl.callbacks.Monitor(log_dir, hparams=FLAGS, predictions=predictions, **monitor),
        Sleepy(slow),
    ]
    history = model.fit(
        _data(seed=1, order=order),
        validation_data=_data("val"),
        epochs=epochs,
        verbose=0,
        callbacks=callbacks,
    )
    return {name: [float(v) for v in values] for name, values in history.history.items()}


def _raised(*callbacks: Any, **options: Any) -> str:
    try:
        model = options.pop("model", None) or _compiled()
        model.fit(_data(), epochs=2, verbose=0, callbacks=list(callbacks), **options)
    except Exception as error:  # noqa: BLE001 - the test looks at its name and text
        return f"{type(error).__name__}: {error}"
    return "no error"


class Dies(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            raise KeyboardInterrupt


def refusals(log_dir: str, under_a_file: str) -> list[str]:
    rank = tfddl.rank()
    plain, _ = problem.model(SPEC)
    plain.compile("sgd", loss="sparse_categorical_crossentropy")
    monitor = tfddl.callbacks.Monitor

    def broken(model: Any) -> Any:
        raise KeyError("no such image")

    def flat(model: Any) -> Any:
        return {"masks": np.zeros((3, 8, 8))}

    return [
        _raised(monitor(under_a_file)),
        _raised(monitor(log_dir, update_every_steps=3 + rank)),
        _raised(*[monitor(log_dir)][: 1 - rank]),
        _raised(monitor(log_dir), model=plain),
        _raised(monitor(log_dir, predictions=broken)),
        _raised(monitor(log_dir, predictions=flat)),
    ]


class Stops(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.model.stop_training = batch == 3


def of_unknown_length(log_dir: str, stops: bool) -> None:
    """Data that nobody knows the length of, and a training that ends within an epoch."""
    x, y = problem.data(SPEC)[0], problem.labels(SPEC)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4).filter(lambda x, y: True)
    callbacks = [tfddl.callbacks.Monitor(log_dir, update_every_steps=4), *[Stops()] * stops]
    _compiled().fit(
        data, validation_data=_data("val"), epochs=2, verbose=0, callbacks=callbacks, shuffle=False
    )


def interrupted(log_dir: str) -> None:
    """A training that ends before its time, and one that begins."""
    for _ in range(2):
        try:
            _compiled().fit(
                _data(),
                epochs=3,
                verbose=0,
                callbacks=[tfddl.callbacks.Monitor(log_dir), Dies()],
            )
        except KeyboardInterrupt:
            continue
