"""What a training step knows of itself: who makes the step says it, optimizers and losses ask.

Between both is code that isn't ours (Keras' `train_step`, a loop written by hand), through which
nothing can be passed. Below the optimizer it is passed.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Protocol

import tensorflow as tf

from tfddl._src.runtime import PerRuntime


class Statistics(Protocol):
    """What every rank's batch changes, and all ranks then take the mean of."""

    def change(self, dtype: tf.DType) -> tf.Tensor:
        """What this rank has changed: shape (n,), where n is known, and alike on all ranks."""

    def take(self, changes: tf.Tensor) -> None:
        """Takes in the mean over the ranks, by examples; shape (n,)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepContext:
    """What the training step that is being traced or run knows of itself."""

    count: tf.Tensor | None = None
    """Scalar: what the rank's mean loss was divided by; None where nobody said."""

    averages: bool = True
    """Whether gradients are averaged by these counts; otherwise they are added up."""

    stop: tf.Variable | None = None
    """Float scalar: above 0 where this rank wants training to end."""

    stop_agreed: tf.Variable | None = None
    """Float scalar that becomes above 0 once any rank wants training to end."""

    totals: tf.Variable | None = None
    """Float, (2,): becomes all ranks' count and number of examples once the step has heard them."""

    statistics: Statistics | None = None
    """What else is averaged along with the gradients, by the number of examples."""

    examples: tf.Tensor | None = None
    """Scalar: how many examples the rank has in the step, 0 for a padding example."""

    loss_divisor: int = 1
    """What the optimizer's `scale_loss` divides the loss by before gradients are computed. Where
    all ranks have equally many examples, the gradients then only have to be added up; where they
    don't, the weights of the gradients make up for it."""

    reports_progress: bool = False
    """Whether the loop around the step tells the launcher of each; otherwise the exchange does."""


@dataclasses.dataclass
class _Current:
    step: StepContext


# Not a context variable: TensorFlow's strategies trace replicas in threads of their own.
_CURRENT = PerRuntime(lambda _: _Current(StepContext()))


def current_step() -> StepContext:
    """The step that is being traced or run; one that knows nothing where there is none.

    Raises:
        NotInitializedError: `tfddl.init()` has not been called.
    """
    return _CURRENT.current().step


@contextlib.contextmanager
def in_step(step: StepContext) -> Iterator[None]:
    """Makes `step` the one that `current_step` returns."""
    current = _CURRENT.current()
    before, current.step = current.step, step
    try:
        yield
    finally:
        current.step = before
