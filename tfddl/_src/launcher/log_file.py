"""The file that keeps one output of one worker, whole, and readable by its user only."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from tfddl.errors import LaunchError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a FIFO without a reader would keep us waiting, before it could be seen to be one.
_FILE = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DESCRIPTOR = "/proc/self/fd/{}"


class LogFile:
    """A log that is written as output comes.

    The folder that the user names may be a link, and others may write to what is above it. What is
    in it has to be the user's own: whoever else could write there might have put a link in the
    place of a log, and another file would be overwritten.
    """

    def __init__(
        self, folder: Path, name: str, *, appends: bool, report_loss: Callable[[str, OSError], None]
    ) -> None:
        """Opens the file, and makes it and the folder where they aren't there.

        Args:
            folder: one worker's, in the folder that the user has named.
            name: of the file in it.
            appends: whether to what an earlier start has written there.
            report_loss: called with what couldn't be written, and why.

        Raises:
            LaunchError: it can't be opened, or isn't the user's own.
        """
        self._path, self._tell_loss = folder / name, report_loss
        try:
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not folder.is_symlink():
                folder.mkdir(mode=0o700, exist_ok=True)
            self._fd = _open(folder, name)
            if not appends:
                os.ftruncate(self._fd, 0)
        except OSError as error:
            links = [path for path in (folder, self._path) if path.is_symlink()]
            why = f"{links[0]} is a link" if links else error.strerror
            raise LaunchError(
                f"can't write logs to {folder}: {why}. HINT: --output-filename names a folder, "
                "made if it is missing"
            ) from error

    def write(self, data: bytes) -> None:
        """Writes all of it; what the disk doesn't take is dropped, and reported."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            self._tell_loss(f"the log {self._path}", error)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)


def _open(folder: Path, name: str) -> int:
    """Opens a file of a folder, both of which are then known to be the user's own.

    Raises:
        OSError: it can't be opened.
        LaunchError: it isn't the user's own.
    """
    directory = os.open(folder, _FOLDER)
    try:
        ours = _owner_of_new_files(directory)
        _require(os.fstat(directory).st_uid == ours, folder, "belongs to another user")
        path = folder / name
        try:
            fd = os.open(name, _FILE | os.O_CREAT, 0o600, dir_fd=directory)
        except OSError as error:
            # Of a FIFO that nobody reads; of a socket it is the same.
            _require(error.errno != errno.ENXIO, path, "is no plain file")
            raise
        try:
            found = os.fstat(fd)
            _require(stat.S_ISREG(found.st_mode), path, "is no plain file")
            _require(found.st_uid == ours, path, "belongs to another user")
            _require(found.st_nlink == 1, path, "is another file, too, by a hard link")
            os.fchmod(fd, 0o600)  # logs show arguments and environments
        except BaseException:
            os.close(fd)
            raise
        return fd
    finally:
        os.close(directory)


def _owner_of_new_files(directory: int) -> int:
    """Who we are there: not always geteuid(), as on NFS, which makes nobody of root."""
    try:
        with tempfile.TemporaryFile(dir=_DESCRIPTOR.format(directory)) as probe:
            return os.fstat(probe.fileno()).st_uid
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return os.geteuid()


def _require(condition: bool, path: Path, problem: str) -> None:
    if not condition:
        raise LaunchError(
            f"can't write logs to {path}: it {problem}. HINT: remove it, or choose another folder "
            "by --output-filename"
        )
