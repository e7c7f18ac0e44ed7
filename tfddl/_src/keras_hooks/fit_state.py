"""A `fit` that is running: where it stands, and who is told."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from tfddl._src.data import EPOCH_STATE, find_error
from tfddl._src.runtime import PerRuntime, is_started
from tfddl._src.sharding import Plan, Position
from tfddl.errors import DataError


@dataclasses.dataclass(kw_only=True)
class FitState:
    """A `fit` that is running, on all ranks if there are several."""

    model: Any
    together: bool
    """Whether the ranks train one model: several of them, and a distributed optimizer."""

    callbacks: Any = None
    """The `keras.callbacks.CallbackList`, once training has begun."""

    share: Any
    """The `tfddl._src.data.Shard` that is trained on; None where the data is of another kind."""

    data: str = "not from tfddl.shard_dataset"
    """What the data is, as far as the ranks must have it alike."""

    datasets: tuple[Any, ...] = ()
    """What is trained on and validated with, as it was given."""

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

    rest: "Rest | None" = None
    """What was left of the first epoch, where an earlier run began it; see `rest_of_epoch`."""

    restored_size: int | None = None
    """The number of workers of the run that is being gone on with."""

    warned_of_uneven: bool = False
    training: bool = False
    """Between the beginning of an epoch and its training logs."""

    validating: bool = False
    """While `fit` itself evaluates the model."""

    @property
    def rest_of_epoch(self) -> "Rest | None":
        """What was left of the epoch, where that was begun by an earlier run."""
        return self.rest if self.rest is not None and self.rest.epoch == self.epoch else None

    def position(self) -> Position:
        """The place in the data after the steps that are done."""
        if self.is_complete:
            return Position(self.epoch + 1, 0)
        if not self.done or self.share is None:
            return Position(self.epoch, 0)
        rest = self.rest_of_epoch
        if rest is not None:
            return rest.plan.position(epoch=self.epoch, steps=self.done - rest.skipped)
        return self.share.plan.position(epoch=self.epoch, steps=self.done)

    def failure(self) -> DataError | None:
        """What went wrong on this rank when its data was read, if anything has."""
        found = (find_error(dataset) for dataset in self.datasets)
        return next((failure for failure in found if failure is not None), None)

    @property
    def has_position(self) -> bool:
        """Whether a place within an epoch can be returned to."""
        return self.share is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RestOfEpoch:
    """What is left of an epoch that was begun by an earlier run."""

    plan: Plan
    """Of the rest."""

    epoch: int

    skipped: int
    """How many steps an undisturbed epoch of this run would have had before."""


class JobCallback(keras.callbacks.Callback):
    """A callback that is called after all others, and after what the ranks then agree on."""

    def after_train_begin(self, fit: FitState) -> None:
        """All callbacks have begun, and the variables are there."""

    def after_epoch_begin(self, fit: FitState) -> None:
        """An epoch is about to begin; the metrics have been reset."""

    def after_train_batch(self, fit: FitState, logs: Any) -> None:
        """Steps have been done."""

    def after_epoch(self, fit: FitState, logs: Any) -> None:
        """An epoch has ended, with validation; the logs are the job's, and what callbacks added."""

    def after_fit(self) -> None:
        """`fit` has ended, with an error or without, if it had begun to train."""


class BroadcastCallback(JobCallback):
    """A callback that says whose state all ranks start from."""

    def __init__(self, root_rank: int, local_variables: Sequence[Any] = ()) -> None:
        super().__init__()
        self.root_rank = root_rank
        self.local_variables = tuple(local_variables)
        """What stays each rank's own."""


@dataclasses.dataclass
class _Running:
    fit: FitState | None = None


_RUNNING = PerRuntime(lambda _: _Running())


def current_fit() -> FitState | None:
    """The `fit` that is running in this process, if one is."""
    return _RUNNING.current().fit if is_started() else None


def begin_fit(fit: FitState | None, *, epoch: int) -> None:
    """Makes a `fit` the one that is running; to be called within `without_fit`."""
    _RUNNING.current().fit = fit
    state = EPOCH_STATE.current()
    state.epoch, state.reports_failures = epoch, fit is not None and fit.together


@contextlib.contextmanager
def without_fit() -> Iterator[None]:
    """While no `fit` is running, until `begin_fit`; the one that ran before goes on afterwards."""
    running_fit, state = _RUNNING.current(), EPOCH_STATE.current()
    before = running_fit.fit, state.epoch, state.resume, state.reports_failures
    running_fit.fit = state.epoch = state.resume = None
    state.reports_failures = False
    try:
        yield
    finally:
        running_fit.fit, state.epoch, state.resume, state.reports_failures = before


def running_fit(callbacks: Any) -> FitState | None:
    """The `fit` that a list of callbacks belongs to, if it does."""
    fit = current_fit()
    return fit if fit is not None and callbacks.model is fit.model else None


def job_callbacks(callbacks: Any) -> Iterator[JobCallback]:
    """Those of a list of callbacks that come last."""
    return (callback for callback in callbacks.callbacks if isinstance(callback, JobCallback))
