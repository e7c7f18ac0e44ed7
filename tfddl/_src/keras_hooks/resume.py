"""`fit` goes on in the middle of an epoch, where an earlier run left it."""

from collections.abc import Callable, Iterator
from typing import Any

from tfddl._src.data import ResumePoint, epoch_state
from tfddl._src.keras_hooks.fit_state import FitState, RestOfEpoch, current_fit
from tfddl._src.keras_hooks.patching import private, private_module, wrap_method
from tfddl._src.sharding import Position
from tfddl.errors import UnsupportedError


def install() -> None:
    """Hooks into the iterator of an epoch."""
    # The generator of an epoch's (first step, last step, iterator), which fit and evaluate loop
    # over. Keras before 3.11 yields (step, iterator) instead.
    module = private_module("keras.src.trainers.epoch_iterator")
    iterator = private(module, "EpochIterator")
    wrap_method(iterator, "_enumerate_iterator", (), _enumerate_iterator)


def resume_from(fit: FitState, position: Position, *, size: int) -> None:
    """Makes a `fit` that has just begun go on from a position. All ranks must call it alike.

    Args:
        fit: The fit; the callbacks have begun, no step has been run.
        position: The place in the data to go on from.
        size: How many workers the earlier run had.

    Raises:
        UnsupportedError: The position is within an epoch, and the data can't be resumed there.
    """
    start_at_epoch(fit, position.epoch)
    fit.restored_size = size
    if not position.consumed:
        return
    if fit.shard is None:
        raise UnsupportedError(
            f"An earlier run stopped within epoch {position.epoch}, after {position.consumed} "
            "examples of it, but the data that fit got can't be resumed there. HINT: give fit "
            "what tfddl.shard_dataset returned (map and prefetch may follow), as the earlier run "
            "did."
        )
    plan = fit.shard.plan.after(position)
    fit.rest = RestOfEpoch(plan=plan, epoch=position.epoch, skipped=fit.shard.steps_done(position))
    epoch_state().resume = ResumePoint(fit.shard, position)


def start_at_epoch(fit: FitState, epoch: int) -> None:
    """Makes a `fit` that has just begun start with a later epoch; with none, if that's the last."""
    # fit loops over range(self._initial_epoch or initial_epoch, epochs), and reads it after
    # on_train_begin (TensorFlowTrainer.fit, keras/src/backend/tensorflow/trainer.py; made for
    # BackupAndRestore).
    private(fit.model, "_initial_epoch")
    fit.model._initial_epoch = _Epoch(epoch)
    fit.initial_epoch = fit.epoch = epoch


def clear_initial_epoch(model: Any) -> None:
    """Lets a later `fit` begin with the epoch that it is told."""
    model._initial_epoch = None


def end_resumed_epoch(fit: FitState) -> None:
    """The epoch that an earlier run began has ended: the next one is whole."""
    if fit.rest is not None:
        epoch_state().resume = None


class _Epoch(int):
    """A number that is true even where it is zero: for a false one Keras takes initial_epoch."""

    def __bool__(self) -> bool:
        return True


def _enumerate_iterator(original: Callable[..., Any], self: Any) -> Any:
    fit = current_fit()
    if fit is None or not fit.training or fit.shard is None:
        return original(self)
    # With steps_per_epoch Keras makes an epoch's iterator at the end of the one before, so that it
    # would be in the order of that. Without an iterator Keras makes one now.
    private(self, "_current_iterator")
    self._current_iterator = None
    rest = fit.rest_of_epoch
    return original(self) if rest is None else _rest(self, rest.skipped)


def _rest(iterator: Any, skipped: int) -> Iterator[tuple[int, int, Any]]:
    """An epoch without its first steps, numbered as if they had been made."""
    resume = epoch_state().resume
    assert resume is not None  # As long as the epoch that was begun before isn't at its end.
    stride = iterator.steps_per_execution
    iterator.data_adapter.on_epoch_begin()
    batches = iter(resume.rest_of(private(iterator, "_get_iterator")()))
    for step in range(skipped, iterator.num_batches, stride):
        yield step, step + stride - 1, batches
    iterator.data_adapter.on_epoch_end()
