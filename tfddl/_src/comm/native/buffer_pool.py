"""Arrays that are used again from step to step, at addresses that TensorFlow can take over."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

import numpy as np

ALIGNMENT = 64
"""Bytes. TensorFlow takes over a NumPy array without a copy only if its address is a multiple of
it (Eigen's EIGEN_MAX_ALIGN_BYTES, which is 64 at most)."""

MAX_SLACK = 2
"""How many times as large as needed memory may be that is used again."""

KEPT_ROUNDS = 4
"""Memory that wasn't used during the last so many times as many requests as there are pieces of
memory is dropped. A step that uses each piece once finds all of them again in the next step."""


class BufferPool:
    """Memory for results, kept from one step to the next. Thread-safe.

    Fresh memory costs more time than the sums that are written to it: the kernel has to map and
    clear each page. A buffer is free again when nobody else refers to it.
    """

    def __init__(self, *, min_bytes: int = 2**16) -> None:
        """Has no buffers yet.

        Args:
            min_bytes: smaller buffers aren't kept.
        """
        self._min_bytes = min_bytes
        self._buffers: list[_Buffer] = []
        self._num_taken = 0
        self._lock = threading.Lock()

    def take(self, dtype: np.dtype, lengths: Sequence[int]) -> list[np.ndarray]:
        """One-dimensional arrays of these lengths in one buffer; their contents are arbitrary."""
        # np.empty aligns to fewer bytes: up to the first multiple it is cut off.
        memory = self._take_bytes(aligned_size(dtype, lengths) + ALIGNMENT)
        return split_aligned(memory[-memory.ctypes.data % ALIGNMENT :], dtype, lengths)

    def _take_bytes(self, num_bytes: int) -> np.ndarray:
        if num_bytes < self._min_bytes:
            return np.empty(num_bytes, np.uint8)
        with self._lock:
            self._num_taken += 1
            free = [buffer for buffer in self._buffers if buffer.is_free]
            fitting = [b for b in free if num_bytes <= b.array.nbytes <= MAX_SLACK * num_bytes]
            if fitting:
                best = min(fitting, key=lambda buffer: buffer.array.nbytes)
            else:
                best = _Buffer(np.empty(_round_up(num_bytes), np.uint8))
                self._buffers.append(best)
            best.taken_at = self._num_taken
            oldest = self._num_taken - KEPT_ROUNDS * len(self._buffers)
            for buffer in free:
                if buffer.taken_at < oldest:
                    self._buffers.remove(buffer)
            return best.array


class _Buffer:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.taken_at = 0

    @property
    def is_free(self) -> bool:
        """Whether nobody else refers to the array; slices and TensorFlow's tensors do."""
        # This object has one reference, the argument of getrefcount is another one.
        return sys.getrefcount(self.array) == 2


def aligned_size(dtype: np.dtype, lengths: Sequence[int]) -> int:
    """Bytes that `split_aligned` needs."""
    return sum(_align(length * dtype.itemsize) for length in lengths)


def split_aligned(memory: np.ndarray, dtype: np.dtype, lengths: Sequence[int]) -> list[np.ndarray]:
    """Consecutive arrays of these lengths, each at a multiple of `ALIGNMENT`.

    Args:
        memory: uint8, at a multiple of `ALIGNMENT`.
        dtype: of the arrays.
        lengths: number of elements of each.
    """
    arrays = []
    start = 0
    for length in lengths:
        num_bytes = length * dtype.itemsize
        arrays.append(memory[start : start + num_bytes].view(dtype))
        start += _align(num_bytes)
    return arrays


def _align(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _round_up(num_bytes: int) -> int:
    """At most an eighth more, so that sizes that differ a little fit; unused pages cost nothing."""
    step = 2 ** max(0, num_bytes.bit_length() - 4)
    return -(-num_bytes // step) * step
