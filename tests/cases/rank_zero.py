"""Cases of `tests/test_rank_zero.py`, run by every worker."""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfddl
from tests.cases.fit import raised

X = np.random.default_rng(0).normal(size=(24, 3)).astype("float32")
Y = X.sum(1, keepdims=True)
EVENTS: list[tuple[str, str, Any]] = []
"""Callback, event, and epoch or batch."""

MADE: list[str] = []


class Tracker(keras.callbacks.Callback):
    """As a package of that name would have it."""

    __module__ = "wandb.integration.keras"

    def __init__(self, name: str = "tracker") -> None:
        super().__init__()
        self.name = name
        MADE.append(name)

    def _note(self, event: str, at: Any = None) -> None:
        assert self.model is not None
        EVENTS.append((self.name, event, at))

    def on_train_begin(self, logs: Any = None) -> None:
        self._note("begin", (self.params or {}).get("steps"))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._note(f"{' '.join(sorted(logs))}", epoch)

    def on_batch_end(self, batch: int, logs: Any = None) -> None:
        self._note("batch", batch)

    def on_train_end(self, logs: Any = None) -> None:
        self._note("end")

    def on_test_end(self, logs: Any = None) -> None:
        self._note("test")


class OwnTracker(Tracker):
    """A user's own, derived from a package's."""


class Act(keras.callbacks.Callback):
    """Does something in an event."""

    def __init__(self, event: str, action: Callable[[keras.Model], Any]) -> None:
        super().__init__()
        setattr(self, event, lambda *_, **__: action(self.model))


def _model(*, dropout: bool = False) -> keras.Model:
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    layers = [keras.Input((3,)), keras.layers.Dense(4)]
    layers += [keras.layers.Dropout(0.5)] if dropout else []
    model = keras.Sequential([*layers, keras.layers.Dense(1)])
    model.compile(tfddl.DistributedOptimizer(keras.optimizers.SGD(0.01, 0.9)), loss="mse")
    return model


def _fit(callbacks: Any, *, epochs: int = 2, model: keras.Model | None = None) -> keras.Model:
    model = _model() if model is None else model
    data = tfddl.shard_dataset(X, Y, batch_size=4, seed=1)
    model.fit(data, epochs=epochs, callbacks=callbacks, verbose=0)
    return model


def acts() -> dict[str, Any]:
    """A package's callback, one derived from it, and what users say of their own."""
    EVENTS.clear()
    MADE.clear()
    plain = Act("on_epoch_end", lambda _: EVENTS.append(("plain", "epoch", None)))
    callbacks = [
        Tracker(),
        OwnTracker("own"),
        tfddl.callbacks.OnRankZero(plain),
        tfddl.callbacks.OnRankZero(lambda: Act("on_train_end", lambda _: MADE.append("acted"))),
    ]
    model = _fit([callbacks])
    MADE.append("fit")
    callbacks = [Tracker("evaluate"), tfddl.callbacks.OnRankZero(OwnTracker)]
    model.evaluate(X, Y, verbose=0, callbacks=callbacks)
    listed = keras.callbacks.CallbackList([Tracker("list")], add_history=True, model=model)
    _fit(listed, model=model)
    return {"events": list(EVENTS), "made": list(MADE)}


def stops() -> list[int]:
    """A callback of rank 0 ends training on all ranks; what it evaluates is its own."""
    found = []

    def evaluate(model: keras.Model) -> None:
        loss = model.evaluate(X[:5], Y[:5], verbose=0)
        assert model.predict(X[:5], verbose=0).shape == (5, 1)
        np.testing.assert_allclose(loss, np.mean((model(X[:5]) - Y[:5]) ** 2), rtol=1e-4)

    for event in ("on_epoch_end", "on_train_batch_end"):

        def stop(model: keras.Model, event: str = event) -> None:
            if event == "on_epoch_end":
                evaluate(model)
            model.stop_training = True

        model = _fit([tfddl.callbacks.OnRankZero(Act(event, stop))], epochs=3)
        found.append(int(model.optimizer.iterations))
    return found


def keeps_best(directory: str) -> list[float | None]:
    """What Keras' ModelCheckpoint remembers stays in checkpoints, on rank 0.

    Its best when the second run begins, and at the end; the losses.
    """
    for epochs in (1, 2):
        writer = keras.callbacks.ModelCheckpoint(
            f"{directory}/best.keras", monitor="loss", save_best_only=True
        )
        best: list[float | None] = []

        def note(_: keras.Model, best: list[float | None] = best, writer: Any = writer) -> None:
            best.append(writer.best)

        look = Act("on_epoch_begin", note)
        checkpoint = tfddl.callbacks.Checkpoint(f"{directory}/checkpoints")
        model = _fit([checkpoint, tfddl.callbacks.OnRankZero(writer), look], epochs=epochs)
    return [*best, writer.best, *model.history.history["loss"]]


def refused() -> dict[str, tuple[str, str]]:
    """What must not act on one rank alone."""
    callbacks = keras.callbacks
    given: dict[str, Any] = {
        "EarlyStopping": callbacks.EarlyStopping(),
        "ReduceLROnPlateau": callbacks.ReduceLROnPlateau,
        "Checkpoint": tfddl.callbacks.Checkpoint("nowhere"),
        "NoneType": lambda: None,
        "LearningRateScheduler": lambda: callbacks.LearningRateScheduler(lambda _: 0.1),
    }
    made = tfddl.callbacks.OnRankZero
    return {name: raised(partial(made, what))[:2] for name, what in given.items()}


def _swap(model: keras.Model) -> None:
    before = model.get_weights()
    model.set_weights([np.zeros_like(w) for w in before])
    model.evaluate(X, Y, verbose=0)
    model.set_weights(before)


def _train_another(model: keras.Model) -> None:
    other = keras.models.clone_model(model)
    other.compile("sgd", "mse")
    other.fit(X, Y, verbose=0)


CHANGES: dict[str, Callable[[keras.Model], Any]] = {
    "weights": lambda model: model.set_weights([w + 1 for w in model.get_weights()]),
    "learning rate": lambda model: setattr(model.optimizer, "learning_rate", 0.5),
    "slots": lambda model: model.optimizer.variables[2].assign_add([[1.0] * 4] * 3),
    "swapped": _swap,
    "another model": _train_another,
    "own draws": lambda model: model(X, training=True),
}


def changes(what: str, *, alone: bool) -> tuple[str, str]:
    """After the last step, in which no rank waits for another any more."""
    act = Act("on_train_end", CHANGES[what])
    callback = tfddl.callbacks.OnRankZero(act) if alone else act
    return raised(lambda: _fit([callback], epochs=1, model=_model(dropout=True)))[:2]


def calls_a_collective() -> tuple[str, str, float]:
    """On rank 0 alone, while the others train on."""

    def gather(_: keras.Model) -> None:
        tfddl.allreduce(tf.zeros([2]), name="score")

    return raised(lambda: _fit([tfddl.callbacks.OnRankZero(Act("on_epoch_end", gather))]))
