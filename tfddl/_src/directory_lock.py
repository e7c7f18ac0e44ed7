"""A lock on a directory: one job at a time writes its checkpoints there.

The lock is flock(2) on a file in the directory: the kernel releases it when its holder ends,
however that happens. The file's content only names the holder. Over NFS, Linux (since 2.6.12)
emulates flock by a byte-range lock on the server, which other hosts see; most shared file systems
do likewise. Where a file system has no locks, a warning says so.

The holder removes the file before it unlocks. So whoever has locked a file checks that it is still
the one at the path; otherwise two jobs could each lock a file of their own.

References:
    flock(2), https://man7.org/linux/man-pages/man2/flock.2.html, "NFS details".
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
# Children of a killed process may hold the lock a moment longer: it belongs to the open file.
_SAME_HOST_S = 5.0
# An NFS 4 server keeps the locks of a lost host for a lease: 90 s by default in Linux' nfsd.
_OTHER_HOST_S = 120.0
_POLL_S = 0.1
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclasses.dataclass
class _HeldLock:
    """A lock that this process holds.

    Attributes:
        fd: the lock is held as long as it is open.
        count: the number of `DirectoryLock` that share it.
    """

    fd: int
    count: int


_held: dict[tuple[int, int], _HeldLock] = {}
"""By device and inode of the file."""


class DirectoryLock:
    """The lock of one directory. It is reentrant within a process."""

    def __init__(self, directory: Path) -> None:
        """Acquires the lock.

        Args:
            directory: an existing directory.

        Raises:
            CheckpointError: another process holds it and doesn't release it within 5 s, or, on
                another host, within 2 minutes.
            OSError: the file can't be created.
        """
        self._path = directory / _NAME
        self._key: tuple[int, int] | None = None
        begin_s = time.monotonic()
        timeout_s = 0.0
        while not self._try_lock():
            holder = _read_holder(self._path)
            is_here = holder.get("host") in (None, socket.gethostname())
            if not is_here and not timeout_s:
                _LOG.warning(
                    "%s is in use by %s. Waiting %.0f s, in case that host is lost",
                    directory,
                    describe_holder(holder),
                    _OTHER_HOST_S,
                )
            timeout_s = _SAME_HOST_S if is_here else _OTHER_HOST_S
            if time.monotonic() - begin_s > timeout_s:
                raise in_use(directory, holder)
            time.sleep(_POLL_S)

    @property
    def is_held(self) -> bool:
        """Whether it is held: not after `release`, nor where the file system has no locks."""
        return self._key is not None

    def release(self) -> None:
        """Releases the lock; does nothing where it isn't held."""
        held = _held.get(self._key) if self._key else None
        if held is not None and self._key is not None:
            held.count -= 1
            if not held.count:
                del _held[self._key]
                with contextlib.suppress(OSError):
                    self._path.unlink()  # Before it is unlocked; see the top of this file.
                os.close(held.fd)
        self._key = None

    def _try_lock(self) -> bool:
        """Locks, or warns that there are no locks; False where another process holds the lock."""
        fd = os.open(self._path, _FLAGS, 0o666)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise CheckpointError(f"{self._path} is no regular file. HINT: remove it.")
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
                self._warn_unlocked(error)
                return True
            if not _is_at(self._path, key):  # Its last holder has removed it meanwhile.
                return False
            try:
                _write_holder(fd)
            except OSError:
                self._path.unlink(missing_ok=True)
                raise
            _held[key], self._key, fd = _HeldLock(fd, 1), key, -1
            return True
        finally:
            if fd >= 0:
                os.close(fd)

    def _warn_unlocked(self, error: OSError) -> None:
        _LOG.warning(
            "the file system of %s has no locks (%s): another job with the same directory for its "
            "checkpoints isn't noticed, and temporary files that a crash has left stay",
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
        # A full disk: the lock is held, but its holder stays unknown.


def _read_holder(path: Path) -> dict[str, object]:
    """Host and pid of the holder; empty where it has written nothing, or is gone."""
    with contextlib.suppress(OSError, ValueError):
        holder = json.loads(path.read_bytes())
        if isinstance(holder, dict):
            return holder
    return {}


def in_use(directory: object, holder: dict[str, object]) -> CheckpointError:
    """The error of a job that finds a directory locked by another one."""
    return CheckpointError(
        f"{directory} is in use by another job: {describe_holder(holder)}. Two jobs would take "
        "each other's checkpoints for their own. HINT: choose another directory, or end that job "
        "first."
    )


def describe_holder(holder: dict[str, object]) -> str:
    """The process that a lock names, for messages."""
    if not holder:
        return "an unknown process"
    return f"process {holder.get('pid')} on {holder.get('host')}"


def _close_in_child() -> None:
    """Runs in a forked child, whose copies of the descriptors would outlive its parent's locks."""
    for held in _held.values():
        os.close(held.fd)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
