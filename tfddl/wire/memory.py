"""Memory that other processes can see, and buffers that are kept.

A *memfd* is a file without a name: it is handed to the other workers through their sockets, and is
gone with the last process that has it. (A segment of `multiprocessing.shared_memory` has a name,
which stays when processes are killed, and a tracker that removes those of others.)
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
from collections.abc import Sequence

import numpy as np

ALIGNMENT = 64
"""Bytes: TensorFlow takes over a NumPy array without a copy only if it begins at such a place."""

_KEPT_FREE = 2


class SharedMemory:
    """This worker's memory, which the others read."""

    def __init__(self) -> None:
        """Makes it, empty.

        Raises:
            OSError: The system has none.
        """
        self._fd = os.memfd_create("tfddl", os.MFD_CLOEXEC)
        self._size = 0
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """The descriptor to hand out."""
        return self._fd

    def allocate(self, num_bytes: int) -> tuple[int, np.ndarray]:
        """Adds an area.

        Args:
            num_bytes: how large, at least 1.

        Returns:
            Its offset, and the area as uint8, zeros.
        """
        num_bytes = -(-num_bytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        with self._lock:
            offset = self._size
            # Not ftruncate: where memory is short, it has to fail here, not by a SIGBUS later.
            os.posix_fallocate(self._fd, offset, num_bytes)
            self._size += num_bytes
        return offset, _mapped(self._fd, offset, num_bytes)


class PeerMemory:
    """Another worker's memory."""

    def __init__(self, fd: int) -> None:
        """Takes over a descriptor of it."""
        self._fd = fd

    def area(self, offset: int, num_bytes: int) -> np.ndarray:
        """An area that the other one has allocated, as uint8."""
        return _mapped(self._fd, offset, num_bytes)


def _mapped(fd: int, offset: int, num_bytes: int) -> np.ndarray:
    mapped = mmap.mmap(fd, num_bytes, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=offset)
    return np.frombuffer(mapped, np.uint8)


class Buffers:
    """Arrays for results, kept from one step to the next: fresh memory costs more than the sums.

    A buffer is taken again once nobody else refers to it.
    """

    def __init__(self, *, smallest: int = 2**16) -> None:
        """Begins without any.

        Args:
            smallest: bytes; what is smaller is made anew each time.
        """
        self._smallest = smallest
        self._kept: dict[int, list[np.ndarray]] = {}
        self._lock = threading.Lock()

    def take(self, dtype: np.dtype, lengths: Sequence[int]) -> list[np.ndarray]:
        """Flat arrays of these lengths, one behind the other; what is in them is arbitrary."""
        starts = []
        end = 0
        for length in lengths:
            starts.append(end)
            end += -(-length * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        base = self._base(end + ALIGNMENT)
        shift = -base.ctypes.data % ALIGNMENT
        return [
            base[shift + start : shift + start + length * dtype.itemsize].view(dtype)
            for start, length in zip(starts, lengths, strict=True)
        ]

    def _base(self, num_bytes: int) -> np.ndarray:
        if num_bytes < self._smallest:
            return np.empty(num_bytes, np.uint8)
        with self._lock:
            kept = self._kept.setdefault(num_bytes, [])
            free = [index for index in range(len(kept)) if _is_free(kept, index)]
            for index in reversed(free[_KEPT_FREE:]):
                del kept[index]
            if free:
                return kept[free[0]]
            kept.append(np.empty(num_bytes, np.uint8))
            return kept[-1]


def _is_free(kept: list[np.ndarray], index: int) -> bool:
    # The list, and the argument of getrefcount itself.
    return sys.getrefcount(kept[index]) == 2
