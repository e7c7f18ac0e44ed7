"""reducescatter, and its gradient."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from tfddl.collectives.agreement import (
    NoDimensionError,
    Signature,
    agree,
    refusing_alike,
)
from tfddl.collectives.dense import ReduceOp, Reducing, times
from tfddl.collectives.gathering import gather
from tfddl.collectives.packs import carried
from tfddl.collectives.process_sets import Group, ProcessSet, group_of
from tfddl.errors import UnsupportedError
from tfddl.plan import shard_range


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
        op: As for `allreduce`.
        prescale_factor: As for `allreduce`.
        postscale_factor: As for `allreduce`.
        name: How messages call it.
        process_set: Between which ranks; without it, all.

    Returns:
        This rank's rows of the reduced tensor, the same dtype. Its gradient joins those of all
        ranks, for sum and average; the other ops have none.

    Raises:
        RanksDisagreeError: Ranks came with different dtypes, shapes, ops or factors.
        NoDimensionError: The tensor has no dimension.
        UnsupportedError: No such op, a dtype that can't travel, or a process set that this rank
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


def grouped_reducescatter(  # noqa: PLR0913 - as Horovod's users know it
    tensors: Sequence[tf.Tensor],
    op: ReduceOp | str = ReduceOp.AVERAGE,
    *,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    name: str | None = None,
    process_set: ProcessSet | None = None,
) -> list[tf.Tensor]:
    """Reduces and scatters several tensors, each as `reducescatter` does."""
    reducing = Reducing.of(op, prescale_factor=prescale_factor, postscale_factor=postscale_factor)
    group = group_of(process_set)
    tensors = [tf.convert_to_tensor(t) for t in tensors]
    if not tensors:
        return []

    @tf.custom_gradient
    def scatter(*inputs: tf.Tensor) -> tuple[list[tf.Tensor], Callable[..., list[tf.Tensor]]]:
        operation = f"reducescatter {reducing}"
        bound = agree(group, Signature.of(group, operation, name, inputs))
        with refusing_alike(bound):
            NoDimensionError.check(operation, name, inputs)

        def gradient(*upstream: tf.Tensor) -> list[tf.Tensor]:
            if not reducing.is_linear:
                raise UnsupportedError(
                    f"{operation} has no gradient; only those of sum and average have."
                )
            joined = gather(group, upstream, operation="allgather", name=name)
            factor = reducing.factor(group.size)
            return [
                tf.ensure_shape(times(whole, factor), tensor.shape)
                for whole, tensor in zip(joined, inputs, strict=True)
            ]

        return [_scattered(bound, tensor, reducing) for tensor in inputs], gradient

    return list(scatter(*tensors))


def _scattered(group: Group, tensor: tf.Tensor, reducing: Reducing) -> tf.Tensor:
    rows = _rows(group, tensor)
    inner = tf.shape(tensor, tf.int64)[1:]
    sent = carried(group, tf.reshape(reducing.before(tensor, group.transport), [-1]))
    lengths = rows * tf.reduce_prod(inner)
    total = group.transport.reduce_scatter(sent, lengths, reducing.reduction)
    shape = tf.concat([[rows[group.rank]], inner], axis=0)
    static = tf.TensorShape([tf.get_static_value(rows[group.rank])]).concatenate(tensor.shape[1:])
    mine = reducing.after(total, group.size, tensor.dtype)
    return tf.ensure_shape(tf.reshape(mine, shape), static)


def _rows(group: Group, tensor: tf.Tensor) -> tf.Tensor:
    """How many rows each rank gets: those of `shard_range`."""
    first = tensor.shape[0] if tensor.shape.rank else None
    if first is None:
        number = tf.shape(tensor, tf.int64)[0]
        more = tf.range(group.size, dtype=tf.int64) < number % group.size
        return number // group.size + tf.cast(more, tf.int64)
    ranges = [shard_range(first, rank, group.size) for rank in range(group.size)]
    return tf.constant([stop - start for start, stop in ranges], tf.int64)
