"""Rows of an array that is kept elsewhere, in blocks; a block is fetched when it is needed."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def row_numbers(key: Any, num_rows: int, name: str) -> np.ndarray:
    """The numbers of the rows that an index of an array's first dimension means.

    Args:
        key: An integer, a slice, or an array of integers; negative ones count from the end.
        num_rows: Of the array.
        name: What messages call it.

    Returns:
        int64 from 0 on, of the shape of the key; of a slice a row.

    Raises:
        TypeError: It is of another type, such as a mask of booleans.
        IndexError: There is no such row.
    """
    if isinstance(key, slice):
        return np.arange(*key.indices(num_rows), dtype=np.int64)
    numbers = np.asarray(key)
    if not numbers.size and numbers.ndim == 1:  # NumPy makes floats of an empty list.
        numbers = numbers.astype(np.int64)
    if numbers.dtype.kind not in "iu":
        raise TypeError(f"rows are indexed by integers and slices, not by {key!r}")
    if numbers.size and not -num_rows <= numbers.min() <= numbers.max() < num_rows:
        raise IndexError(f"{key!r} isn't within the {num_rows} rows of {name}")
    return np.where(numbers < 0, numbers + num_rows, numbers).astype(np.int64, copy=False)


class BlockRows:
    """The rows of an array, by their numbers.

    Attributes:
        shape: of the whole array.
        dtype: of its elements.
    """

    def __init__(
        self,
        fetch: Callable[[int], np.ndarray],
        counts: Sequence[int],
        row_shape: tuple[int, ...],
        dtype: np.dtype,
    ) -> None:
        """Fetches nothing yet.

        Args:
            fetch: returns a block by its number, of shape (its count, *row_shape); called by
                several threads.
            counts: the rows of each block, 0 or more.
            row_shape: the shape of a row.
            dtype: what all blocks have.
        """
        self._fetch = fetch
        self._ends = np.cumsum(np.asarray(counts, np.int64))
        self._starts = self._ends - counts
        self.shape = (int(self._ends[-1]) if len(counts) else 0, *row_shape)
        self.dtype = dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        """Rows, as an index of an array's first dimension; see `row_numbers`: a copy."""
        numbers = row_numbers(key, len(self), "an array in blocks")
        indices = numbers.reshape(-1)
        rows = np.empty((len(indices), *self.shape[1:]), self.dtype)
        # Of equal ends, which blocks without rows have, "right" finds the first one after them.
        blocks = np.searchsorted(self._ends, indices, side="right")
        for block in np.unique(blocks):
            mine = blocks == block
            rows[mine] = self._fetch(int(block))[indices[mine] - self._starts[block]]
        return rows.reshape(*numbers.shape, *self.shape[1:])
