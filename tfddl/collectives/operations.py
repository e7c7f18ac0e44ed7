"""allreduce, allgather, broadcast, barrier, and their gradients."""

import enum
import itertools
from collections.abc import Callable, Sequence

import tensorflow as tf

from tfddl.collectives.agreement import Signature, agree
from tfddl.errors import UnsupportedError
from tfddl.plan import pack
from tfddl.runtime import Runtime, current
from tfddl.transport import Reduction

_PACK_BYTES = 16 * 2**20
"""A pack this large is bound by bandwidth, no longer by the latency of starting it."""

_CARRIERS = {
    tf.bool: tf.int32,
    tf.int8: tf.int32,
    tf.uint8: tf.int32,
    tf.int16: tf.int32,
    tf.uint16: tf.int32,
    tf.uint32: tf.int64,
}
"""Dtypes that no transport carries, and what holds all their values."""


class ReduceOp(enum.StrEnum):
    """How the tensors of all ranks become one."""

    AVERAGE = "average"
    SUM = "sum"
    MIN = "min"
    MAX = "max"
    PRODUCT = "product"


_REDUCTIONS = {
    ReduceOp.AVERAGE: Reduction.SUM,
    ReduceOp.SUM: Reduction.SUM,
    ReduceOp.MIN: Reduction.MIN,
    ReduceOp.MAX: Reduction.MAX,
    ReduceOp.PRODUCT: Reduction.PRODUCT,
}


def allreduce(
    tensor: tf.Tensor, op: ReduceOp | str = ReduceOp.AVERAGE, *, name: str | None = None
) -> tf.Tensor:
    """Reduces a tensor elementwise over all ranks. All ranks must call it together.

    Args:
        tensor: Any shape, the same on all ranks; numbers (bool only for min and max).
        op: "average", "sum", "min", "max" or "product". The average of integers is rounded down.
        name: How messages call it.

    Returns:
        The same shape and dtype, bit for bit the same on every rank. Its gradient is the same
        reduction of the gradients (min and max: to the ranks that have the extremum; product:
        none).

    Raises:
        DisagreementError: Ranks came with different dtypes, shapes or ops.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    return grouped_allreduce([tensor], op, name=name)[0]


def grouped_allreduce(
    tensors: Sequence[tf.Tensor],
    op: ReduceOp | str = ReduceOp.AVERAGE,
    *,
    name: str | None = None,
) -> list[tf.Tensor]:
    """Reduces several tensors at once; small ones travel together.

    Args:
        tensors: The same number, dtypes and shapes on all ranks.
        op: As for `allreduce`.
        name: How messages call it.

    Returns:
        The reduced tensors, in the order given.

    Raises:
        DisagreementError: Ranks came with different tensors or ops.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    op = _op(op)
    runtime = current()
    tensors = [tf.convert_to_tensor(t) for t in tensors]
    if not tensors:
        return []

    @tf.custom_gradient
    def reduce(*inputs: tf.Tensor) -> tuple[list[tf.Tensor], Callable[..., list[tf.Tensor]]]:
        agree(runtime, Signature.of(_kind(f"allreduce {op}", name), inputs))
        outputs = _reduce(runtime, inputs, op)

        def gradient(*upstream: tf.Tensor) -> list[tf.Tensor]:
            return _allreduce_gradient(op, inputs, outputs, upstream)

        return outputs, gradient

    return list(reduce(*tensors))


def allgather(tensor: tf.Tensor, *, name: str | None = None) -> tf.Tensor:
    """Joins the tensors of all ranks on the first dimension. All ranks must call it together.

    Args:
        tensor: At least one dimension; the first may differ per rank (and be 0), the others and
            the dtype may not.
        name: How messages call it.

    Returns:
        Shape (sum of the first dimensions, ...), in rank order, the same on every rank. Its
        gradient is the rank's own slice of the summed gradients.

    Raises:
        UnsupportedError: The tensor has no dimension.
        DisagreementError: Ranks came with different dtypes or inner dimensions.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    runtime = current()
    tensor = tf.convert_to_tensor(tensor)
    if tensor.shape.rank == 0:
        raise UnsupportedError(
            f"allgather joins tensors on their first dimension, but this one ({tensor.dtype.name}) "
            "has none. Give it one: tf.expand_dims(tensor, 0)."
        )

    @tf.custom_gradient
    def gather(value: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        signature = Signature.of(_kind("allgather", name), [value], free_first_dimension=True)
        agree(runtime, signature)
        lengths = _all_gather(runtime, tf.shape(value, tf.int64)[:1])[:, 0]

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            start = tf.reduce_sum(lengths[: runtime.cluster.rank])
            total = allreduce(upstream, ReduceOp.SUM, name=name)
            return total[start : start + lengths[runtime.cluster.rank]]

        return _gather(runtime, value, lengths), gradient

    return gather(tensor)


def stack(tensor: tf.Tensor, *, name: str | None = None) -> tf.Tensor:
    """Stacks the tensors of all ranks; unlike `allgather` it needs no round trip for the lengths.

    All ranks must call it together. It has no gradient.

    Args:
        tensor: Shape (n,), the same on all ranks.
        name: How messages call it.

    Returns:
        Shape (size, n), in rank order, the same on every rank.

    Raises:
        DisagreementError: Ranks came with different dtypes or lengths.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    runtime = current()
    agree(runtime, Signature.of(_kind("stack", name), [tensor]))
    return _all_gather(runtime, tf.stop_gradient(tensor))


def broadcast(tensor: tf.Tensor, root_rank: int = 0, *, name: str | None = None) -> tf.Tensor:
    """Gives every rank the tensor of one. All ranks must call it together.

    Args:
        tensor: Any shape and dtype, the same on all ranks; only the root's values matter.
        root_rank: Whose values, 0 <= root_rank < size.
        name: How messages call it.

    Returns:
        Bit for bit what the root has. Its gradient goes to the root, summed over the ranks.

    Raises:
        UnsupportedError: There is no such rank.
        DisagreementError: Ranks came with different dtypes, shapes or roots.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    return grouped_broadcast([tensor], root_rank, name=name)[0]


def grouped_broadcast(
    tensors: Sequence[tf.Tensor], root_rank: int = 0, *, name: str | None = None
) -> list[tf.Tensor]:
    """Broadcasts several tensors at once; see `broadcast`. Small ones travel together."""
    runtime = current()
    if not 0 <= root_rank < runtime.cluster.size:
        raise UnsupportedError(
            f"root_rank is {root_rank}; it must be 0..{runtime.cluster.size - 1}."
        )
    tensors = [tf.convert_to_tensor(t) for t in tensors]
    if not tensors:
        return []

    @tf.custom_gradient
    def spread(*inputs: tf.Tensor) -> tuple[list[tf.Tensor], Callable[..., list[tf.Tensor]]]:
        agree(runtime, Signature.of(_kind(f"broadcast from rank {root_rank}", name), inputs))
        outputs = _in_packs(inputs, lambda t: runtime.transport.broadcast(t, root_rank))

        def gradient(*upstream: tf.Tensor) -> list[tf.Tensor]:
            totals = grouped_allreduce(upstream, ReduceOp.SUM, name=name)
            if runtime.cluster.rank == root_rank:
                return totals
            return [tf.zeros_like(total) for total in totals]

        return outputs, gradient

    return list(spread(*tensors))


def barrier() -> None:
    """Returns once every rank has called it.

    Inside a `tf.function`, the ops after it run once every rank has come.
    """
    allreduce(tf.zeros([], tf.int32), ReduceOp.SUM, name="barrier")


def _op(op: ReduceOp | str) -> ReduceOp:
    try:
        return ReduceOp(op)
    except ValueError:
        raise UnsupportedError(f"op is {op!r}; it must be one of {', '.join(ReduceOp)}.") from None


def _kind(operation: str, name: str | None) -> str:
    return operation if name is None else f"{operation} <{name}>"


def _reduce(runtime: Runtime, tensors: Sequence[tf.Tensor], op: ReduceOp) -> list[tf.Tensor]:
    for tensor in tensors:
        if tensor.dtype == tf.bool and op not in (ReduceOp.MIN, ReduceOp.MAX):
            raise UnsupportedError(f"allreduce {op} of bool has no meaning; use min or max.")
    totals = _in_packs(tensors, lambda t: runtime.transport.all_reduce(t, _REDUCTIONS[op]))
    if op is not ReduceOp.AVERAGE:
        return totals
    size = runtime.cluster.size
    return [t // tf.cast(size, t.dtype) if t.dtype.is_integer else t / size for t in totals]


def _allreduce_gradient(
    op: ReduceOp,
    inputs: Sequence[tf.Tensor],
    outputs: Sequence[tf.Tensor],
    upstream: Sequence[tf.Tensor],
) -> list[tf.Tensor]:
    if op in (ReduceOp.AVERAGE, ReduceOp.SUM):
        return grouped_allreduce(upstream, op)
    if op is ReduceOp.PRODUCT:
        raise UnsupportedError(
            "allreduce product has no gradient here; sum the logarithms instead."
        )
    reached = [tf.cast(x == y, y.dtype) for x, y in zip(inputs, outputs, strict=True)]
    ties = grouped_allreduce(reached, ReduceOp.SUM)
    totals = grouped_allreduce(upstream, ReduceOp.SUM)
    return [t * r / n for t, r, n in zip(totals, reached, ties, strict=True)]


def _gather(runtime: Runtime, value: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """Joins values whose first dimensions differ: padded to the longest, then cut."""
    longest = tf.reduce_max(lengths)
    padding = [[0, longest - tf.shape(value, tf.int64)[0]]] + [[0, 0]] * (value.shape.rank - 1)
    inner = tf.shape(value, tf.int64)[1:]
    rows = _all_gather(runtime, tf.reshape(tf.pad(value, padding), [-1]))
    per_rank = tf.reshape(rows, tf.concat([[runtime.cluster.size, longest], inner], axis=0))
    joined = tf.concat(
        [per_rank[rank, : lengths[rank]] for rank in range(runtime.cluster.size)], axis=0
    )
    return tf.ensure_shape(joined, [None, *value.shape[1:]])


def _all_gather(runtime: Runtime, flat: tf.Tensor) -> tf.Tensor:
    carried = _carried(flat, runtime)
    return tf.cast(runtime.transport.all_gather(carried), flat.dtype)


def _carried(tensor: tf.Tensor, runtime: Runtime) -> tf.Tensor:
    carrier = _CARRIERS.get(tensor.dtype, tensor.dtype)
    if carrier not in runtime.transport.dtypes:
        known = sorted(d.name for d in {*runtime.transport.dtypes, *_CARRIERS})
        raise UnsupportedError(
            f"{tensor.dtype.name} can't travel between workers; these can: {', '.join(known)}."
        )
    return tf.cast(tensor, carrier)


def _in_packs(
    tensors: Sequence[tf.Tensor], travel: Callable[[tf.Tensor], tf.Tensor]
) -> list[tf.Tensor]:
    """Lets tensors travel flattened and joined, those of one dtype together, in order."""
    runtime = current()
    outputs: list[tf.Tensor] = [None] * len(tensors)
    dtypes = list(dict.fromkeys(t.dtype for t in tensors))
    for dtype in dtypes:
        positions = [i for i, t in enumerate(tensors) if t.dtype == dtype]
        sizes = [_bytes(tensors[i]) for i in positions]
        for run in pack(sizes, _PACK_BYTES):
            members = [positions[i] for i in run]
            joined = tf.concat([tf.reshape(tensors[i], [-1]) for i in members], axis=0)
            arrived = tf.cast(travel(_carried(joined, runtime)), dtype)
            for i, part in zip(members, _cut(arrived, [tensors[i] for i in members]), strict=True):
                outputs[i] = part
    return outputs


def _cut(flat: tf.Tensor, like: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Cuts a flat tensor into pieces of the shapes of others."""
    lengths = [t.shape.num_elements() for t in like]
    if None in lengths:
        lengths = [tf.size(t) for t in like]
        ends = list(itertools.accumulate(lengths, tf.add))
    else:
        ends = list(itertools.accumulate(lengths))
    return [
        tf.ensure_shape(tf.reshape(flat[end - length : end], tf.shape(t)), t.shape)
        for end, length, t in zip(ends, lengths, like, strict=True)
    ]


def _bytes(tensor: tf.Tensor) -> int:
    """Bytes of a tensor; one of unknown size counts as a full pack."""
    elements = tensor.shape.num_elements()
    return _PACK_BYTES if elements is None else elements * tensor.dtype.size
