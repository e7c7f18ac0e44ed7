"""What a training step knows of itself: who makes the step says it, optimizers and losses ask.

Between both is code that isn't ours (Keras' `train_step`, a loop written by hand), through which
nothing can be passed. Below the optimizer it is passed.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

import tensorflow as tf

from tfddl._src.runtime import PerRuntime, current
from tfddl.errors import UnsupportedError


class Statistics(Protocol):
    """What every rank's batch changes, and all ranks then take the mean of."""

    def change(self, dtype: tf.DType) -> tf.Tensor:
        """What this rank has changed: shape (n,), where n is known, and alike on all ranks."""

    def take(self, changes: tf.Tensor) -> None:
        """Takes in the mean over the ranks, by examples; shape (n,)."""


class GradientCapture(Protocol):
    """What takes a virtual worker's gradients, in the place of the optimizer."""

    def take(
        self, optimizer: object, gradients: Sequence[object], variables: Sequence[object]
    ) -> None:
        """Takes what an optimizer was to apply.

        Args:
            optimizer: The one that the step has called, loss-scale optimizers included.
            gradients: The virtual worker's own; None where a variable has none.
            variables: What they are the gradients of, in the same order.
        """


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

    capture: GradientCapture | None = None
    """Where gradients go instead of being applied: those of a virtual worker, which are added to
    the others' first."""

    virtual_workers: int | None = None
    """For how many virtual workers the step is, of which this process may run several in turn."""

    compiles: bool = False
    """Whether XLA compiles what it can of the step, such as the optimizer's update."""

    reports_progress: bool = False
    """Whether the loop around the step tells the launcher of each; otherwise the exchange does."""


@dataclasses.dataclass
class _Current:
    step: StepContext


# Not a context variable: TensorFlow's strategies trace replicas in threads of their own.
_CURRENT = PerRuntime(lambda _: _Current(StepContext()))


def refuse_in_turn(what: str) -> None:
    """Raises where virtual workers run one after the other, and would have to run together.

    Args:
        what: What needs all of them at the same time.

    Raises:
        UnsupportedError: A process runs several of them.
    """
    virtual_workers, size = current_step().virtual_workers, current().cluster.size
    if virtual_workers is not None and virtual_workers != size:
        raise UnsupportedError(
            f"{what} needs what all {virtual_workers} virtual workers have at the same point of a "
            f"step, but {size} workers run them one after the other; expected as many workers as "
            f"virtual workers. HINT: leave it out, or start {virtual_workers} workers."
        )


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
