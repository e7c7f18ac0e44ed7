"""Keras' progress bar, with the job's examples per second."""

import time
from typing import Any

import keras

from tfddl._src.keras_hooks.fit_state import FitState
from tfddl._src.keras_hooks.step_state import step_state
from tfddl._src.runtime import current, is_started

RATE = "examples/s"

# Reading a variable takes some 20 us, a bar is drawn 20 times a second.
_UPDATE_S = 0.2


class JobProgressBar(keras.callbacks.ProgbarLogger):
    """Shows the examples that all ranks train on in a second; no log and no history has it.

    As in the bar's time per step, neither the first step of an epoch counts nor validation. Where
    the data isn't from `tfddl.shard_dataset`, the rate is this rank's times the number of ranks;
    with one worker, it is then not shown.
    """

    def __init__(self, fit: FitState) -> None:
        super().__init__()
        self._fit = fit

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begins to count anew."""
        super().on_epoch_begin(epoch, logs)
        self._first: tuple[float, float] | None = None
        self._steps, self._last_s, self._updated_s = 0, 0.0, 0.0
        self._rate: dict[str, float] = {}

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Draws the bar with the rate so far."""
        self._steps, self._last_s = self._fit.steps_done(batch), time.perf_counter()
        if self._first is None:
            self._first = self._last_s, self._examples()
        elif self._last_s - self._updated_s >= _UPDATE_S:
            self._update_rate()
        super().on_train_batch_end(batch, {**(logs or {}), **self._rate})

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Draws the last bar of the epoch."""
        self._update_rate()
        super().on_epoch_end(epoch, {**(logs or {}), **self._rate})

    def _update_rate(self) -> None:
        self._updated_s = self._last_s
        if self._first is None:
            return
        first_s, first = self._first
        examples, seconds = self._examples() - first, self._last_s - first_s
        if examples > 0 and seconds > 0:
            self._rate = {RATE: examples / seconds}

    def _examples(self) -> float:
        """The job's examples so far; only differences within an epoch mean anything."""
        fit = self._fit
        if fit.shard is not None:
            return fit.position_after(self._steps).consumed
        if fit.together and is_started():
            return float(step_state(fit.model).examples.numpy()) * current().cluster.size
        return 0.0
