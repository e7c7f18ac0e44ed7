"""What outlives a worker: a store in memory that the launcher owns.

The launcher makes one per host (a `memfd`, nameless, gone with the last process that has it), and
gives its number to the first worker there, in the environment. A worker may be killed while it
writes: so there are two slots, and what is read is the newest that is whole.

Usage:
    store = find(os.environ)
    if store is not None:
        store.write(b"...")
"""

import dataclasses
import hashlib
import os
import struct
from collections.abc import Mapping

VARIABLE = "TFDDL_STORE_FD"

_NAME = "tfddl-store"

# number, offset and length of the data, and a digest of the data and of these three.
_SLOT = struct.Struct("<QQQ32s")
_SLOTS = 2
_HEADER_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class _Record:
    """What a slot says of the data it has."""

    number: int
    offset: int
    length: int
    digest: bytes

    def of(self, data: bytes | memoryview) -> bytes:
        """What the digest has to be for this data."""
        digest = hashlib.blake2b(struct.pack("<QQQ", self.number, self.offset, self.length))
        digest.update(data)
        return digest.digest()[:32]


class CommitStore:
    """Keeps the newest of what it is given."""

    def __init__(self, fd: int) -> None:
        """Opens a store.

        Args:
            fd: A file descriptor that can be read, written, and made longer.
        """
        self._fd = fd
        self.has_written = False
        """Whether what it has is of this process, not of an earlier start."""

    @property
    def newest(self) -> int:
        """The number of the newest that is whole, counted from 0; -1 where there is none."""
        found = self._find()
        return -1 if found is None else found[0].number - 1

    def read(self) -> bytes:
        """The newest that is whole.

        Raises:
            LookupError: There is none.
        """
        found = self._find()
        if found is None:
            raise LookupError("Nothing has been committed.")
        return found[1]

    def write(self, data: bytes) -> None:
        """Keeps this instead of what was kept before.

        Raises:
            OSError: There is no memory left; what was kept before still is.
        """
        found = self._find()
        last = _Record(0, _HEADER_BYTES, 0, b"") if found is None else found[0]
        offset = _HEADER_BYTES
        if last.offset < offset + len(data):  # Not over what is still needed.
            offset = max(offset, last.offset + last.length)
        record = _Record(last.number + 1, offset, len(data), b"")
        write_all(self._fd, data, offset)
        digest = record.of(data)
        slot = _SLOT.pack(record.number, record.offset, record.length, digest)
        write_all(self._fd, slot, record.number % _SLOTS * _SLOT.size)
        self.has_written = True
        os.ftruncate(self._fd, max(last.offset + last.length, offset + len(data)))

    def _find(self) -> tuple[_Record, bytes] | None:
        header = os.pread(self._fd, _SLOTS * _SLOT.size, 0).ljust(_SLOTS * _SLOT.size, b"\0")
        records = [_Record(*fields) for fields in _SLOT.iter_unpack(header)]
        for record in sorted(records, key=lambda record: -record.number):
            if record.number == 0 or record.offset + record.length > os.fstat(self._fd).st_size:
                continue
            data = self._read_all(record.length, record.offset)
            if record.of(data) == record.digest:
                return record, data
        return None

    def _read_all(self, length: int, offset: int) -> bytes:
        parts = []
        while length > 0:
            part = os.pread(self._fd, length, offset)
            if not part:
                break
            parts.append(part)
            length, offset = length - len(part), offset + len(part)
        return b"".join(parts)


def create_store() -> int:
    """An empty store: its descriptor, for whoever is to keep it.

    Raises:
        OSError: Descriptors or memory are used up.
    """
    return os.memfd_create(_NAME)


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Writes all of it to a file, at this place.

    Raises:
        OSError: There is no memory left.
    """
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def find_store(environ: Mapping[str, str]) -> CommitStore | None:
    """The store that the launcher has given this process.

    Args:
        environ: The environment.

    Returns:
        None where there is none; also in a process that has inherited the environment of a worker,
        but not its store.
    """
    try:
        link = os.readlink(f"/proc/self/fd/{int(environ[VARIABLE])}")
    except (KeyError, ValueError, OSError):
        return None
    return CommitStore(int(environ[VARIABLE])) if link.startswith(f"/memfd:{_NAME}") else None
