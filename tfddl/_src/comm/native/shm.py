"""Memory that other processes can see, and buffers that are kept.

A *memfd* is a file without a name: it is handed to the other workers through their sockets, and is
gone with the last process that has it. (A segment of `multiprocessing.shared_memory` has a name,
which stays when processes are killed, and a tracker that removes those of others.)
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import sys
import threading
from collections.abc import Sequence

import numpy as np

_PAGES = "/proc/self/pagemap"
_PAGE_WORD = np.dtype(np.uint64)

ALIGNMENT = 64
"""Bytes: TensorFlow takes over a NumPy array without a copy only if it begins at such a place."""

_MOST_ROOM = 2
"""How many times as large as wanted a buffer may be."""

_KEPT_ROUNDS = 4
"""How often as many buffers are taken as there are, before one that wasn't among them goes."""


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

    def view(self, offset: int, num_bytes: int) -> PrivateView:
        """An area as this process alone sees it."""
        return PrivateView(self._fd, offset, num_bytes)

    def check_views(self) -> None:
        """Makes sure that views show what is written later: POSIX leaves that to the system.

        Raises:
            OSError: They don't.
        """
        offset, shared = self.allocate(mmap.PAGESIZE)
        view = self.view(offset, shared.nbytes)
        seen = []
        for number in (1, 2):
            shared[0] = number
            seen.append(int(view.array[0]))
        view.array[0] = 3
        seen.append(int(shared[0]))
        view.renew()
        seen.append(int(view.array[0]))
        if seen != [1, 2, 2, 2]:
            raise OSError(errno.ENOTSUP, f"this system's private mappings don't follow: {seen}")

    def release(self, offset: int, num_bytes: int) -> None:
        """Gives an area's memory back to the system; nobody may use it any more."""
        mapped = mmap.mmap(self._fd, num_bytes, mmap.MAP_SHARED, offset=offset)
        with mapped, contextlib.suppress(OSError):  # Some kernels can't; it only saves memory.
            mapped.madvise(mmap.MADV_REMOVE)


class PeerMemory:
    """Another worker's memory."""

    def __init__(self, fd: int) -> None:
        """Takes over a descriptor of it."""
        os.set_inheritable(fd, False)  # One that was received is, other than one that was made.
        self._fd = fd

    def area(self, offset: int, num_bytes: int) -> np.ndarray:
        """An area that the other one has allocated, as uint8."""
        return _mapped(self._fd, offset, num_bytes)

    def view(self, offset: int, num_bytes: int) -> PrivateView:
        """An area that the other one has allocated, as this process alone sees it."""
        return PrivateView(self._fd, offset, num_bytes)


class PrivateView:
    """Shared memory as one process sees it: what is written here, nobody else gets to see.

    The system copies the pages that are written to, and only these. What others write elsewhere is
    seen at once.

    Attributes:
        array: uint8.
    """

    def __init__(self, fd: int, offset: int, num_bytes: int) -> None:
        """Maps an area of a file."""
        access = mmap.PROT_READ | mmap.PROT_WRITE
        self._mapped = mmap.mmap(fd, num_bytes, mmap.MAP_PRIVATE, access, offset=offset)
        self.array = np.frombuffer(self._mapped, np.uint8)

    def renew(self) -> None:
        """Forgets what was written here; nobody may use the array meanwhile."""
        if self._is_written():
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def _is_written(self) -> bool:
        """Whether there are pages of this process' own; true, too, where the system doesn't tell.

        References:
            "pagemap", Linux kernel documentation, admin-guide/mm/pagemap: bit 61 is of pages of a
            file, 62 of those in swap, 63 of those in memory.
        """
        first = self.array.__array_interface__["data"][0] // mmap.PAGESIZE
        count = -(-self.array.nbytes // mmap.PAGESIZE)
        try:
            with open(_PAGES, "rb", buffering=0) as told:
                told.seek(first * _PAGE_WORD.itemsize)
                pages = np.frombuffer(told.read(count * _PAGE_WORD.itemsize), _PAGE_WORD)
        except OSError:
            return True
        if len(pages) < count:
            return True
        kinds = pages >> np.uint64(61)
        return bool(((kinds > 1) & (kinds % 2 == 0)).any())


def _mapped(fd: int, offset: int, num_bytes: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(fd, num_bytes, mmap.MAP_SHARED, offset=offset), np.uint8)


def aligned_size(dtype: np.dtype, lengths: Sequence[int]) -> int:
    """Bytes that `divided` needs."""
    return sum(_aligned(length * dtype.itemsize) for length in lengths)


def split_aligned(memory: np.ndarray, dtype: np.dtype, lengths: Sequence[int]) -> list[np.ndarray]:
    """Arrays of these lengths in memory that begins at an aligned place, one behind the other."""
    arrays = []
    start = 0
    for length in lengths:
        num_bytes = length * dtype.itemsize
        arrays.append(memory[start : start + num_bytes].view(dtype))
        start += _aligned(num_bytes)
    return arrays


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


class BufferPool:
    """Arrays for results, kept from one step to the next: fresh memory costs more than the sums.

    A buffer is taken again once nobody else refers to it, also for a bit less. One that nobody has
    wanted for a while goes, so that lengths that differ in each step don't pile up.
    """

    def __init__(self, *, smallest: int = 2**16) -> None:
        """Begins without any.

        Args:
            smallest: bytes; what is smaller is made anew each time.
        """
        self._smallest = smallest
        self._kept: list[_Kept] = []
        self._taken = 0
        self._lock = threading.Lock()

    def take(self, dtype: np.dtype, lengths: Sequence[int]) -> list[np.ndarray]:
        """Flat arrays of these lengths, one behind the other; what is in them is arbitrary."""
        base = self._base(aligned_size(dtype, lengths) + ALIGNMENT)
        return split_aligned(base[-base.ctypes.data % ALIGNMENT :], dtype, lengths)

    def _base(self, num_bytes: int) -> np.ndarray:
        if num_bytes < self._smallest:
            return np.empty(num_bytes, np.uint8)
        with self._lock:
            self._taken += 1
            free = [kept for kept in self._kept if kept.is_free]
            fitting = [k for k in free if num_bytes <= k.array.nbytes <= _MOST_ROOM * num_bytes]
            if fitting:
                best = min(fitting, key=lambda kept: kept.array.nbytes)
            else:
                best = _Kept(np.empty(_rounded_up(num_bytes), np.uint8))
                self._kept.append(best)
            best.taken = self._taken
            # A step that takes each of them once finds them all again in the next.
            oldest = self._taken - _KEPT_ROUNDS * len(self._kept)
            for kept in free:
                if kept.taken < oldest:
                    self._kept.remove(kept)
            return best.array


class _Kept:
    """A buffer, and when it was taken last."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.taken = 0

    @property
    def is_free(self) -> bool:
        """Whether nobody else refers to it."""
        # This object, and the argument of getrefcount itself.
        return sys.getrefcount(self.array) == 2


def _rounded_up(num_bytes: int) -> int:
    """An eighth more at most, so that what differs a little fits; untouched, it costs nothing."""
    step = 2 ** max(0, num_bytes.bit_length() - 4)
    return -(-num_bytes // step) * step
