"""How what is large is cut into chunks, of which several travel at once. Pure arithmetic."""

import dataclasses
from collections.abc import Sequence

_WHOLE_BYTES = 16 * 2**20
"""What is cut into as many chunks as there are channels: each has such a part of these bytes."""

_ALIGNED_BYTES = 64
"""TensorFlow takes a slice that begins there as it is, without a copy."""


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """Elements of a tensor, half-open."""

    tensor: int
    """Its position among those that travel together."""

    start: int
    stop: int


Chunk = list[Span]
"""Either a part of one tensor, or several whole ones."""


def cut(lengths: Sequence[int], *, most: int, itemsize: int) -> list[Chunk]:
    """Cuts tensors that are long, and joins short ones that are neighbours.

    What comes out depends on the arguments alone, so that it is the same on all ranks.

    Args:
        lengths: Elements of each tensor, in the order in which they travel.
        most: How many elements a chunk may have; or 64 bytes of them, where that is more.
        itemsize: Bytes of an element.

    Returns:
        Chunks that cover every element once, in order; none of them is empty.
    """
    step = max(1, _ALIGNED_BYTES // itemsize)
    most = max(most // step, 1) * step
    chunks: list[Chunk] = []
    space = 0
    for tensor, length in enumerate(lengths):
        if 0 < length <= space:
            chunks[-1].append(Span(tensor, 0, length))
            space -= length
        elif length:
            number = -(-length // most)
            # All chunks alike, but the last: one that is much shorter would leave its channel idle.
            each = -(-length // (number * step)) * step
            starts = range(0, length, each)
            chunks += [[Span(tensor, i, min(i + each, length))] for i in starts]
            space = most - length if number == 1 else 0
    return chunks


def chunk_bytes(channels: int) -> int | None:
    """How many bytes a chunk has at most; None where nothing is cut.

    Args:
        channels: How many chunks travel at once, at least 1.
    """
    return _WHOLE_BYTES // channels if channels > 1 else None
