"""Several arrays seen as one."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence

import numpy as np


class FusionBuffer:
    """Flat arrays of one dtype, one behind the other, without joining them.

    Attributes:
        arrays: as they were given.
        dtype: theirs.
        lengths: elements of each.
        length: elements of all.
        num_bytes: of all.
    """

    def __init__(self, arrays: Sequence[np.ndarray], *, scale: float | None = None) -> None:
        """Looks at arrays.

        Args:
            arrays: at least one; each with one dimension.
            scale: what is multiplied in whenever they are copied. None leaves the bits as they are;
                0 makes zeros even of what isn't a number.
        """
        self.arrays = list(arrays)
        self.dtype = self.arrays[0].dtype
        self.lengths = [len(array) for array in self.arrays]
        self._starts = [0, *itertools.accumulate(self.lengths)]
        self.length = self._starts[-1]
        self.num_bytes = self.length * self.dtype.itemsize
        self._scale = None if scale is None or scale == 1.0 else np.float64(scale)

    def chunks(self, num_bytes: int) -> list[range]:
        """Ranges of at most so many bytes that cover everything."""
        step = num_bytes // self.dtype.itemsize
        return [range(i, min(self.length, i + step)) for i in range(0, self.length, step)]

    def pieces(self, wanted: range) -> Iterator[tuple[np.ndarray, int]]:
        """The parts of the arrays in a range: each, and where it begins within the range."""
        start, stop = wanted.start, wanted.stop
        index = bisect.bisect_right(self._starts, start) - 1
        while start < stop:
            first = self._starts[index]
            end = min(stop, self._starts[index + 1])
            if end > start:
                yield self.arrays[index][start - first : end - first], start - wanted.start
            start = max(start, end)
            index += 1

    def copy_to(self, wanted: range, target: np.ndarray) -> None:
        """Copies a range, scaled, into an array of its length."""
        for piece, at in self.pieces(wanted):
            self._copy_scaled(piece, target[at : at + len(piece)])

    def copy_from(self, wanted: range, source: np.ndarray) -> None:
        """Fills a range from an array of its length."""
        for piece, at in self.pieces(wanted):
            piece[:] = source[at : at + len(piece)]

    def take(self, start: int, stop: int) -> np.ndarray:
        """A range as one array, scaled; a part of the array itself, where that will do."""
        if len(self.arrays) == 1 and self._scale is None:
            return self.arrays[0][start:stop]
        joined = np.empty(stop - start, self.dtype)
        self.copy_to(range(start, stop), joined)
        return joined

    def put(self, start: int, values: np.ndarray) -> None:
        """Fills from a place on."""
        self.copy_from(range(start, start + len(values)), values)

    def scaled(self, piece: np.ndarray, room: np.ndarray) -> np.ndarray:
        """A part of an array, scaled: itself, where that will do, or in an array of its length."""
        if self._scale is None:
            return piece
        self._copy_scaled(piece, room)
        return room

    def _copy_scaled(self, piece: np.ndarray, target: np.ndarray) -> None:
        if self._scale is None:
            target[:] = piece
        elif self._scale == 0:
            target[:] = 0
        elif self.dtype.itemsize == 2:
            target[:] = piece.astype(np.float32) * np.float32(self._scale)
        else:
            np.multiply(piece, self.dtype.type(self._scale), out=target)
