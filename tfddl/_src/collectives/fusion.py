"""How tensors of any dtype and shape fit into what a process group carries."""

from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf

from tfddl._src.collectives.fusion_limit import fusion_limit
from tfddl._src.collectives.negotiation import failing_together
from tfddl._src.collectives.process_sets import Group
from tfddl._src.comm.process_group import positions_by_dtype
from tfddl.errors import UnsupportedError

_FUSION_BYTES = 16 * 2**20
"""So many that it is no longer the start that costs, so few that others are computed meanwhile."""

AT_ONCE_BYTES = 2**27
"""Where nothing is computed while tensors travel, it is only the number of operations that costs:
so many bytes go in one. Of more, a worker would have too much twice, as sent and as received."""

_FUSION_BYTES_ONE_CORE = 32 * 2**20
"""What travels together then: as buffers arrive, what was sent is freed, and sums are used."""

TRANSFER_DTYPES = {
    tf.bool: tf.int32,
    tf.int8: tf.int32,
    tf.uint8: tf.int32,
    tf.int16: tf.int32,
    tf.uint16: tf.int32,
    tf.uint32: tf.int64,
}
"""Dtypes that not every process group carries, and what holds all their values."""


def transfer_dtype(group: Group, dtype: tf.DType) -> tf.DType:
    """The dtype in which a group carries tensors of one.

    Raises:
        UnsupportedError: There is none.
    """
    if dtype in group.process_group.dtypes:
        return dtype
    carried = TRANSFER_DTYPES.get(dtype, dtype)
    if carried not in group.process_group.dtypes:
        known = sorted(d.name for d in {*group.process_group.dtypes, *TRANSFER_DTYPES})
        raise UnsupportedError(
            f"{dtype.name} can't be sent between workers; these can: {', '.join(known)}."
        )
    return carried


def cast_for_transfer(group: Group, tensor: tf.Tensor) -> tf.Tensor:
    """The tensor in a dtype that travels.

    Raises:
        UnsupportedError: There is none.
    """
    return tf.cast(tensor, transfer_dtype(group, tensor.dtype))


def all_gather(group: Group, flat: tf.Tensor) -> tf.Tensor:
    """`ProcessGroup.all_gather` for every dtype."""
    rows = group.process_group.all_gather(cast_for_transfer(group, flat), signature=group.signature)
    return tf.cast(rows, flat.dtype)


def fuse(
    group: Group,
    tensors: Sequence[tf.Tensor],
    travel: Callable[[list[tf.Tensor]], list[tf.Tensor]],
) -> list[tf.Tensor]:
    """Lets tensors travel in packs, those of one dtype together, in order."""
    with failing_together(group):
        sent = [cast_for_transfer(group, tensor) for tensor in tensors]
    outputs: list[tf.Tensor] = [None] * len(tensors)
    for members in fused_positions(group, tensors):
        arrived = travel([sent[i] for i in members])
        for i, part in zip(members, arrived, strict=True):
            outputs[i] = tf.cast(part, tensors[i].dtype)
    return outputs


def fused_positions(
    group: Group, tensors: Sequence[tf.Tensor | tf.TensorSpec]
) -> Iterator[list[int]]:
    """The positions of tensors that travel in one pack, for each pack."""
    for positions in positions_by_dtype(tensors):
        limit = fusion_limit(group.runtime)
        usual = _FUSION_BYTES if group.process_group.overlaps else _FUSION_BYTES_ONE_CORE
        most = usual if limit is None else limit
        sizes = [_bytes(tensors[i], unknown=most) for i in positions]
        if limit is None and not group.process_group.overlaps and sum(sizes) <= AT_ONCE_BYTES:
            most = AT_ONCE_BYTES
        for run in plan_buffers(sizes, most):
            yield [positions[i] for i in run]


def plan_buffers(sizes: Sequence[int], limit: int) -> list[range]:
    """Cuts a sequence of tensors into runs that travel together.

    Args:
        sizes: Bytes of each tensor, in the order in which they travel.
        limit: Bytes that a run may have; a tensor larger than that travels alone.

    Returns:
        Consecutive ranges of positions that cover ``sizes``, in order.
    """
    packs: list[range] = []
    start = filled = 0
    for position, size in enumerate(sizes):
        if position > start and filled + size > limit:
            packs.append(range(start, position))
            start, filled = position, 0
        filled += size
    if start < len(sizes):
        packs.append(range(start, len(sizes)))
    return packs


def _bytes(tensor: tf.Tensor | tf.TensorSpec, *, unknown: int) -> int:
    """Bytes of a tensor, where they are known."""
    elements = tensor.shape.num_elements()
    return unknown if elements is None else elements * tensor.dtype.size
