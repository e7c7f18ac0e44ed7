"""Rows of an array that is kept elsewhere, in blocks; a block is fetched when it is needed."""

from collections.abc import Callable, Sequence

import numpy as np


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

    def __getitem__(self, indices: np.ndarray | slice) -> np.ndarray:
        """The rows of some numbers, or of a slice, in their order: a copy."""
        if isinstance(indices, slice):
            indices = np.arange(*indices.indices(len(self)))
        rows = np.empty((len(indices), *self.shape[1:]), self.dtype)
        # Of equal ends, which blocks without rows have, "right" finds the first one after them.
        blocks = np.searchsorted(self._ends, indices, side="right")
        for block in np.unique(blocks):
            mine = blocks == block
            rows[mine] = self._fetch(int(block))[indices[mine] - self._starts[block]]
        return rows
