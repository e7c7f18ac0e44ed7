"""Callbacks that act on rank 0 only: experiment trackers, and what users put into `OnRankZero`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from tfddl._src.keras_hooks.fit_state import JobCallback, running_fit
from tfddl._src.runtime import current
from tfddl.errors import UnsupportedError

# Packages whose Keras callbacks report to a tracker (tensorboard: hparams.api.KerasCallback). Each
# would open a run per worker, or write the same points once per worker.
_TRACKERS = frozenset(
    ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "neptune", "neptune_tensorflow_keras")
    + ("polyaxon", "swanlab", "tensorboard", "traceml", "trackio", "wandb")
)

_TRAINING = (
    JobCallback,
    keras.callbacks.BackupAndRestore,
    keras.callbacks.EarlyStopping,
    keras.callbacks.LearningRateScheduler,
    keras.callbacks.ReduceLROnPlateau,
    keras.callbacks.SwapEMAWeights,
)
"""What changes the training, or uses collectives: on one rank alone it would go wrong."""

_EVENTS = tuple(name for name in vars(keras.callbacks.Callback) if name.startswith("on_"))


class OnRankZero(keras.callbacks.Callback):
    """A Keras callback that acts on rank 0 only, such as one that reports to a tracker.

    Give it to `fit` on every rank. `fit` does the same by itself for the callbacks of Aim, ClearML,
    Comet, DVCLive, MLflow, Neptune, Polyaxon, SwanLab, Trackio and Weights & Biases (by the package
    that a callback's class, or a base of it, comes from) and for Keras' own that write files.

    What it is given may be a class or function that makes the callback: it is called on rank 0
    only, so that only rank 0 opens a run. Usage::

        def tracker():
            wandb.init(project="digits")
            return WandbMetricsLogger()

        model.fit(data, callbacks=[tfddl.callbacks.OnRankZero(tracker)])

    The callback may set ``stop_training``, which ends training on all ranks. Within `fit` it may
    call ``evaluate`` and ``predict`` of the model, which then are rank 0's own. It must not change
    weights, learning rate or optimizer, on which the ranks have to be alike, nor call anything that
    all ranks must call together.
    """

    def __init__(
        self,
        callback: keras.callbacks.Callback | Callable[[], keras.callbacks.Callback],
    ) -> None:
        """Makes the callback, on rank 0.

        Args:
            callback: A callback, or a class or function that is called on rank 0, without
                arguments, and returns one.

        Raises:
            UnsupportedError: It is none, or one that all ranks need, such as EarlyStopping or
                tfddl's own.
            NotInitializedError: `tfddl.init()` has not been called.
        """
        super().__init__()
        is_here = current().cluster.rank == 0
        if isinstance(callback, type):
            _refuse(callback)
        if is_here and not isinstance(callback, keras.callbacks.Callback):
            callback = callback()
        _refuse(type(callback))
        if is_here and not isinstance(callback, keras.callbacks.Callback):
            raise UnsupportedError(
                f"OnRankZero was given what makes a {type(callback).__name__}; expected a Keras "
                "callback. HINT: end the function with a return of the callback."
            )
        self.callback: Any = callback if is_here else None
        """The callback on rank 0; None elsewhere."""

    def set_params(self, params: Any) -> None:
        """Hands on what Keras says of the call."""
        super().set_params(params)
        if self.callback is not None:
            self.callback.set_params(params)

    def set_model(self, model: Any) -> None:
        """Hands on the model."""
        super().set_model(model)
        if self.callback is not None:
            self.callback.set_model(model)


def _forwarding(event: str) -> Callable[..., None]:
    def forward(self: OnRankZero, *args: Any, **kwargs: Any) -> None:
        if self.callback is not None:
            with _watched(self.callback, self.model, event):
                getattr(self.callback, event)(*args, **kwargs)

    forward.__name__ = event
    return forward


for _event in _EVENTS:
    setattr(OnRankZero, _event, _forwarding(_event))


def is_tracker(callback: Any) -> bool:
    """Whether a callback is of an experiment tracker's package, or derived from one that is.

    One that changes the training, too, isn't: every rank needs it.
    """
    if isinstance(callback, _TRAINING):
        return False
    return any(base.__module__.partition(".")[0] in _TRACKERS for base in type(callback).__mro__)


def _refuse(kind: type) -> None:
    if issubclass(kind, _TRAINING):
        raise UnsupportedError(
            f"OnRankZero was given {kind.__name__}, which changes the training, and must act on "
            "every rank. HINT: give it to fit as it is, on every rank."
        )


class _Watch:
    """The variables of a model's training that are assigned to while a callback acts alone."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._before: dict[int, tuple[Any, np.ndarray]] = {}

    def note(self, variable: Any) -> None:
        """Keeps the value of a variable that is about to be assigned to for the first time."""
        trained = (*self._model.trainable_variables, *self._model.optimizer.variables)
        if id(variable) not in self._before and any(v is variable for v in trained):
            self._before[id(variable)] = variable, np.array(variable)

    def changed(self) -> list[str]:
        """The variables whose value isn't what it was."""
        entries = self._before.values()
        return [v.path for v, before in entries if np.array(v).tobytes() != before.tobytes()]


@contextmanager
def _watched(callback: Any, model: Any, event: str) -> Iterator[None]:
    """Raises where a callback changes on rank 0 what the ranks must have alike.

    Raises:
        UnsupportedError: It does.
    """
    fit = running_fit(model)
    # What rank 0 has after on_train_begin, all ranks get.
    if fit is None or not fit.together or event == "on_train_begin":
        yield
        return
    watch = _Watch(model)
    with _noting_assignments(watch):
        yield
    if changed := watch.changed():
        more = f" and {len(changed) - 1} more" if changed[1:] else ""
        raise UnsupportedError(
            f"{type(callback).__name__} acts on rank 0 only, but in {event} it has changed "
            f"{changed[0]}{more}: the ranks would train different models. HINT: a callback "
            "that changes weights or the learning rate goes to fit on every rank, without "
            "OnRankZero."
        )


@contextmanager
def _noting_assignments(watch: _Watch) -> Iterator[None]:
    # Layers, models and optimizers set their variables by this method, and assign_add comes to it
    # too (keras/src/backend/common/variables.py, Keras 3.11 to 3.15). It is replaced for the time
    # of the event only: a training step then doesn't pass here.
    home: Any = next(base for base in keras.Variable.__mro__ if "assign" in vars(base))
    original = home.assign

    def assign(variable: Any, value: Any) -> Any:
        watch.note(variable)
        return original(variable, value)

    home.assign = assign
    try:
        yield
    finally:
        home.assign = original
