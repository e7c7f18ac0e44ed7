"""What a batch counts: its number of examples, and what the rank's mean loss is divided by."""

from typing import Any

import tensorflow as tf

from tfddl._src.collectives import ReduceOp
from tfddl._src.gradients import ReductionOptions
from tfddl._src.keras_hooks.optimizer import innermost
from tfddl._src.moments import NEGLIGIBLE_COUNT
from tfddl._src.runtime import current
from tfddl.errors import UnsupportedError

WEIGHTED_MEAN = "mean_with_sample_weight"
"""The reduction of a Keras loss that is divided by the sum of the sample weights."""


def loss_count(model: Any, x: Any, weight: Any) -> tf.Tensor:
    """What the rank's mean loss is divided by: its examples, or the sum of their weights.

    Args:
        model: Compiled.
        x: The inputs of the batch.
        weight: Its sample weights, or None.

    Returns:
        Float64 scalar.

    Raises:
        UnsupportedError: Gradients are averaged, but a loss isn't a mean; or several losses are
            divided by different numbers.
    """
    reductions = {reduction(loss) for loss in tf.nest.flatten(model.loss)}
    if averages(model) and not reductions.isdisjoint({"sum", "none", None}):
        raise UnsupportedError(
            f"A loss with reduction {sorted(map(str, reductions))} isn't a mean over the batch, "
            "so that the workers' gradients can't be averaged exactly. HINT: use a loss with "
            'reduction="sum_over_batch_size" (the default), or DistributedOptimizer(…, op="sum"), '
            "which adds the gradients up."
        )
    if not is_weighted(model, weight):
        return tf.cast(num_examples(x), tf.float64)
    if len(reductions) > 1 or len(tf.nest.flatten(weight)) > 1:
        raise UnsupportedError(
            f"Several losses of which one has reduction={WEIGHTED_MEAN!r} divide by different "
            "numbers on every worker, and can't be averaged exactly. HINT: use the same reduction "
            "for all, with one sample weight per example."
        )
    total = tf.reduce_sum(tf.cast(tf.nest.flatten(weight)[0], tf.float64))
    # With a count of 0 a rank's gradients would be left out, those of regularizers too.
    return tf.where(total == 0, tf.constant(NEGLIGIBLE_COUNT, tf.float64), total)


def averages(model: Any) -> bool:
    """Whether gradients are averaged by the counts, not just added up."""
    averaging: ReductionOptions = innermost(model.optimizer).tfddl_options
    return averaging.op is ReduceOp.AVERAGE


def is_weighted(model: Any, weight: Any) -> bool:
    """Whether a loss is divided by the sum of the sample weights."""
    return weight is not None and WEIGHTED_MEAN in map(reduction, tf.nest.flatten(model.loss))


def reduction(loss: Any) -> str | None:
    """The reduction of a loss as `compile` takes it."""
    # Names and functions become means over the batch (LossFunctionWrapper,
    # keras/src/losses/losses.py).
    return getattr(loss, "reduction", "sum_over_batch_size")


def num_examples(x: Any) -> tf.Tensor:
    """The first dimension of a structure of tensors: int64 scalar, where the gradients are."""
    leaf = next(leaf for leaf in tf.nest.flatten(x) if leaf is not None)
    if not current().process_group.stays_on_device:
        return tf.shape(leaf, tf.int64)[0]
    if leaf.shape[0] is not None:
        return tf.constant(leaf.shape[0], tf.int64)
    # TensorFlow keeps shapes in host memory. A copy of one to the GPU would wait for all that the
    # GPU was given before, and the step's header with it: so it is counted on the GPU.
    ones = tf.fill(tf.shape(leaf)[:1], tf.constant(1, tf.int64))
    return tf.reduce_sum(ones)


def batch_size(data: Any) -> tf.Tensor | None:
    """The number of examples of a batch; None where a user's own step gets something else."""
    leaf = next((leaf for leaf in tf.nest.flatten(data) if leaf is not None), None)
    if leaf is None or not hasattr(leaf, "shape") or tf.TensorShape(leaf.shape).rank == 0:
        return None
    return num_examples(leaf)


def counts(weight: Any) -> tf.Tensor | None:
    """Whether a batch counts: a boolean scalar, or None where it surely does.

    A single example with the weight -0.0 doesn't: see `tfddl._src.data.PADDING_WEIGHT`.
    """
    leaves = [leaf for leaf in tf.nest.flatten(weight) if leaf is not None]
    if not leaves or leaves[0].shape.rank == 0 or not leaves[0].dtype.is_floating:
        return None
    first = tf.cast(tf.reshape(leaves[0], [-1])[0], tf.float32)
    # -0.0 == 0.0, so it is told by its bits: in float32 the sign alone, the smallest int32.
    is_negative_zero = tf.bitcast(first, tf.int32) == tf.int32.min
    return tf.logical_not(tf.logical_and(tf.shape(leaves[0])[0] == 1, is_negative_zero))
