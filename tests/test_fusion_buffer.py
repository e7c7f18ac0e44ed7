"""Several arrays seen as one, against the arrays joined."""

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tfddl._src.comm.native.fusion_buffer import FusionBuffer

LENGTHS = [[5], [0], [3, 4], [0, 3, 0, 0, 2, 1, 0], [1, 1, 1, 1, 1, 1], [7, 0, 1]]


def _arrays(lengths: list[int], dtype: Any = np.float32) -> list[np.ndarray]:
    values = (np.arange(sum(lengths)) * 1.1 + 1).astype(dtype)
    return np.split(values.copy(), np.cumsum(lengths)[:-1])


def _ranges(length: int) -> list[range]:
    return [range(a, b) for a, b in itertools.combinations_with_replacement(range(length + 1), 2)]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_it_is_what_the_joined_arrays_are(lengths: list[int]) -> None:
    flat = FusionBuffer(_arrays(lengths))
    whole = np.concatenate(flat.arrays)
    assert flat.dtype == whole.dtype
    assert (flat.lengths, flat.length, flat.num_bytes) == (lengths, len(whole), whole.nbytes)
    for wanted in _ranges(len(whole)):
        part = whole[wanted.start : wanted.stop]
        pieces = list(flat.pieces(wanted))
        assert all(len(piece) for piece, _ in pieces)
        starts = np.cumsum([0, *(len(piece) for piece, _ in pieces)])
        assert [at for _, at in pieces] == starts[:-1].tolist()
        assert np.concatenate([part[:0], *(p for p, _ in pieces)]).tolist() == part.tolist()
        assert all(any(np.shares_memory(p, a) for a in flat.arrays) for p, _ in pieces)
        assert flat.take(wanted.start, wanted.stop).tolist() == part.tolist()
        target = np.zeros(len(part), np.float32)
        flat.copy_to(wanted, target)
        assert target.tolist() == part.tolist()


@pytest.mark.parametrize("lengths", LENGTHS)
def test_what_is_put_in_is_there_and_nowhere_else(lengths: list[int]) -> None:
    for wanted in _ranges(sum(lengths)):
        for put in (False, True):
            flat = FusionBuffer(_arrays(lengths))
            expected = np.concatenate(flat.arrays)
            values = -np.arange(1.0, len(wanted) + 1, dtype=np.float32)
            expected[wanted.start : wanted.stop] = values
            if put:
                flat.put(wanted.start, values)
            else:
                flat.copy_from(wanted, values)
            assert np.concatenate(flat.arrays).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [
        (8, [range(0, 2), range(2, 4), range(4, 5)]),
        (11, [range(0, 2), range(2, 4), range(4, 5)]),  # Elements aren't cut.
        (12, [range(0, 3), range(3, 5)]),
        (20, [range(0, 5)]),
        (100, [range(0, 5)]),
    ],
)
def test_chunks(num_bytes: int, expected: list[range]) -> None:
    assert FusionBuffer(_arrays([2, 3])).chunks(num_bytes) == expected
    assert FusionBuffer(_arrays([0, 0])).chunks(num_bytes) == []


def test_one_array_is_not_copied_where_it_is_as_wanted() -> None:
    for scale in (None, 1.0):
        flat = FusionBuffer(_arrays([5]), scale=scale)
        assert np.shares_memory(flat.take(1, 3), flat.arrays[0])
        assert flat.scaled(flat.arrays[0], np.empty(5, np.float32)) is flat.arrays[0]
    two = FusionBuffer(_arrays([2, 3]))
    assert not any(np.shares_memory(two.take(0, 5), array) for array in two.arrays)
    halved = FusionBuffer(_arrays([5]), scale=0.5)
    assert not np.shares_memory(halved.take(0, 5), halved.arrays[0])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("scale", [0.0, 0.3, -2.0])
def test_a_scale_is_multiplied_in_when_copied(dtype: Any, scale: float) -> None:
    """In the dtype itself, 16 bits in 32, rounded once; 0 hides what isn't a number."""
    arrays = _arrays([3, 0, 2], dtype)
    if scale == 0.0:
        arrays[0][1] = np.nan
    flat, whole = FusionBuffer(arrays, scale=scale), np.concatenate(arrays)
    wide = np.float32 if whole.dtype.itemsize == 2 else whole.dtype.type
    product = whole.astype(wide) * wide(scale)
    expected = (np.zeros_like(whole) if scale == 0.0 else product.astype(dtype)).tobytes()
    target = np.empty(5, dtype)
    flat.copy_to(range(5), target)
    assert target.tobytes() == expected
    assert flat.take(0, 5).tobytes() == expected
    room = np.empty(3, dtype)
    assert flat.scaled(arrays[0], room) is room
    assert room.tobytes() == expected[: room.nbytes]
    assert np.concatenate(flat.arrays).tobytes() == whole.tobytes()
