"""A `fit` that is running: its settings, how far it has come, and the callbacks that follow it."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from tfddl._src.data import Shard, epoch_state, find_error
from tfddl._src.runtime import PerRuntime, is_started
from tfddl._src.sharding import Plan, Position
from tfddl.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RestOfEpoch:
    """What is left of an epoch that an earlier run began."""

    plan: Plan
    epoch: int
    skipped: int
    """The number of steps that an uninterrupted epoch of this run would have had before."""


@dataclasses.dataclass(kw_only=True)
class FitState:
    """A `fit` that is running, on all ranks if there are several."""

    model: Any
    together: bool
    """Whether the ranks train one model: several of them, and a distributed optimizer."""

    callbacks: Sequence[Any] = ()
    """The user's `keras.callbacks.Callback` objects that run on this rank, in order."""

    shard: Shard | None
    """What is trained on; None where the data is of another kind."""

    data: str = "not from tfddl.shard_dataset"
    """A description of the data, as far as the ranks must have it alike."""

    datasets: tuple[Any, ...] = ()
    """The data for training and for validation, as it was passed."""

    batch_spec: Any = None
    """Of a virtual worker's batch, the `tf.TensorSpec` of each tensor; None without them."""

    initial_epoch: int = 0
    validates: bool = False
    validates_together: bool = True
    """Whether the ranks validate as one; otherwise each that validates does so by itself."""

    validation_freq: str = "1"
    epochs: int = 1
    steps: int | None = None
    """Per epoch; None where the data has no known length."""

    epoch: int = 0
    done: int = 0
    """Steps of the epoch that are done, those before a resume included."""

    is_complete: bool = False
    """Whether the epoch was trained to its end."""

    rest: RestOfEpoch | None = None
    """What was left of the first epoch, where an earlier run began it; see `rest_of_epoch`."""

    restored_size: int | None = None
    """The number of workers of the run that is resumed."""

    warned_of_uneven: bool = False
    training: bool = False
    """Between the beginning of an epoch and its training logs."""

    validating: bool = False
    """While `fit` itself evaluates the model."""

    @property
    def rest_of_epoch(self) -> RestOfEpoch | None:
        """What was left of the current epoch, where an earlier run began it."""
        return self.rest if self.rest is not None and self.rest.epoch == self.epoch else None

    def position(self) -> Position:
        """The place in the data after the steps that are done."""
        return Position(self.epoch + 1, 0) if self.is_complete else self.position_after(self.done)

    def position_after(self, steps: int) -> Position:
        """The place in the data after so many steps of the epoch, those before a resume included.

        Without a shard, it is the epoch's beginning.
        """
        if not steps or self.shard is None:
            return Position(self.epoch, 0)
        rest = self.rest_of_epoch
        if rest is not None:
            return rest.plan.position(epoch=self.epoch, steps=steps - rest.skipped)
        return self.shard.plan.position(epoch=self.epoch, steps=steps)

    def steps_done(self, batch: int) -> int:
        """Steps of the epoch that are done at the end of what Keras calls this batch.

        Keras counts whole executions of several steps; the last of an epoch may have fewer.
        """
        return batch + 1 if self.steps is None else min(batch + 1, self.steps)

    def data_error(self) -> DataError | None:
        """The error of this rank's data, if reading it has failed."""
        found = (find_error(dataset) for dataset in self.datasets)
        return next((error for error in found if error is not None), None)

    @property
    def has_position(self) -> bool:
        """Whether training can be resumed within an epoch."""
        return self.shard is not None


class JobCallback(keras.callbacks.Callback):
    """A callback with methods that are called after all other callbacks of the same event.

    By then the ranks have agreed on what the event changes, so that these methods may use
    collectives. They are called on all ranks that train together, in the order of the callbacks.
    """

    def after_train_begin(self, fit: FitState) -> None:
        """Training is about to begin; the variables have been made."""

    def after_epoch_begin(self, fit: FitState) -> None:
        """An epoch is about to begin; the metrics have been reset."""

    def after_train_batch(self, fit: FitState, logs: Any) -> None:
        """One step, or those that Keras executes together, are done."""

    def after_epoch(self, fit: FitState, logs: Any) -> None:
        """An epoch has ended, with validation; the logs are the job's, and what callbacks added."""

    def after_fit(self) -> None:
        """`fit` has ended, with an error or without."""


class BroadcastCallback(JobCallback):
    """A callback that says which rank's state all ranks start from."""

    def __init__(self, root_rank: int, local_variables: Sequence[Any] = ()) -> None:
        super().__init__()
        self.root_rank = root_rank
        self.local_variables = tuple(local_variables)
        """What stays each rank's own."""


def job_callbacks(fit: FitState) -> Iterator[JobCallback]:
    """The `JobCallback` objects among a fit's callbacks."""
    return (callback for callback in fit.callbacks if isinstance(callback, JobCallback))


@dataclasses.dataclass
class _Running:
    fit: FitState | None = None


_RUNNING = PerRuntime(lambda _: _Running())


def current_fit() -> FitState | None:
    """The `fit` that is running in this process, if one is."""
    return _RUNNING.current().fit if is_started() else None


def running_fit(model: Any) -> FitState | None:
    """The `fit` that is running, if it trains this model."""
    fit = current_fit()
    return fit if fit is not None and fit.model is model else None


@contextmanager
def entered(fit: FitState | None, *, epoch: int | None) -> Iterator[None]:
    """Makes a `fit` the running one, and an epoch that which shards are read in.

    Fits nest: a callback may fit another model.

    Args:
        fit: None while nothing is trained together.
        epoch: None outside of `fit`.
    """
    running, state = _RUNNING.current(), epoch_state()
    before = running.fit, state.epoch, state.resume, state.reports_failures
    running.fit = fit
    state.epoch, state.resume = epoch, None
    state.reports_failures = fit is not None and fit.together
    try:
        yield
    finally:
        running.fit, state.epoch, state.resume, state.reports_failures = before
