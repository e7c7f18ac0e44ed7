"""A folder that one job at a time has for itself.

The lock is the kernel's (flock on a file in the folder), so that it is gone with the process that
has it, however that ends; the file only says who that is. Linux carries it to other hosts over NFS,
as do most file systems that hosts share. One that has no locks is said to have none.

References:
    flock(2), https://man7.org/linux/man-pages/man2/flock.2.html: what becomes of it on NFS.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import os
import socket
import stat
import time
from pathlib import Path

from tfddl.errors import CheckpointError

_LOG = logging.getLogger("tfddl")
_NAME = ".lock"
# What a process that was killed has started may hold it a moment longer.
_SAME_HOST_S = 5.0
# A server of NFS keeps the locks of a host that is lost for a lease, of 90 s on Linux.
_OTHER_HOST_S = 120.0
_LOOK_S = 0.1
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclasses.dataclass
class _Held:
    """A lock of this process.

    Attributes:
        fd: as long as it is open, the lock is held.
        count: how many `DirectoryLock` share it.
    """

    fd: int
    count: int


_held: dict[tuple[int, int], _Held] = {}
"""By device and number of the file."""


class DirectoryLock:
    """The lock of one folder. Within a process it can be had several times.

    Attributes:
        is_held: whether it is held. Not, where the file system has no locks.
    """

    def __init__(self, directory: Path) -> None:
        """Takes it.

        Args:
            directory: the folder, which is there.

        Raises:
            CheckpointError: another process has it; on another host, it still has it after two
                minutes.
            OSError: the file can't be made.
        """
        self._path = directory / _NAME
        self._key: tuple[int, int] | None = None
        begin_s = time.monotonic()
        patience_s = 0.0
        while not self._try():
            holder = _read_holder(self._path)
            is_here = holder.get("host") in (None, socket.gethostname())
            if not is_here and not patience_s:
                _LOG.warning(
                    "%s is in use by %s. Waiting %.0f s, in case that host is lost",
                    directory,
                    _describe(holder),
                    _OTHER_HOST_S,
                )
            patience_s = _SAME_HOST_S if is_here else _OTHER_HOST_S
            if time.monotonic() - begin_s > patience_s:
                raise CheckpointError(
                    f"{directory} is in use by another job: {_describe(holder)}. Two jobs would "
                    "take each other's checkpoints for their own. Choose another folder, or end "
                    "that job first."
                )
            time.sleep(_LOOK_S)

    @property
    def is_held(self) -> bool:
        """See the class."""
        return self._key is not None

    def release(self) -> None:
        """Lets go of it. Again it does nothing."""
        held = _held.get(self._key) if self._key else None
        if held is not None and self._key is not None:
            held.count -= 1
            if not held.count:
                del _held[self._key]
                with contextlib.suppress(OSError):
                    self._path.unlink()  # whoever has it open already looks whether it is there
                os.close(held.fd)
        self._key = None

    def _try(self) -> bool:
        """Takes the lock, or finds that there are none; False where another process has it."""
        fd = os.open(self._path, _FLAGS, 0o666)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise CheckpointError(f"{self._path} is no plain file. Remove it.")
            key = (found.st_dev, found.st_ino)
            if key in _held:
                _held[key].count += 1
                self._key = key
                return True
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError as error:
                self._do_without(error)
                return True
            if not _is_at(self._path, key):  # the one before has removed it meanwhile
                return False
            try:
                _write_holder(fd)
            except OSError:
                self._path.unlink(missing_ok=True)
                raise
            _held[key], self._key, fd = _Held(fd, 1), key, -1
            return True
        finally:
            if fd >= 0:
                os.close(fd)

    def _do_without(self, error: OSError) -> None:
        _LOG.warning(
            "the file system of %s has no locks (%s): it isn't noticed where another job has the "
            "same folder for its checkpoints, and files that a crash has left stay",
            self._path.parent,
            error.strerror,
        )
        with contextlib.suppress(OSError):
            self._path.unlink()


def _is_at(path: Path, key: tuple[int, int]) -> bool:
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == key


def _write_holder(fd: int) -> None:
    holder = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, holder.encode(), 0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # A full disk: the lock holds, and only its holder goes without a name.


def _read_holder(path: Path) -> dict[str, object]:
    """What the holder says of itself; nothing where it has said nothing, or is gone by now."""
    with contextlib.suppress(OSError, ValueError):
        holder = json.loads(path.read_bytes())
        if isinstance(holder, dict):
            return holder
    return {}


def _describe(holder: dict[str, object]) -> str:
    if not holder:
        return "a process that hasn't said who it is"
    return f"process {holder.get('pid')} on {holder.get('host')}"


def _forget() -> None:
    """In a forked child, which shares its parent's locks, and would hold them longer than it."""
    for held in _held.values():
        os.close(held.fd)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
