"""reducescatter, and its gradient."""

import functools
from collections.abc import Sequence

import tensorflow as tf

from tfddl._src.collectives.allgather import allgather_in
from tfddl._src.collectives.autograph import no_autograph
from tfddl._src.collectives.dense import (
    Gradient,
    ScaledOp,
    differentiable_positions,
    times,
    with_none,
)
from tfddl._src.collectives.fusion import fuse
from tfddl._src.collectives.negotiation import (
    CollectiveRequest,
    NoDimensionError,
    failing_together,
    negotiate,
    serialized,
)
from tfddl._src.collectives.process_sets import GradientRule, Group, ProcessSet, group_of
from tfddl._src.comm.native import ReduceOp
from tfddl._src.sharding import shard_range
from tfddl.errors import UnsupportedError


@no_autograph
def reducescatter(  # noqa: PLR0913 - as Horovod's users know it
    tensor: tf.Tensor,
    op: ReduceOp | str = ReduceOp.AVERAGE,
    *,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    name: str | None = None,
    process_set: ProcessSet | None = None,
) -> tf.Tensor:
    """Reduces over all ranks; each gets a part of the result. All ranks must call it together.

    Args:
        tensor: At least one dimension, the same shape on all ranks; numbers (bool only for min and
            max). The first dimension is cut as `tfddl.shard_range` does: the parts differ by one
            row at most, the first ranks have the longer ones.
        op: As for `allreduce`, but for "adasum".
        prescale_factor: As for `allreduce`.
        postscale_factor: As for `allreduce`.
        name: How messages call it.
        process_set: Between which ranks; without it, all.

    Returns:
        This rank's rows of the reduced tensor, the same dtype. Its gradient, for sum and average,
        is the derivative of the sum of all ranks' losses: those of all ranks, joined, times the
        factors, and, for an average, divided by the number of ranks. The other ops have none.
        (Under Horovod's names it is that many times as large, as in Horovod.)

    Raises:
        DisagreementOpError: Ranks came with different dtypes, shapes, ops or factors.
        NoDimensionError: The tensor has no dimension.
        UnsupportedError: No such op, a dtype that can't be sent, or a process set that this rank
            isn't in.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    return grouped_reducescatter(
        [tensor],
        op,
        prescale_factor=prescale_factor,
        postscale_factor=postscale_factor,
        name=name,
        process_set=process_set,
    )[0]


@no_autograph
def grouped_reducescatter(  # noqa: PLR0913 - as Horovod's users know it
    tensors: Sequence[tf.Tensor],
    op: ReduceOp | str = ReduceOp.AVERAGE,
    *,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    name: str | None = None,
    process_set: ProcessSet | None = None,
) -> list[tf.Tensor]:
    """Reduces and scatters several tensors, each as `reducescatter` does; small ones together."""
    scaled_op = ScaledOp.of(op, prescale_factor=prescale_factor, postscale_factor=postscale_factor)
    return reducescatter_in(group_of(process_set), tensors, scaled_op, name=name)


@no_autograph
def reducescatter_in(
    group: Group, tensors: Sequence[tf.Tensor], scaled_op: ScaledOp, *, name: str | None
) -> list[tf.Tensor]:
    """`grouped_reducescatter` in a group."""
    if scaled_op.op is ReduceOp.ADASUM:
        raise UnsupportedError(
            "reducescatter can't do adasum. HINT: allreduce, and take this rank's rows of it."
        )
    tensors = [tf.convert_to_tensor(t) for t in tensors]
    if not tensors:
        return []

    @tf.custom_gradient
    @serialized(group)
    def scatter(*inputs: tf.Tensor) -> tuple[list[tf.Tensor], Gradient]:
        operation = f"reducescatter {scaled_op}"
        request = CollectiveRequest.of(group, operation, name, inputs)
        bound = negotiate(group, request.fused(group))
        with failing_together(bound):
            NoDimensionError.check(operation, name, inputs)
            sent = [scaled_op.before(tensor, bound.process_group) for tensor in inputs]
        totals = fuse(bound, sent, functools.partial(_scattered, bound, scaled_op.summed_by))

        def gradient(*upstream: tf.Tensor) -> list[tf.Tensor | None]:
            if not scaled_op.is_linear:
                raise UnsupportedError(
                    f"{operation} has no gradient; only those of sum and average have."
                )
            places = differentiable_positions(inputs)
            joined = allgather_in(group, [upstream[i] for i in places], name=name)
            factor = _gradient_factor(group, scaled_op)
            mine = [
                tf.ensure_shape(times(whole, factor), inputs[i].shape)
                for i, whole in zip(places, joined, strict=True)
            ]
            return with_none(places, mine, len(inputs))

        parts = [
            scaled_op.after(total, group.size, tensor.dtype)
            for total, tensor in zip(totals, inputs, strict=True)
        ]
        return parts, gradient

    return list(scatter(*tensors))


def _gradient_factor(group: Group, scaled_op: ScaledOp) -> float:
    """What the joined gradients are multiplied with, for a linear op."""
    if group.gradients is GradientRule.SUM_OF_LOSSES:
        return scaled_op.factor(group.size)
    factors = scaled_op.prescale_factor * scaled_op.postscale_factor
    return factors * group.size if scaled_op.op is ReduceOp.SUM else factors


def _scattered(group: Group, op: ReduceOp, pack: list[tf.Tensor]) -> list[tf.Tensor]:
    """This rank's rows of each tensor of a pack; what is for one rank travels side by side."""
    rows = [_rows(group, tensor) for tensor in pack]
    sizes = [tf.reduce_prod(tf.shape(tensor, tf.int64)[1:]) for tensor in pack]
    lengths = [number * size for number, size in zip(rows, sizes, strict=True)]
    if len(pack) == 1:
        joined = tf.reshape(pack[0], [-1])  # In the order of the ranks as it is.
    else:
        cut = [tf.split(t, number, num=group.size) for t, number in zip(pack, rows, strict=True)]
        by_rank = [tf.reshape(part, [-1]) for parts in zip(*cut, strict=True) for part in parts]
        # Rank by rank, all tensors' parts side by side: one exchange for the pack.
        joined = tf.concat(by_rank, axis=0)
    arrived = group.process_group.reduce_scatter(
        joined, tf.add_n(lengths), op, signature=group.signature
    )
    mine = [length[group.rank] for length in lengths]
    parts = tf.split(arrived, mine) if len(pack) > 1 else [arrived]
    return [
        _shaped(part, number[group.rank], tensor)
        for part, number, tensor in zip(parts, rows, pack, strict=True)
    ]


def _shaped(flat: tf.Tensor, rows: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    shape = tf.concat([[rows], tf.shape(like, tf.int64)[1:]], axis=0)
    static = tf.TensorShape([tf.get_static_value(rows)]).concatenate(like.shape[1:])
    return tf.ensure_shape(tf.reshape(flat, shape), static)


def _rows(group: Group, tensor: tf.Tensor) -> tf.Tensor:
    """How many rows each rank gets: those of `shard_range`."""
    first = tensor.shape[0] if tensor.shape.rank else None
    if first is None:
        number = tf.shape(tensor, tf.int64)[0]
        more = tf.range(group.size, dtype=tf.int64) < number % group.size
        return number // group.size + tf.cast(more, tf.int64)
    ranges = [shard_range(first, rank, group.size) for rank in range(group.size)]
    return tf.constant([stop - start for start, stop in ranges], tf.int64)
