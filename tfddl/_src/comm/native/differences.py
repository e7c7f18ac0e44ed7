"""What each worker is about to do, where that isn't alike, in one message."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import TypeAlias

from tfddl._src.comm.native.messages import MAX_PAYLOAD_BYTES

_Found: TypeAlias = dict[tuple[str, int], list[int]]
"""By text and size: whose they are."""


def pack_difference(text: str, num_bytes: int, rank: int) -> bytes:
    """What one worker is about to do, for `merge_differences`.

    Args:
        text: of the operation.
        num_bytes: of its tensors.
        rank: the worker.
    """
    return _pack({(text, num_bytes): [rank]})


def merge_differences(first: bytes, second: bytes) -> bytes:
    """What some workers, and others, are about to do."""
    found = _unpack(first)
    for key, ranks in _unpack(second).items():
        found.setdefault(key, []).extend(ranks)
    return _pack(found)


def unpack_differences(data: bytes) -> Mapping[int, str]:
    """By rank: a line for the operation, then one for each of its tensors.

    Sizes are shown only where texts are alike, and so don't explain the difference.
    """
    found = _unpack(data)
    is_same = len({text for text, _ in found}) == 1
    return {
        rank: f"{text}\n{num_bytes} bytes" if is_same else text
        for (text, num_bytes), ranks in found.items()
        for rank in ranks
    }


def _pack(found: _Found) -> bytes:
    # Texts name hundreds of tensors, and are mostly alike: they become a tenth. Where they don't
    # fit nevertheless, their ends are cut.
    length = max(len(text) for text, _ in found)
    while True:
        cut = [[text[:length], num_bytes, ranks] for (text, num_bytes), ranks in found.items()]
        packed = zlib.compress(json.dumps(cut).encode())
        if len(packed) <= MAX_PAYLOAD_BYTES or not length:
            return packed
        length //= 2


def _unpack(data: bytes) -> _Found:
    found: _Found = {}
    for text, num_bytes, ranks in json.loads(zlib.decompress(data)):
        found.setdefault((text, num_bytes), []).extend(ranks)  # Cut ones may have become alike.
    return found
