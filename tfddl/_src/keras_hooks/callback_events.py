"""The events of `fit`, as callbacks of ours get them from Keras.

Two of them are put around the user's callbacks: `FirstCallback` before all, so that ranks that are
about to train differently are stopped before any callback waits for the others; `LastCallback`
after all, because what the ranks agree on (the end of training, the learning rate) is known only
when every callback has had its say.

Keras appends its `History` and progress bar to the list it gets, unless they are in it
(`CallbackList._add_default_callbacks`, keras/src/callbacks/callback_list.py). They are put in
front of `LastCallback`: a checkpoint holds the history with the epoch that has just ended, and a
resumed history must not be emptied again by `History.on_train_begin`.

On TensorFlow Keras calls all of them in the thread of `fit`, whatever they override: its
asynchronous dispatch needs a backend that is thread-safe, and TensorFlow's says that it isn't
(`IS_THREAD_SAFE`, keras/src/backend/tensorflow/core.py, Keras 3.11 to 3.15).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from tfddl._src.data import epoch_state
from tfddl._src.keras_hooks import consistency, initial_state, stopping, virtual_fit
from tfddl._src.keras_hooks.builtin_callbacks import flatten_callbacks
from tfddl._src.keras_hooks.data_errors import raise_on_all_ranks
from tfddl._src.keras_hooks.fit_state import FitState, job_callbacks
from tfddl._src.keras_hooks.progress_bar import JobProgressBar
from tfddl._src.keras_hooks.step_state import step_state, warn_of_uneven_steps
from tfddl._src.runtime import current, is_started


class Heartbeat(keras.callbacks.Callback):
    """Shows the launcher that batches are being done, in `fit`, `evaluate` and `predict`."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Reports one batch."""
        _beat()

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Reports one batch."""
        _beat()

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        """Reports one batch."""
        _beat()


def _beat() -> None:
    if is_started():  # Scripts may call `tfddl.shutdown` in a callback.
        current().progress_page.beat()


class EpochCallback(Heartbeat):
    """Also tells `shard_dataset` which epoch begins: each has an order of its own."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Before any callback that may iterate over the data."""
        if is_started():
            epoch_state().epoch = epoch


class FirstCallback(EpochCallback):
    """What comes before all other callbacks in a `fit` that the job follows."""

    def __init__(self, fit: FitState) -> None:
        super().__init__()
        self._fit = fit

    def on_train_begin(self, logs: Any = None) -> None:
        """Compares the ranks' plans, before a callback can wait for the others in vain."""
        fit = self._fit
        params = self.params or {}  # Of a CallbackList of the user's that was made without any.
        plan = None if fit.shard is None else fit.shard.plan
        fit.steps = params.get("steps") or (None if plan is None else plan.steps)
        fit.epochs = int(params.get("epochs", fit.epochs))
        if plan is not None and plan.steps != fit.steps:
            fit.shard = None  # With steps_per_epoch an epoch isn't a pass over the shard.
        if fit.together:
            initial_state.compare_before_callbacks(fit)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes which epoch begins, and how much of it an earlier run has done."""
        super().on_epoch_begin(epoch, logs)
        fit = self._fit
        fit.epoch, fit.is_complete = epoch, False
        fit.done = 0 if fit.rest_of_epoch is None else fit.rest_of_epoch.skipped
        if fit.together:
            step_state(fit.model).steps.assign(fit.done)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Reports the step, before a callback can end the process."""
        if is_started():
            step = self._fit.steps_done(batch)
            current().progress_page.count_step(epoch=self._fit.epoch, step=step)


class LastCallback(keras.callbacks.Callback):
    """What comes after all other callbacks in a `fit` that the job follows.

    Attributes:
        fit: that `fit`.
    """

    def __init__(self, fit: FitState) -> None:
        super().__init__()
        self.fit = fit

    def on_train_begin(self, logs: Any = None) -> None:
        """Compares the ranks once more, and gives all of them the same state."""
        if self.fit.together:
            initial_state.synchronize(self.fit)
        for callback in job_callbacks(self.fit):
            callback.after_train_begin(self.fit)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Compares the learning rates that callbacks have set."""
        if not is_started():
            return
        if self.fit.together:
            consistency.compare_learning_rates(self.fit.model, epoch)
            virtual_fit.begin_epoch(self.fit.model)
        for callback in job_callbacks(self.fit):
            callback.after_epoch_begin(self.fit)
        self.fit.training = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Ends training on all ranks after the same step, where any of them wants it to end."""
        if not is_started():
            return
        fit = self.fit
        fit.done = fit.steps_done(batch)
        if fit.together and stopping.stop_within_epoch(fit):
            raise_on_all_ranks(fit)
        for callback in job_callbacks(fit):
            callback.after_train_batch(fit, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Ends training on all ranks after this epoch, where any of them wants it to end."""
        if not is_started():
            return
        fit = self.fit
        if fit.together:
            stopping.stop_after_epoch(fit)
            warn_of_uneven_steps(fit)
        # All callbacks of a list get the same dictionary: these are the logs with what those before
        # have added.
        for callback in job_callbacks(fit):
            callback.after_epoch(fit, logs or {})


@contextmanager
def installed(
    given: dict[str, Any], first: keras.callbacks.Callback, last: LastCallback | None
) -> Iterator[None]:
    """Puts callbacks of ours around those that `fit`, `evaluate` or `predict` has got.

    Args:
        given: The arguments of the call; its callbacks are replaced.
        first: Before all others.
        last: After all others, Keras' history and progress bar included; only for `fit`.
    """
    callbacks = given.get("callbacks")
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        around: Sequence[Any] = [] if last is None else [*_defaults(given, last.fit), last]
        given["callbacks"] = [first, *flatten_callbacks(callbacks), *around]
        yield
        return
    # A list of the user's has its history and progress bar, if any, and has been told model and
    # parameters. It may be used again: it must not keep what belongs to this call.
    before = list(callbacks.callbacks)
    ours = [first] if last is None else [first, last]
    for callback in ours:
        callback.set_params(callbacks.params)
        callback.set_model(callbacks.model)
    callbacks.callbacks = [first, *before, *ours[1:]]
    try:
        yield
    finally:
        callbacks.callbacks = before


def _defaults(given: dict[str, Any], fit: FitState) -> list[Any]:
    """What Keras would add to the user's callbacks."""
    callbacks = flatten_callbacks(given.get("callbacks"))
    defaults: list[Any] = []
    if not any(isinstance(callback, keras.callbacks.History) for callback in callbacks):
        defaults.append(keras.callbacks.History())
    has_bar = any(isinstance(callback, keras.callbacks.ProgbarLogger) for callback in callbacks)
    if given.get("verbose", "auto") != 0 and not has_bar:
        defaults.append(JobProgressBar(fit))
    return defaults
