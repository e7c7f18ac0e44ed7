"""State that outlives a worker: a store in memory that the launcher owns.

The launcher creates one per host (a memfd: anonymous, freed with the last process that has it
open) and passes its descriptor to the first worker there. A worker may be killed while it writes.
So there are two slots: data are written where the newest commit isn't, and a slot counts only if
the digest of its header and data is right.

References:
    memfd_create(2), https://man7.org/linux/man-pages/man2/memfd_create.2.html.

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
ELASTIC = "TFDDL_ELASTIC"
"""Set for workers of a job whose hosts may change: at a commit they may be asked to end."""

_NAME = "tfddl-store"

# Number of the commit (0: none), offset and length of its data, digest of all these and the data.
_SLOT = struct.Struct("<QQQ32s")
_SLOTS = 2
# More than the slots need: the data begin at a page.
_HEADER_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class _Record:
    """A slot: where the data of a commit are."""

    number: int
    offset: int
    length: int
    digest: bytes

    def digest_of(self, data: bytes | memoryview) -> bytes:
        """The digest of this record with some data."""
        digest = hashlib.blake2b(struct.pack("<QQQ", self.number, self.offset, self.length))
        digest.update(data)
        return digest.digest()[:32]


class CommitStore:
    """Keeps the newest commit."""

    def __init__(self, fd: int) -> None:
        """Uses an open store.

        Args:
            fd: A file descriptor that can be read, written and truncated; of `create_store`.
        """
        self._fd = fd
        self.has_written = False
        """Whether this process has written a commit, rather than an earlier start."""

    @property
    def newest(self) -> int:
        """The number of the newest whole commit, from 0; -1 where there is none."""
        found = self._find()
        return -1 if found is None else found[0].number - 1

    def read(self) -> bytes:
        """The newest whole commit.

        Raises:
            LookupError: There is none.
        """
        found = self._find()
        if found is None:
            raise LookupError("Nothing has been committed.")
        return found[1]

    def write(self, data: bytes) -> None:
        """Replaces the commit.

        Raises:
            OSError: There is no memory left; the commit before is unchanged.
        """
        found = self._find()
        last = _Record(0, _HEADER_BYTES, 0, b"") if found is None else found[0]
        offset = _HEADER_BYTES
        if last.offset < offset + len(data):  # It would overwrite the newest commit.
            offset = max(offset, last.offset + last.length)
        record = _Record(last.number + 1, offset, len(data), b"")
        # The data first, then its slot: whoever is killed in between leaves the other slot, which
        # still is that of the newest whole commit.
        write_all(self._fd, data, offset)
        digest = record.digest_of(data)
        slot = _SLOT.pack(record.number, record.offset, record.length, digest)
        write_all(self._fd, slot, record.number % _SLOTS * _SLOT.size)
        self.has_written = True
        # Gives back what only older commits had; the one before stays readable.
        os.ftruncate(self._fd, max(last.offset + last.length, offset + len(data)))

    def _find(self) -> tuple[_Record, bytes] | None:
        header = os.pread(self._fd, _SLOTS * _SLOT.size, 0).ljust(_SLOTS * _SLOT.size, b"\0")
        records = [_Record(*fields) for fields in _SLOT.iter_unpack(header)]
        for record in sorted(records, key=lambda record: -record.number):
            if record.number == 0 or record.offset + record.length > os.fstat(self._fd).st_size:
                continue
            data = self._read_all(record.length, record.offset)
            if record.digest_of(data) == record.digest:
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
    """The descriptor of a new, empty store, which the caller closes.

    Raises:
        OSError: No descriptors or no memory are left.
    """
    return os.memfd_create(_NAME)


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Writes all of some data to a file, at an offset: pwrite(2) may write less.

    Raises:
        OSError: There is no memory left.
    """
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def find_store(environ: Mapping[str, str]) -> CommitStore | None:
    """The store that the launcher has passed to this process.

    Args:
        environ: The environment.

    Returns:
        None where there is none; also in a child that has inherited the environment of a worker but
        not the descriptor, whose number may then be of another file.
    """
    fd = find_fd(environ, VARIABLE)
    return None if fd is None else CommitStore(fd)


def find_fd(environ: Mapping[str, str], variable: str) -> int | None:
    """The descriptor of a store that a variable names; None where there is none, see `find_store`.

    Args:
        environ: The environment.
        variable: Its name.
    """
    try:
        fd = int(environ[variable])
        link = os.readlink(f"/proc/self/fd/{fd}")
    except (KeyError, ValueError, OSError):
        return None
    return fd if link.startswith(f"/memfd:{_NAME}") else None
