"""Shared memory without a name, and private views of it.

A *memfd* (memfd_create(2)) is a file in memory without a name. All workers of a host share one: its
descriptor is sent from worker to worker through their Unix sockets, and the memory is freed with
the last process that has it. Each worker grows a *window* of its own in it, at an offset that
follows from its rank: so nobody has to be told where the others' windows are, and each needs one
descriptor, however many workers there are. Only what is allocated takes memory: the file is sparse.
(A segment of `multiprocessing.shared_memory` has a name, which stays behind where processes are
killed; before Python 3.13 a tracker process removes segments that others still use.)
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource
import threading

import numpy as np

from tfddl.errors import CommunicationError

# Offsets, not memory. A file may have 2**63 bytes: 2**23 windows.
_WINDOW_BYTES = 2**40

_PAGEMAP = "/proc/self/pagemap"
_PAGEMAP_ENTRY = np.dtype(np.uint64)


class MemoryFile:
    """The file that all workers of a host share.

    Attributes:
        window_bytes: how large each worker's window may become.
    """

    def __init__(self, num_windows: int, fd: int | None = None) -> None:
        """Takes over a descriptor that was received; makes the file where there is none.

        Args:
            num_windows: number of workers.
            fd: the descriptor.

        Raises:
            OSError: the system has no memfd, or no descriptor is left.
        """
        # The name only shows in /proc/PID/fd and maps; any number of memfds may have it
        # (memfd_create(2)).
        self._fd = os.memfd_create("tfddl", os.MFD_CLOEXEC) if fd is None else fd
        # Received descriptors don't have close-on-exec (Python passes no MSG_CMSG_CLOEXEC).
        os.set_inheritable(self._fd, False)
        if fd is None:
            # The size that windows need, once and for all: only while a file grows does the limit
            # on sizes of files apply (RLIMIT_FSIZE, `ulimit -f`).
            limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
            most = _WINDOW_BYTES
            if limit != resource.RLIM_INFINITY:
                most = min(most, limit // num_windows)
            granularity = mmap.ALLOCATIONGRANULARITY
            os.ftruncate(self._fd, most // granularity * granularity * num_windows)
        self.window_bytes = os.fstat(self._fd).st_size // num_windows

    def fileno(self) -> int:
        """The descriptor.

        Raises:
            OSError: it is closed.
        """
        if self._fd < 0:  # With -1, mmap(2) would give memory that nobody else sees.
            raise OSError(errno.EBADF, "the network is closed")
        return self._fd

    def map_shared(self, offset: int, num_bytes: int) -> np.ndarray:
        """An area that any worker has allocated, as uint8; writes are seen by all.

        Raises:
            CommunicationError: no descriptor or address is left.
        """
        try:
            return _map_shared(self.fileno(), offset, num_bytes)
        except OSError as error:
            raise CommunicationError(
                f"can't map {num_bytes} bytes of another worker's memory: {error.strerror}. HINT: "
                "allow more open files (ulimit -n) or mappings (vm.max_map_count); each process "
                "set maps memory of its own"
            ) from error

    def private_view(self, offset: int, num_bytes: int) -> PrivateView:
        """A private view of an area that any worker has allocated."""
        return PrivateView(self.fileno(), offset, num_bytes)

    def close(self) -> None:
        """Closes the descriptor: nothing more can be mapped. What is mapped stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class SharedMemory:
    """A window of this worker that the others map, too. It grows, and never moves or shrinks."""

    def __init__(self, file: MemoryFile | None = None, rank: int = 0) -> None:
        """Has an empty window.

        Args:
            file: shared by all workers; by default one of its own.
            rank: this worker's, which no other one has.

        Raises:
            OSError: the system has no memfd, or no descriptor is left.
        """
        self.file = MemoryFile(1) if file is None else file
        self._begin = rank * self.file.window_bytes
        self._size = 0
        self._lock = threading.Lock()

    def allocate(self, num_bytes: int) -> tuple[int, np.ndarray]:
        """Adds an area.

        Args:
            num_bytes: at least 1; rounded up to whole pages.

        Returns:
            Its offset in the file, in bytes, and the area: uint8, zeros.

        Raises:
            OSError: memory is short.
        """
        num_bytes = -(-num_bytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        with self._lock:
            if self._size + num_bytes > self.file.window_bytes:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            offset = self._begin + self._size
            # Not ftruncate, which reserves nothing: where memory is short, the first write to a
            # page would then end the process by SIGBUS. This fails with ENOSPC instead.
            os.posix_fallocate(self.file.fileno(), offset, num_bytes)
            self._size += num_bytes
        return offset, _map_shared(self.file.fileno(), offset, num_bytes)

    def check_private_views(self) -> None:
        """Makes sure that private views show what is written to the memory later.

        mmap(2) leaves that unspecified for MAP_PRIVATE. Linux does so for pages of which the
        process has no copy of its own.

        Raises:
            OSError: they don't.
        """
        offset, shared = self.allocate(mmap.PAGESIZE)
        view = self.file.private_view(offset, shared.nbytes)
        seen = []
        for number in (1, 2):
            shared[0] = number
            seen.append(int(view.array[0]))
        view.array[0] = 3
        seen.append(int(shared[0]))
        view.discard_writes()
        seen.append(int(view.array[0]))
        if seen != [1, 2, 2, 2]:
            raise OSError(errno.ENOTSUP, f"this system's private mappings don't follow: {seen}")

    def release(self, offset: int, num_bytes: int) -> None:
        """Gives an area's memory back to the system; nobody may use the area any more."""
        # Not ftruncate: areas behind this one are in use, and to touch a mapping beyond the end of
        # its file ends the process by SIGBUS (mmap(2)).
        mapped = mmap.mmap(self.file.fileno(), num_bytes, mmap.MAP_SHARED, offset=offset)
        # MADV_REMOVE punches a hole into the file. Kernels without it just keep the memory.
        with mapped, contextlib.suppress(OSError):
            mapped.madvise(mmap.MADV_REMOVE)


class PrivateView:
    """A copy-on-write view of shared memory: it shows others' writes; nobody sees its own.

    The kernel copies a page when this process first writes to it, and only that page. Pages
    without a copy show what others write, at once; copied pages don't until `discard_writes`.

    Attributes:
        array: the view, uint8.
    """

    def __init__(self, fd: int, offset: int, num_bytes: int) -> None:
        # Pages are copied only when they are written, but where vm.overcommit_memory is 2, the
        # kernel counts the whole view against its commit limit (kernel documentation,
        # overcommit-accounting).
        access = mmap.PROT_READ | mmap.PROT_WRITE
        self._mapped = mmap.mmap(fd, num_bytes, mmap.MAP_PRIVATE, access, offset=offset)
        self.array = np.frombuffer(self._mapped, np.uint8)

    def discard_writes(self) -> None:
        """Drops this process' copies of pages; nobody may use the array meanwhile."""
        # MADV_DONTNEED drops the copies, so that what is read next comes from the file again. It
        # unmaps all pages, and each costs a page fault when it is read next: so it is only called
        # where there is something to drop.
        if self._has_copies():
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def _has_copies(self) -> bool:
        """Whether this process has copies of pages; true, too, where the system doesn't say.

        References:
            Linux kernel documentation, admin-guide/mm/pagemap: one 64-bit entry per page. Bit 61:
            the page is of a file (or shared); 62: it is swapped out; 63: it is present.
        """
        first = self.array.__array_interface__["data"][0] // mmap.PAGESIZE
        count = -(-self.array.nbytes // mmap.PAGESIZE)
        try:
            with open(_PAGEMAP, "rb", buffering=0) as pagemap:
                pagemap.seek(first * _PAGEMAP_ENTRY.itemsize)
                entries = np.frombuffer(
                    pagemap.read(count * _PAGEMAP_ENTRY.itemsize), _PAGEMAP_ENTRY
                )
        except OSError:
            return True
        if len(entries) < count:
            return True
        # Without CAP_SYS_ADMIN the kernel (since Linux 4.2) zeroes the page frame numbers in the
        # lower bits, but not these flags.
        flags = entries >> np.uint64(61)
        # Present or swapped out, and not of the file: a copy.
        return bool(((flags > 1) & (flags % 2 == 0)).any())


def _map_shared(fd: int, offset: int, num_bytes: int) -> np.ndarray:
    # The array, and each slice of it, keeps the mapping as its base: unmapped with the last of
    # them.
    return np.frombuffer(mmap.mmap(fd, num_bytes, mmap.MAP_SHARED, offset=offset), np.uint8)
