"""What a rank's mean loss was divided by, in loops and losses written by hand."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfddl._src.collectives import DisplayName, ReduceOp, allreduce
from tfddl._src.collectives.autograph import no_autograph
from tfddl._src.runtime import is_started
from tfddl._src.step_context import StepContext, current_step, in_step, refuse_in_turn


@contextlib.contextmanager
def loss_count(count: Any) -> Iterator[None]:
    """Says, in a loop written by hand, what the rank's mean loss was divided by.

    Usage::

        with tfddl.loss_count(tf.shape(x)[0]):
            optimizer.apply_gradients(zip(gradients, variables))

    Without it, every rank's gradient counts the same. `fit` needs none of this. Before such a loop,
    `tfddl.broadcast_variables` gives all ranks the same weights; `fit` does that by itself. With
    ``BatchNormalization(synchronized=True)`` in the model, the gradients themselves depend on the
    counts: then compute them inside, too.

    Args:
        count: Scalar, >= 0: the number of examples of the rank's batch, or the sum of their
            weights if the loss is divided by that. 0 leaves the rank out.
    """
    with in_step(dataclasses.replace(current_step(), count=tf.cast(count, tf.float64))):
        yield


@no_autograph
def sum_over_ranks(values: tf.Tensor) -> tf.Tensor:
    """What a loss that doesn't decompose into examples is made of, over the whole global batch.

    In a training step of `fit`, and within `loss_count`, where all ranks must call it together, it
    is the sum over the ranks; one whose count is 0 contributes nothing. Each rank's gradient is
    that of its own values, multiplied by all ranks' counts over its own: averaged by the counts,
    as gradients are, the ranks' parts then add up to the gradient of the loss.

    Anywhere else (in `evaluate`, in validation) it is the rank's own values, and nothing travels:
    ranks may take different numbers of steps there, and would wait for each other.

    Args:
        values: One dimension, floating point, of the same size on all ranks.

    Returns:
        The same shape and dtype.

    Raises:
        UnsupportedError: Processes run several virtual workers, one after the other.
    """
    step = current_step() if is_started() else StepContext()
    if step.count is None:
        return values
    refuse_in_turn("A loss of the whole global batch")
    count = tf.cast(step.count, values.dtype)

    @tf.custom_gradient
    def summed(own: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        total = allreduce(tf.concat([[count], own], axis=0), ReduceOp.SUM, name=DisplayName("loss"))
        weight = tf.math.divide_no_nan(total[0], count) if step.averages else tf.ones_like(count)
        # The ranks' gradients are averaged later, each by count / total: this one has to be as many
        # times larger.
        return total[1:], lambda upstream: upstream * weight

    return summed(tf.where(count > 0, values, tf.zeros_like(values)))
