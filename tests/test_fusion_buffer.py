"""Fusion buffers, compared with concatenated arrays."""

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tfddl._src.comm.native.fusion_buffer import FusionBuffer
from tfddl._src.comm.native.reductions import divide_into

LENGTHS = [[5], [0], [3, 4], [0, 3, 0, 0, 2, 1, 0], [1, 1, 1, 1, 1, 1], [7, 0, 1]]


def _arrays(lengths: list[int], dtype: Any = np.float32) -> list[np.ndarray]:
    values = (np.arange(sum(lengths)) * 1.1 + 1).astype(dtype)
    return np.split(values.copy(), np.cumsum(lengths)[:-1])


def _ranges(length: int) -> list[range]:
    return [range(a, b) for a, b in itertools.combinations_with_replacement(range(length + 1), 2)]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_reads_equal_those_of_the_concatenated_arrays(lengths: list[int]) -> None:
    buffer = FusionBuffer(_arrays(lengths))
    whole = np.concatenate(buffer.arrays)
    assert buffer.dtype == whole.dtype
    assert (buffer.lengths, buffer.length, buffer.num_bytes) == (lengths, len(whole), whole.nbytes)
    for span in _ranges(len(whole)):
        part = whole[span.start : span.stop]
        segments = list(buffer.segments(span))
        assert all(len(segment) for segment, _ in segments)
        starts = np.cumsum([0, *(len(segment) for segment, _ in segments)])
        assert [at for _, at in segments] == starts[:-1].tolist()
        assert np.concatenate([part[:0], *(s for s, _ in segments)]).tolist() == part.tolist()
        assert all(any(np.shares_memory(s, a) for a in buffer.arrays) for s, _ in segments)
        assert buffer.read(span.start, span.stop).tolist() == part.tolist()
        target = np.zeros(len(part), np.float32)
        buffer.copy_to(span, target)
        assert target.tolist() == part.tolist()


@pytest.mark.parametrize("lengths", LENGTHS)
def test_writes_change_the_span_and_nothing_else(lengths: list[int]) -> None:
    for span in _ranges(sum(lengths)):
        for writes in (False, True):
            buffer = FusionBuffer(_arrays(lengths))
            expected = np.concatenate(buffer.arrays)
            values = -np.arange(1.0, len(span) + 1, dtype=np.float32)
            expected[span.start : span.stop] = values
            if writes:
                buffer.write(span.start, values)
            else:
                buffer.copy_from(span, values)
            assert np.concatenate(buffer.arrays).tolist() == expected.tolist()


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


def test_one_array_without_a_scale_is_not_copied() -> None:
    for scale in (None, 1.0):
        buffer = FusionBuffer(_arrays([5]), scale=scale)
        assert np.shares_memory(buffer.read(1, 3), buffer.arrays[0])
        assert buffer.scaled(buffer.arrays[0], np.empty(5, np.float32)) is buffer.arrays[0]
    two = FusionBuffer(_arrays([2, 3]))
    assert not any(np.shares_memory(two.read(0, 5), array) for array in two.arrays)
    halved = FusionBuffer(_arrays([5]), scale=0.5)
    assert not np.shares_memory(halved.read(0, 5), halved.arrays[0])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("scale", [0.0, 0.3, -2.0])
def test_a_scale_is_multiplied_in_when_copied(dtype: Any, scale: float) -> None:
    """In the dtype itself, 16 bits in 32, rounded once; 0 hides what isn't a number."""
    arrays = _arrays([3, 0, 2], dtype)
    if scale == 0.0:
        arrays[0][1] = np.nan
    buffer, whole = FusionBuffer(arrays, scale=scale), np.concatenate(arrays)
    wide = np.float32 if whole.dtype.itemsize == 2 else whole.dtype.type
    product = whole.astype(wide) * wide(scale)
    expected = (np.zeros_like(whole) if scale == 0.0 else product.astype(dtype)).tobytes()
    target = np.empty(5, dtype)
    buffer.copy_to(range(5), target)
    assert target.tobytes() == expected
    assert buffer.read(0, 5).tobytes() == expected
    scratch = np.empty(3, dtype)
    assert buffer.scaled(arrays[0], scratch) is scratch
    assert scratch.tobytes() == expected[: scratch.nbytes]
    assert np.concatenate(buffer.arrays).tobytes() == whole.tobytes()


def test_the_first_arrays_may_have_no_scale() -> None:
    arrays = _arrays([3, 0, 2, 4])
    whole = np.concatenate(arrays)
    expected = np.concatenate([whole[:3], whole[3:] * np.float32(0.5)])
    buffer = FusionBuffer(arrays, scale=0.5, num_unscaled=2)
    for span in (range(9), range(2, 6), range(1, 3), range(4, 9)):
        target = np.empty(len(span), np.float32)
        buffer.copy_to(span, target)
        assert target.tolist() == expected[span.start : span.stop].tolist()
    once = buffer.scaled_once()
    assert [array.tolist() for array in once.arrays] == [
        part.tolist() for part in np.split(expected, [3, 3, 5])
    ]
    # Nothing is copied where there is nothing left to do, or all have one scale.
    for same in (FusionBuffer(arrays, scale=1.0, num_unscaled=1), FusionBuffer(arrays, scale=0.5)):
        assert same.scaled_once() is same


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_division_is_rounded_once_whatever_it_is_done_by(dtype: Any) -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(dtype)
    values[:3] = np.inf, np.nan, 0
    for number in (1.0, 3.0, 64.0, 0.5, -8.0, 96.0, 1e-30, 2.0**-126, 2.0**120, np.inf, np.nan):
        with np.errstate(all="ignore"):
            expected = values / dtype(number)
        out, in_place = np.empty_like(values), values.copy()
        divide_into(values, dtype(number), out)
        divide_into(in_place, dtype(number), in_place)
        assert out.tobytes() == in_place.tobytes() == expected.tobytes(), number
    divide_into(values, dtype(0), values)
    assert values.tolist() == [0.0] * len(values)
