"""A fusion buffer: several arrays that are reduced, sent or received as if they were one."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence

import numpy as np


class FusionBuffer:
    """One-dimensional arrays of one dtype as one logical array. They are not copied together.

    Spans are half-open ranges of elements of the logical array.

    Attributes:
        arrays: as they were given.
        dtype: of all of them.
        lengths: number of elements of each.
        length: number of elements of all.
        num_bytes: of all.
    """

    def __init__(
        self, arrays: Sequence[np.ndarray], *, scale: float | None = None, num_unscaled: int = 0
    ) -> None:
        """Refers to arrays.

        Args:
            arrays: at least one; each of shape (length,).
            scale: factor that is multiplied in whenever elements are read. None keeps the bits;
                0 gives zeros even for NaN and infinity.
            num_unscaled: how many of the first arrays have no part in that. Where some have none,
                segments are read by `copy_to`, `read` and `scaled_once` only.
        """
        self.arrays = list(arrays)
        self.dtype = self.arrays[0].dtype
        self.lengths = [len(array) for array in self.arrays]
        self._starts = [0, *itertools.accumulate(self.lengths)]
        self.length = self._starts[-1]
        self.num_bytes = self.length * self.dtype.itemsize
        self._scale = None if scale is None or scale == 1.0 else np.float64(scale)
        self._num_unscaled = 0 if self._scale is None else num_unscaled

    def chunks(self, num_bytes: int) -> list[range]:
        """Consecutive spans of at most so many bytes that cover everything."""
        step = num_bytes // self.dtype.itemsize
        return [range(i, min(self.length, i + step)) for i in range(0, self.length, step)]

    def segments(self, span: range) -> Iterator[tuple[np.ndarray, int]]:
        """The non-empty slices of the arrays that make up a span, unscaled.

        Yields:
            Each slice, a view, and its offset within the span.
        """
        for _, segment, at in self._numbered_segments(span):
            yield segment, at

    def _numbered_segments(self, span: range) -> Iterator[tuple[int, np.ndarray, int]]:
        """`segments`, each with the position of its array."""
        start, stop = span.start, span.stop
        index = bisect.bisect_right(self._starts, start) - 1
        while start < stop:
            first = self._starts[index]
            end = min(stop, self._starts[index + 1])
            if end > start:
                yield index, self.arrays[index][start - first : end - first], start - span.start
            start = max(start, end)
            index += 1

    def copy_to(self, span: range, target: np.ndarray) -> None:
        """Copies a span, scaled, into an array of its length."""
        for index, segment, at in self._numbered_segments(span):
            part = target[at : at + len(segment)]
            if index < self._num_unscaled:
                part[:] = segment
            else:
                self._copy_scaled(segment, part)

    def scaled_once(self) -> FusionBuffer:
        """The same elements with nothing left to be multiplied in, where some arrays have no scale.

        What has one scale for all arrays is returned as it is.
        """
        if not self._num_unscaled:
            return self
        spans = itertools.pairwise(self._starts)
        return FusionBuffer([self.read(start, stop) for start, stop in spans])

    def copy_from(self, span: range, source: np.ndarray) -> None:
        """Fills a span from an array of its length."""
        for segment, at in self.segments(span):
            segment[:] = source[at : at + len(segment)]

    def read(self, start: int, stop: int) -> np.ndarray:
        """A span as one array, scaled; a view where there is one array and no scale."""
        if len(self.arrays) == 1 and self._scale is None:
            return self.arrays[0][start:stop]
        joined = np.empty(stop - start, self.dtype)
        self.copy_to(range(start, stop), joined)
        return joined

    def write(self, start: int, values: np.ndarray) -> None:
        """Fills the span that begins at `start` and is as long as the values."""
        self.copy_from(range(start, start + len(values)), values)

    def scaled(self, segment: np.ndarray, scratch: np.ndarray) -> np.ndarray:
        """A segment, scaled: itself where there is no scale, else in `scratch` of its length."""
        assert not self._num_unscaled
        if self._scale is None:
            return segment
        self._copy_scaled(segment, scratch)
        return scratch

    def _copy_scaled(self, segment: np.ndarray, target: np.ndarray) -> None:
        if self._scale is None:
            target[:] = segment
        elif self._scale == 0:
            # Not multiplied: NaN * 0 is NaN. A rank that is to contribute nothing may have NaN.
            target[:] = 0
        elif self.dtype.itemsize == 2:
            # In float32, rounded once: NumPy would round the scale to 16 bits first.
            target[:] = segment.astype(np.float32) * np.float32(self._scale)
        else:
            # float32 is multiplied in float32, as TensorFlow's kernel would: the scale is rounded
            # first.
            np.multiply(segment, self.dtype.type(self._scale), out=target)
