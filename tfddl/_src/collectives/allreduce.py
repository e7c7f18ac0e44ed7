"""allreduce, of dense and sparse tensors."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfddl._src.collectives.allgather import allgather_in
from tfddl._src.collectives.autograph import no_autograph
from tfddl._src.collectives.dense import ScaledOp, reduce_dense, times
from tfddl._src.collectives.fusion import fuse
from tfddl._src.collectives.negotiation import (
    CollectiveRequest,
    describe_tensor,
    negotiate,
    serialized,
)
from tfddl._src.collectives.process_sets import Group, ProcessSet, group_of
from tfddl._src.comm.native import ReduceOp
from tfddl.errors import UnimplementedError


@no_autograph
def allreduce(  # noqa: PLR0913 - as Horovod's users know it
    tensor: Any,
    op: ReduceOp | str = ReduceOp.AVERAGE,
    *,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    name: str | None = None,
    process_set: ProcessSet | None = None,
) -> Any:
    """Reduces a tensor elementwise over all ranks. All ranks must call it together.

    Args:
        tensor: Any shape, the same on all ranks; numbers (bool only for min and max). 16-bit floats
            are reduced in float32 and rounded once, 8- and 16-bit integers in int32. A
            `tf.IndexedSlices`, for sum and average only, may have another number of slices per
            rank; it is gathered.
        op: "average", "sum", "min", "max" or "product"; or "adasum", of 16-, 32- and 64-bit floats
            over 2, 4, 8, … ranks (see `tfddl._src.collectives.adasum`). The average of integers is
            cut off, after the postscale factor.
        prescale_factor: What every rank's tensor is multiplied with before; integers are cut off.
        postscale_factor: What the result is multiplied with, likewise.
        name: How messages call it.
        process_set: Between which ranks; without it, all.

    Returns:
        The same shape and dtype, bit for bit the same on every rank. Its gradient is the
        derivative of the sum of all ranks' losses, any number of times. Sum and average: the same
        reduction of the gradients. Min and max: the sum of the gradients, shared equally by the
        ranks that have the extremum, zero on the others. Product, Adasum: none. (Under Horovod's
        names it is the same reduction with every op, as in Horovod.)

    Raises:
        DisagreementOpError: Ranks came with different dtypes, shapes, ops or factors.
        UnimplementedError: `tf.IndexedSlices` with another op, or an Adasum over another number of
            ranks; it is a `NotImplementedError` too.
        UnsupportedError: No such op, a dtype that can't be sent, or a process set that this rank
            isn't in.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    return grouped_allreduce(
        [tensor],
        op,
        prescale_factor=prescale_factor,
        postscale_factor=postscale_factor,
        name=name,
        process_set=process_set,
    )[0]


@no_autograph
def grouped_allreduce(  # noqa: PLR0913 - as Horovod's users know it
    tensors: Sequence[Any],
    op: ReduceOp | str = ReduceOp.AVERAGE,
    *,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    name: str | None = None,
    process_set: ProcessSet | None = None,
) -> list[Any]:
    """Reduces several tensors at once; small ones travel together.

    Args:
        tensors: The same number, dtypes and shapes on all ranks.
        op: As for `allreduce`.
        prescale_factor: As for `allreduce`.
        postscale_factor: As for `allreduce`.
        name: How messages call it.
        process_set: Between which ranks; without it, all.

    Returns:
        The reduced tensors, in the order given.

    Raises:
        DisagreementOpError: Ranks came with different tensors, ops or factors.
        UnimplementedError: As for `allreduce`.
        UnsupportedError: As for `allreduce`.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    scaled_op = ScaledOp.of(op, prescale_factor=prescale_factor, postscale_factor=postscale_factor)
    return allreduce_in(group_of(process_set), tensors, scaled_op, name=name)


@no_autograph
def allreduce_in(
    group: Group, tensors: Sequence[Any], scaled_op: ScaledOp, *, name: str | None
) -> list[Any]:
    """`grouped_allreduce` in a group."""
    outputs = list(tensors)
    sparse = [i for i, t in enumerate(outputs) if isinstance(t, tf.IndexedSlices)]
    dense = [i for i in range(len(outputs)) if i not in sparse]
    # Whoever applies slices adds up those of the same row: only of a sum is that the reduction.
    if sparse and not scaled_op.is_linear:
        raise UnimplementedError(
            f"allreduce {scaled_op.op} of tf.IndexedSlices isn't implemented; only average and sum "
            "are. Make a dense tensor of them first: tf.convert_to_tensor(slices)."
        )
    reduced = reduce_dense(group, [outputs[i] for i in dense], scaled_op, name=name)
    for i, total in zip(dense, reduced, strict=True):
        outputs[i] = total
    for i in sparse:
        outputs[i] = _reduce_sparse(group, outputs[i], scaled_op, name=name)
    return outputs


@no_autograph
def sum_numbers(
    numbers: tf.Tensor,
    *,
    about: Sequence[str] = (),
    name: str,
    process_set: ProcessSet | None = None,
) -> tf.Tensor:
    """The sum over all ranks of a few numbers. All ranks must call it together; it has no gradient.

    Args:
        numbers: Shape (n,), float32 or float64, the same on all ranks.
        about: What else has to be alike on all ranks, a line each; messages tell what differs.
        name: How messages call it.
        process_set: Between which ranks; without it, all.

    Returns:
        The same shape and dtype.

    Raises:
        DisagreementOpError: Ranks came with different numbers of them, or about something else.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    group = group_of(process_set)

    @serialized(group)
    def summed() -> tf.Tensor:
        request = CollectiveRequest.of(group, "allreduce sum", name, [numbers])
        bound = negotiate(group, request.about(about))
        [total] = bound.process_group.all_reduce(
            [tf.stop_gradient(numbers)], ReduceOp.SUM, signature=bound.signature
        )
        return total

    return summed()


@no_autograph
def sum_weighted(  # noqa: PLR0913 - what, by how much, and how errors call it
    head: tf.Tensor,
    tensors: Sequence[tf.Tensor],
    weight: tf.Tensor,
    *,
    divisor: float | None,
    name: str,
    process_set: ProcessSet | None = None,
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """The weighted mean over all ranks of tensors, and the sum of some numbers, in one operation.

    All ranks must call it together. It has no gradient.

    Args:
        head: Shape (n,), n > 0, float32 or float64, the same on all ranks.
        tensors: At least one, of the dtype of `head`, of shapes that are known; the same on all
            ranks.
        weight: Scalar, that dtype: what this rank's tensors are multiplied with before they are
            added up. 0 makes zeros even of what isn't a number.
        divisor: What their sums are divided by, the same on all ranks; None is the sum of the first
            number of `head`. 0 makes zeros.
        name: How messages call it.
        process_set: Between which ranks; without it, all.

    Returns:
        The sum of `head`; the tensors, in the order given.

    Raises:
        DisagreementOpError: Ranks came with other tensors.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    group = group_of(process_set)
    # Compared as what they are to all that reduces them together.
    length = head.shape[0] + sum(tensor.shape.num_elements() for tensor in tensors)
    about = [describe_tensor(tensor.dtype, tensor.shape) for tensor in tensors]

    @serialized(group)
    def summed() -> tuple[tf.Tensor, list[tf.Tensor]]:
        whole = tf.TensorSpec([length], head.dtype)
        request = CollectiveRequest.of(group, "allreduce sum", name, [whole]).about(about)
        bound = negotiate(group, request)
        return bound.process_group.sum_weighted(
            tf.stop_gradient(head),
            [tf.stop_gradient(tensor) for tensor in tensors],
            weight,
            divisor=divisor,
            signature=bound.signature,
        )

    return summed()


@no_autograph
def sum_scaled(
    tensors: Sequence[tf.Tensor],
    scale: tf.Tensor,
    *,
    name: str,
    process_set: ProcessSet | None = None,
) -> list[tf.Tensor]:
    """The sums over all ranks of tensors that each rank multiplies with a number of its own.

    All ranks must call it together. It has no gradient.

    Args:
        tensors: The same number, dtypes and shapes on all ranks, floating point. 16-bit floats are
            added up in float32 and rounded once.
        scale: Scalar, floating point. 0 makes zeros even of what isn't a number.
        name: How messages call it.
        process_set: Between which ranks; without it, all.

    Returns:
        The sums, in the order given.

    Raises:
        DisagreementOpError: Ranks came with different tensors.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    if not tensors:
        return []
    group = group_of(process_set)

    @serialized(group)
    def summed() -> list[tf.Tensor]:
        request = CollectiveRequest.of(group, "allreduce sum, scaled,", name, tensors)
        bound = negotiate(group, request.fused(group))
        return fuse(
            bound,
            # In 16 bits, what is scaled would be rounded before it is added up.
            [tf.cast(t, tf.float32) if t.dtype.size == 2 else t for t in tensors],
            lambda pack: bound.process_group.all_reduce(
                pack, ReduceOp.SUM, scale=scale, signature=bound.signature
            ),
        )

    sums = summed()
    return [tf.cast(total, t.dtype) for total, t in zip(sums, tensors, strict=True)]


@no_autograph
def sum_narrow(
    tensors: Sequence[tf.Tensor], *, name: str, process_set: ProcessSet | None = None
) -> list[tf.Tensor]:
    """The sums over all ranks, 16-bit floats added up as they are: half the bytes, more rounding.

    All ranks must call it together.

    Args:
        tensors: The same number, dtypes and shapes on all ranks.
        name: How messages call it.
        process_set: Between which ranks; without it, all.

    Returns:
        The sums, in the order given.

    Raises:
        DisagreementOpError: Ranks came with different tensors.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    scaled_op = ScaledOp(op=ReduceOp.SUM, narrow=True)
    return reduce_dense(group_of(process_set), tensors, scaled_op, name=name)


def _reduce_sparse(
    group: Group, slices: tf.IndexedSlices, scaled_op: ScaledOp, *, name: str | None
) -> tf.IndexedSlices:
    operation = f"allreduce {scaled_op} of slices"
    values, indices = allgather_in(
        group, [slices.values, slices.indices], operation=operation, name=name
    )
    return tf.IndexedSlices(
        times(values, scaled_op.factor(group.size)), indices, slices.dense_shape
    )
