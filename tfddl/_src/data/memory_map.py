"""Rows of a memory-mapped file, read into buffers without touching the mapping.

A read through the mapping leaves each page that was touched in the resident memory of the process
(RSS, which containers' limits count), up to the whole file. What `preadv(2)` reads, or `pread(2)`
where that is missing, stays in the page cache, which the kernel reclaims.
"""

import math
import mmap
import os
import weakref

import numpy as np

from tfddl._src.comm.native.buffer_pool import BufferPool
from tfddl._src.sharding import Indices
from tfddl.errors import DataError

# IOV_MAX: preadv(2) fills up to 1024 buffers on Linux, and so on macOS.
_MAX_BUFFERS = 1024


class MappedRows:
    """The rows of an array that is mapped from a file."""

    def __init__(self, array: np.ndarray, name: str, path: str, position: int) -> None:
        """Opens the file, and compares its first row with the array's.

        Args:
            array: A view of the mapping whose rows are contiguous.
            name: What messages call the array.
            path: The mapped file.
            position: Where row 0 is in the file, in bytes.

        Raises:
            DataError: The file is gone, shorter than the array, or not the one that was mapped.
        """
        self.shape = array.shape
        self.dtype = array.dtype
        self._name = name
        self._path = path
        self._position = position
        self._stride = array.strides[0]
        self._row_bytes = array[:1].nbytes
        # TensorFlow takes over what is at such an address, instead of copying it.
        self._pool = BufferPool()
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(
                f"{name} is mapped from {path}, which can't be opened any more: {error.strerror}. "
                "HINT: leave the file where it is until training has ended."
            ) from error
        weakref.finalize(self, os.close, self._file)
        self._check(array)

    @classmethod
    def of(cls, array: np.ndarray, name: str) -> "MappedRows | None":
        """The rows of an array; None where they have to be read through the array itself.

        That is where it isn't mapped from a file; where the mapping may differ from the file
        (``mmap_mode="c"``); and where its rows aren't contiguous in the file, such as those of
        ``x[:, ::2]`` or of an array in Fortran order.
        """
        memmap, mapping = _mapping(array)
        if memmap is None or mapping is None or memmap.filename is None or memmap.mode == "c":
            return None
        if not len(array) or not array[:1].nbytes or not array[:1].flags.c_contiguous:
            return None
        # A view such as x[100:] keeps the offset of the map that it was made from, so the position
        # comes from addresses. np.memmap maps from a multiple of ALLOCATIONGRANULARITY on.
        start = np.frombuffer(mapping, np.uint8).__array_interface__["data"][0]
        into_mapping = array.__array_interface__["data"][0] - start
        position = memmap.offset - memmap.offset % mmap.ALLOCATIONGRANULARITY + into_mapping
        return cls(array, name, os.fspath(memmap.filename), position)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Indices) -> np.ndarray:
        """The rows of some indices, in their order."""
        shape = (len(indices), *self.shape[1:])
        [rows] = self._pool.take(self.dtype, [math.prod(shape)])
        rows = rows.reshape(shape)
        buffer = rows.reshape(-1).view(np.uint8).data
        size = self._row_bytes
        positions = self._position + indices * self._stride
        # In the order of the file, whatever that of the epoch: read-ahead of the kernel, and fewer
        # calls.
        order = np.argsort(positions, kind="stable")
        positions = positions[order]
        # One read per run of rows that follow each other in the file. Lists: in shuffled order most
        # runs are of one row, for which indexing arrays would take longer than the read.
        cuts = (np.flatnonzero(np.diff(positions) != size) + 1).tolist()
        places, starts = order.tolist(), positions.tolist()
        for start, stop in zip([0, *cuts], [*cuts, len(places)], strict=True):
            for first in range(start, stop, _MAX_BUFFERS):
                part = places[first : min(stop, first + _MAX_BUFFERS)]
                buffers = [buffer[i * size : (i + 1) * size] for i in part]
                self._fill(buffers, starts[first])
        return rows

    def _fill(self, buffers: list[memoryview], position: int) -> None:
        """Reads consecutive bytes of the file into the buffers, one after the other."""
        count = _read(self._file, buffers, position)
        while count < (expected := sum(map(len, buffers))):
            if count == 0:
                raise DataError(
                    f"{self._name} is mapped from {self._path}, which now ends before byte "
                    f"{position + expected}: it was cut short while it was read. "
                    "HINT: leave the file as it is until training has ended."
                )
            # A read may return less than it was asked for: the rest is read again.
            position += count
            while count >= len(buffers[0]):
                count -= len(buffers.pop(0))
            buffers[0] = buffers[0][count:]
            count = _read(self._file, buffers, position)

    def _check(self, array: np.ndarray) -> None:
        last = self._position + (len(self) - 1) * self._stride
        needed = max(self._position, last) + self._row_bytes
        length = os.fstat(self._file).st_size
        if length < needed:
            raise DataError(
                f"{self._name} is mapped from {self._path}, which has {length} bytes; expected at "
                f"least {needed}: it was cut short. HINT: write it anew."
            )
        if self[np.zeros(1, np.int64)].tobytes() != array[:1].tobytes():
            raise DataError(
                f"{self._name} is mapped from {self._path}, which was replaced by another file "
                "since. HINT: map it anew with np.load."
            )


def _mapping(array: np.ndarray) -> tuple[np.memmap | None, mmap.mmap | None]:
    """The memory map that an array is a view of, and the mapping under it."""
    base: object = array
    memmap = None
    while isinstance(base, np.ndarray):
        memmap = base if isinstance(base, np.memmap) else memmap
        base = base.base
    return memmap, base if isinstance(base, mmap.mmap) else None


def _read(file: int, buffers: list[memoryview], position: int) -> int:
    """The number of bytes read into the buffers, one after the other; 0 at the end of the file."""
    if hasattr(os, "preadv"):
        return os.preadv(file, buffers, position)
    data = os.pread(file, len(buffers[0]), position)  # macOS before 11 has only this.
    buffers[0][: len(data)] = data
    return len(data)
