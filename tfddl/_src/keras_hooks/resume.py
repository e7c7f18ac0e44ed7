"""`fit` goes on in the middle of an epoch, where an earlier run left it."""

from collections.abc import Callable, Iterator
from typing import Any

from tfddl._src.data import EPOCH_STATE, ResumePoint
from tfddl._src.keras_hooks.fit_state import FitState, RestOfEpoch, current_fit
from tfddl._src.keras_hooks.patching import changed, wrap_method
from tfddl._src.sharding import Position
from tfddl.errors import UnsupportedError


def install() -> None:
    """Puts the hook in place."""
    try:
        from keras.src.trainers.epoch_iterator import EpochIterator
    except ImportError as error:
        gone = "keras.src.trainers.epoch_iterator.EpochIterator is gone"
        raise UnsupportedError(changed(gone)) from error
    wrap_method(EpochIterator, "_enumerate_iterator", (), _enumerate_iterator)


def resume_from(fit: FitState, position: Position, *, size: int) -> None:
    """Makes a `fit` that has just begun go on from a position. All ranks must call it alike.

    Args:
        fit: The fit; the callbacks have begun, no step has been run.
        position: From where.
        size: How many workers the earlier run had.

    Raises:
        UnsupportedError: The position is within an epoch, and the data can't be entered there.
    """
    start_at_epoch(fit, position.epoch)
    fit.restored_size = size
    if not position.consumed:
        return
    if fit.share is None:
        raise UnsupportedError(
            f"An earlier run stopped within epoch {position.epoch}, after {position.consumed} "
            "examples of it, but the data that fit has got can't be entered there. Give fit what "
            "tfddl.shard_dataset returned (map and prefetch may follow), as the earlier run did."
        )
    plan = fit.share.plan.after(position)
    fit.rest = RestOfEpoch(plan=plan, epoch=position.epoch, skipped=fit.share.steps_done(position))
    EPOCH_STATE.current().resume = ResumePoint(fit.share, position)


def start_at_epoch(fit: FitState, epoch: int) -> None:
    """Makes a `fit` that has just begun start with a later epoch; with none, if that's the last."""
    fit.model._initial_epoch = _Epoch(epoch)
    fit.initial_epoch = fit.epoch = epoch


def end_resumed_epoch(fit: FitState) -> None:
    """The epoch that was begun by an earlier run is at its end."""
    if fit.rest is not None:
        EPOCH_STATE.current().resume = None


class _Epoch(int):
    """A number that is true even where it is zero.

    Keras takes ``initial_epoch`` instead of one that isn't.
    """

    def __bool__(self) -> bool:
        return True


def _enumerate_iterator(original: Callable[..., Any], self: Any) -> Any:
    fit = current_fit()
    if fit is None or not fit.training or fit.share is None:
        return original(self)
    # With steps_per_epoch Keras has made this epoch's iterator at the end of the last one, in the
    # order of that.
    self._current_iterator = None
    rest = fit.rest_of_epoch
    return original(self) if rest is None else _rest(self, rest.skipped)


def _rest(iterator: Any, skipped: int) -> Iterator[tuple[int, int, Any]]:
    """An epoch without its first steps, numbered as if they had been."""
    stride = iterator.steps_per_execution
    iterator.data_adapter.on_epoch_begin()
    resume = EPOCH_STATE.current().resume
    assert resume is not None
    batches = iter(resume.rest_of(iterator._get_iterator()))
    for step in range(skipped, iterator.num_batches, stride):
        yield step, step + stride - 1, batches
    iterator.data_adapter.on_epoch_end()
