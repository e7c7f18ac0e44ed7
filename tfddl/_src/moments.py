"""Mean and variance over the examples of all ranks, with the gradient that one process has.

**Forward.** Each rank computes the count n of its elements, their mean m, and the sum M of the
squared deviations from it, of each channel. All ranks get all of these, and merge them alike::

    n = sum n_r,    mean = sum n_r m_r / n,    variance = sum (M_r + n_r (m_r - mean)^2) / n

Only deviations are squared: far from zero, the difference of the mean of the squares and the square
of the mean would be nothing but rounding.

**Backward.** The job's loss is L = sum w_r L_r / W, where L_r is what rank r differentiates, w_r
the weight of its gradient (its count, see `gradients`), and W the sum of these. What rank r has
to arrive at is therefore g_r = W / w_r times the derivative of L by its own tensors: then
sum w_r g_r / W is the derivative of L by what all ranks share. Each rank s uses the moments itself,
and hands back a gradient u_s that is already so scaled: u_s = W / w_s dL/d(moments as s uses them).
Through the moments, an element x of rank r acts on all of them::

    g_r = W / w_r  sum_s dL/d(moments as s uses them) . d(moments)/dx
        = (1 / w_r)  sum_s w_s u_s . d(moments)/dx

with d(mean)/dx = 1 / n and d(variance)/dx = 2 (x - mean) / n. So the gradients of the moments are
weighted by the own count, added up over the ranks, and divided by the own count. Where ranks have
equal weights, it is their plain sum, as it is where TensorFlow's strategy adds the gradients up.

References:
    "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", Chan, Golub,
    LeVeque, 1979
    "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
    Ioffe, Szegedy, 2015, https://arxiv.org/abs/1502.03167
"""

from collections.abc import Callable, Sequence
from typing import NoReturn

import tensorflow as tf

from tfddl._src.collectives import DisplayName, ReduceOp, allreduce, stack
from tfddl._src.collectives.autograph import no_autograph
from tfddl._src.step_context import current_step, refuse_in_turn
from tfddl.errors import UnsupportedError

NEGLIGIBLE_COUNT = 2.0**-60
"""What stands for a count of zero on a rank whose examples are in the moments.

They act on the other ranks' losses, so that its gradient isn't nothing, and must not be multiplied
by zero. Nothing is rounded by it, and no float32 overflows."""

_SMALL = (tf.float16, tf.bfloat16)


@no_autograph
def moments_of_all_ranks(
    x: tf.Tensor, axes: Sequence[int], mask: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance of each channel over all ranks. All ranks must call it together.

    Costs one collective forward, in which each rank sends 2 C + 1 numbers for C channels (3 C with
    a mask) to all others, and one backward, the sum of 2 C numbers. Both are of the dtype of the
    moments: 4 bytes each, 8 for float64. Eagerly, each is compared before, as all operations are.

    What doesn't count in a training step of `fit` (`StepContext.examples` is 0) doesn't count here,
    and a rank may have no element at all. The gradient is exact for the counts that are known when
    it is computed (`StepContext.count`): in a loop written by hand, that is inside of
    `tfddl.loss_count`, or in the ``gradient`` of a `tfddl.DistributedGradientTape`. It can't be
    differentiated again.

    A count of zero is that of a rank without examples: no gradient comes to it. `fit` takes
    `NEGLIGIBLE_COUNT` for a rank whose examples all have the weight zero; for float16 the gradients
    of that rank are too large.

    Args:
        x: Numbers; all dimensions but one, that of the channels, are reduced. The number of
            channels is static, and the same on all ranks.
        axes: The dimensions to reduce.
        mask: Bool, of a shape that broadcasts to that of x: which elements count.

    Returns:
        Two tensors of shape (channels,), the same on every rank; float32, or float64 for float64.
        Zero where no rank has an element.

    Raises:
        DisagreementError: Ranks have different numbers of channels, or masks on some only.
        UnsupportedError: The gradient is differentiated; or processes run several virtual workers.
    """
    refuse_in_turn("BatchNormalization(synchronized=True)")
    if x.dtype in _SMALL:
        x = tf.cast(x, tf.float32)
    axes = [axis % x.shape.rank for axis in axes]
    keep = None if mask is None else _broadcast(mask, x)
    examples = current_step().examples
    taken = tf.ones([], x.dtype) if examples is None else tf.cast(examples > 0, x.dtype)

    @tf.custom_gradient
    def moments(x: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable[..., tf.Tensor]]:
        count, mean, variance = _merged(_of_this_rank(x, keep, axes, taken))

        def gradient(of_mean: tf.Tensor, of_variance: tf.Tensor) -> tf.Tensor:
            return _only_once(_gradient)(x, of_mean, of_variance)

        def _gradient(x: tf.Tensor, of_mean: tf.Tensor, of_variance: tf.Tensor) -> tf.Tensor:
            totals = _of_all_losses(tf.concat([of_mean, of_variance], axis=0))
            scale = tf.math.divide_no_nan(taken, count)
            by_mean, by_variance = (_along(t * scale, x, axes) for t in tf.split(totals, 2))
            result = by_mean + 2 * by_variance * (x - _along(mean, x, axes))
            return result if keep is None else tf.where(keep, result, tf.zeros_like(result))

        return (mean, variance), gradient

    mean, variance = moments(x)
    return mean, variance


def _broadcast(mask: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    return tf.ensure_shape(tf.broadcast_to(tf.cast(mask, tf.bool), tf.shape(x)), x.shape)


def _of_this_rank(
    x: tf.Tensor, keep: tf.Tensor | None, axes: Sequence[int], taken: tf.Tensor
) -> list[tf.Tensor]:
    """Counts (one for all channels, or one each), means, sums of squared deviations."""
    if keep is None:
        channels = next(x.shape[axis] for axis in range(x.shape.rank) if axis not in axes)
        # In int64, since float32 counts exactly up to 2**24 only; it is rounded once, below.
        counts = tf.reshape(tf.size(x, tf.int64) // channels, [1])
    else:
        counts = tf.math.count_nonzero(keep, axes)
        x = tf.where(keep, x, tf.zeros_like(x))
    count = tf.cast(counts, x.dtype)
    mean = tf.math.divide_no_nan(tf.reduce_sum(x, axes), count)
    deviations = x - _along(mean, x, axes)
    if keep is not None:
        deviations = tf.where(keep, deviations, tf.zeros_like(deviations))
    # A padding example isn't looked at: if it were infinite, it would be zero times that below.
    squares = tf.math.multiply_no_nan(tf.reduce_sum(deviations**2, axes), taken)
    return [count * taken, tf.math.multiply_no_nan(mean, taken), squares]


def _merged(mine: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Count, mean and variance of all ranks."""
    dtype = mine[0].dtype
    # Merged in float64, by every rank in rank order: all get the same bits, and the deviation of
    # the means isn't lost where it is small beside them.
    rows = tf.cast(stack(tf.concat(mine, axis=0), name=DisplayName("moments")), tf.float64)
    counts, means, squares = tf.split(rows, [part.shape[0] for part in mine], axis=1)
    count = tf.reduce_sum(counts, axis=0)
    mean = tf.math.divide_no_nan(tf.reduce_sum(counts * means, axis=0), count)
    around = tf.reduce_sum(squares + counts * (means - mean) ** 2, axis=0)
    variance = tf.math.divide_no_nan(around, count)
    return tf.cast(count, dtype), tf.cast(mean, dtype), tf.cast(variance, dtype)


def _of_all_losses(mine: tf.Tensor) -> tf.Tensor:
    """The gradient of the job's loss, scaled as this rank's gradients are."""
    step = current_step()
    counts = step.averages and step.count is not None
    weight = tf.cast(step.count, mine.dtype) if counts else tf.ones([], mine.dtype)
    weighted = tf.math.multiply_no_nan(mine, weight)
    total = allreduce(weighted, ReduceOp.SUM, name=DisplayName("gradients of moments"))
    return tf.math.divide_no_nan(total, weight)


def _along(values: tf.Tensor, x: tf.Tensor, axes: Sequence[int]) -> tf.Tensor:
    """One value per channel, in a shape that broadcasts to that of x."""
    return tf.reshape(values, [1 if axis in axes else -1 for axis in range(x.shape.rank)])


def _only_once(gradient: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """A gradient that can't be differentiated: what it was computed of is forgotten by then."""

    @tf.custom_gradient
    def once(*inputs: tf.Tensor) -> tuple[tf.Tensor, Callable[..., NoReturn]]:
        return gradient(*inputs), _refuse

    return once


def _refuse(*_: tf.Tensor) -> NoReturn:
    raise UnsupportedError(
        "The gradient of BatchNormalization(synchronized=True) can't be differentiated once more "
        "on several workers. Leave synchronized=True out where you need gradients of gradients."
    )
