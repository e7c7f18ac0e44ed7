"""Checkpoint files: written atomically, verified when read.

A checkpoint is a plain `.npz` file (NumPy opens it too): the arrays of a `Snapshot`, and the rest
as JSON. Each member has zip's CRC-32.

Atomicity: write a temporary file in the same directory, fsync it, rename it, fsync the directory.
POSIX makes rename atomic for running processes but says nothing of a power failure. Without the
first fsync a file system may persist the name before the data (a file of zeros); without the second
one the new name may be lost, which only costs the newest checkpoint.

References:
    rename(2); fsync(2), https://man7.org/linux/man-pages/man2/fsync.2.html: "Calling fsync() does
    not necessarily ensure that the entry in the directory containing the file has also reached
    disk."
    All File Systems Are Not Created Equal, Pillai et al., OSDI 2014: what file systems reorder.

In a store (a URL) there is no fsync. Object stores show an object once its upload is complete, and
not before. Hadoop's file system shows what has been written so far, but renames atomically. So a
file is written under a temporary name, compared with the number of bytes that were written, and
renamed: on Hadoop's an atomic step, on object stores a copy within the store. The checksums find
what has gone wrong nevertheless. That the store can't be reached is no damage: it is raised, and
no file is set aside for it.

Usage:
    store = Store(directory, keep=3)
    store.write(snapshot, step=1200, is_best=True)
    for path, found in store.newest_first():   # each a Snapshot, or a CheckpointError
        ...
"""

import contextlib
import dataclasses
import json
import os
import re
import secrets
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import numpy as np
import tensorflow as tf

from tfddl._src.directory_lock import DirectoryLock
from tfddl._src.storage import RemoteError, RemoteLock, RemoteNotFoundError, RemotePath, check_held
from tfddl.errors import CheckpointError

FORMAT = 1
BEST = "best.npz"

_META = "meta"
_NAME = re.compile(r"step-(\d{10,})\.npz")
# A prefix of our own: others (a timeline, Keras' callbacks) write temporaries here, too.
_TEMPORARY = ".writing-checkpoint-"
_READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    RuntimeError,  # A changed flag says "encrypted" (or, NotImplementedError, "compressed").
    zipfile.BadZipFile,
    zlib.error,
)
"""What NumPy and zipfile raise on files that were truncated or changed."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The state of a training."""

    meta: Mapping[str, Any]
    """Anything JSON can represent."""

    arrays: Mapping[str, np.ndarray]
    """By name; any dtype of NumPy or TensorFlow (bfloat16, float8)."""


def write(path: Path | RemotePath, snapshot: Snapshot) -> None:
    """Writes a file atomically; see the top of this file.

    Raises:
        OSError: It can't be written; what was there is unchanged, no temporary file is left, unless
            a store can't be reached any more.
    """
    if isinstance(path, RemotePath):
        _write_remote(path, snapshot)
        return
    descriptor, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _write(file, snapshot)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_directory(path.parent)


def read(path: Path | RemotePath) -> Snapshot:
    """Reads a whole file, and verifies its checksums.

    Raises:
        CheckpointError: It is missing or damaged, or a newer tfddl has written it.
        RemoteError: A store can't be read, or has no such file.
    """
    try:
        with _open(path) as file, zipfile.ZipFile(file) as archive:
            members = {name: _member(archive, name) for name in archive.namelist()}
        meta = json.loads(members.pop(f"{_META}.npy").tobytes())
        written_by = meta["format"]
        dtypes = meta["dtypes"]
        arrays = {name: members[f"{name}.npy"].view(_dtype(dtypes[name])) for name in dtypes}
    except RemoteError:
        raise
    except _READ_ERRORS as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if written_by != FORMAT:
        raise CheckpointError(
            f"{path} has format {written_by}; expected {FORMAT}. HINT: update tfddl."
        )
    return Snapshot(meta, arrays)


@dataclasses.dataclass(frozen=True)
class CheckpointStore:
    """The checkpoint directory of one training."""

    directory: Path | RemotePath
    keep: int = 3
    """How many of the newest are kept, besides the best."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise CheckpointError(f"keep is {self.keep}; it must be at least 1.")

    def prepare(self) -> DirectoryLock | RemoteLock:
        """Creates the directory, locks it for this job, and removes what a crash has left.

        Returns:
            The lock: until it is released, other jobs are refused.

        Raises:
            CheckpointError: The directory can't be created or written, or another job has it.
        """
        lock: DirectoryLock | RemoteLock | None = None
        try:
            _make_directory(self.directory)
            lock = _lock(self.directory)
            _try_to_write(self.directory)
            if isinstance(self.directory, RemotePath):  # its files are of whoever came last
                check_held(self.directory)
            if lock.is_held:  # otherwise another job may be writing them
                for left in self.directory.glob(f"{_TEMPORARY}*"):
                    left.unlink(missing_ok=True)
            return lock
        except CheckpointError:
            if lock is not None:
                lock.release()
            raise
        except OSError as error:
            if lock is not None:
                lock.release()
            if isinstance(error, RemoteError):  # It has a hint.
                raise CheckpointError(
                    f"Checkpoints can't be written to {self.directory}: {error}"
                ) from error
            raise CheckpointError(
                f"Checkpoints can't be written to {self.directory}: {error}. HINT: choose another "
                "directory."
            ) from error

    def write(self, snapshot: Snapshot, *, step: int, is_best: bool = False) -> Path | RemotePath:
        """Writes a checkpoint, then removes the oldest ones beyond `keep`.

        Args:
            snapshot: What to write.
            step: Its number, >= 0: the largest is the newest.
            is_best: Whether it is the best so far, and becomes best.npz.

        Raises:
            OSError: It can't be written; the other checkpoints are unchanged.
            CheckpointError: The directory is in a store, and another job has taken it.
        """
        if isinstance(self.directory, RemotePath):
            check_held(self.directory)
        path = self.directory / f"step-{step:010d}.npz"
        write(path, snapshot)
        if is_best:
            _link(path, self.directory / BEST, snapshot)
        for old in self.files()[self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def files(self) -> Sequence[Path | RemotePath]:
        """Paths of the checkpoints, the newest first."""
        if not self.directory.is_dir():
            return []
        found = [path for path in self.directory.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.stem.split("-")[1]), reverse=True)

    def newest_first(self) -> Iterator[tuple[Path | RemotePath, Snapshot | CheckpointError]]:
        """Reads one checkpoint after the other; a damaged one is yielded as its error.

        Raises:
            RemoteError: A store can't be read.
        """
        for path in self.files():
            try:
                yield path, read(path)
            except RemoteNotFoundError:  # Some stores go on listing for a while what was removed.
                continue
            except CheckpointError as error:
                yield path, error

    def set_aside(self, path: Path | RemotePath) -> Path | RemotePath:
        """Renames a damaged checkpoint, so that it doesn't count as one of those to keep.

        Raises:
            OSError: It can't be renamed.
        """
        name = f"{path.name}.damaged"
        if isinstance(path, RemotePath):
            return path.rename(path.with_name(name))
        return path.rename(path.with_name(name))

    def best(self) -> Snapshot:
        """The best checkpoint.

        Raises:
            CheckpointError: There is none, or it is damaged.
        """
        if not (self.directory / BEST).exists():
            raise CheckpointError(f"There is no {BEST} in {self.directory}.")
        return read(self.directory / BEST)

    def clear(self) -> None:
        """Removes all checkpoints.

        Raises:
            OSError: One of them can't be removed.
            CheckpointError: Another job has the directory.
        """
        if not self.directory.is_dir():
            return
        lock = _lock(self.directory)
        try:
            for pattern in ("step-*.npz*", BEST):
                for path in self.directory.glob(pattern):
                    path.unlink(missing_ok=True)
        finally:
            lock.release()


def _make_directory(directory: Path | RemotePath) -> None:
    if isinstance(directory, RemotePath):
        directory.make_directory()
    else:
        directory.mkdir(parents=True, exist_ok=True)


def _lock(directory: Path | RemotePath) -> DirectoryLock | RemoteLock:
    if isinstance(directory, RemotePath):
        return RemoteLock(directory)
    return DirectoryLock(directory)


def _try_to_write(directory: Path | RemotePath) -> None:
    """Fails now, rather than at the first checkpoint, where it can't be written."""
    if isinstance(directory, RemotePath):
        # Removed with what a crash has left, which shows whether files may be removed.
        (directory / f"{_TEMPORARY}{secrets.token_hex(4)}").write_bytes(b"tfddl")
        return
    with tempfile.NamedTemporaryFile(prefix=_TEMPORARY, dir=directory) as file:
        file.write(b"tfddl")


def _open(path: Path | RemotePath) -> AbstractContextManager[Any]:
    return path.open("rb") if isinstance(path, RemotePath) else _open_regular(path)


class _Stream:
    """The end of a file in a store, which can be written to only; `zipfile` needs no more."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.size = 0

    def write(self, data: Any) -> int:
        """Appends to the file."""
        self._file.write(bytes(data))
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Does nothing: stores take a file as a whole, when it is closed."""


def _write_remote(path: RemotePath, snapshot: Snapshot) -> None:
    temporary = path.with_name(f"{_TEMPORARY}{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            stream = _Stream(file)
            _write(stream, snapshot)
        size = temporary.size()
        if size != stream.size:
            raise RemoteError(
                f"{temporary} has {size} bytes; expected {stream.size}. HINT: look at the store."
            )
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(RemoteError):  # The next job removes it.
            temporary.unlink(missing_ok=True)
        raise


def _link(path: Path | RemotePath, name: Path | RemotePath, snapshot: Snapshot) -> None:
    """Gives a file a second name atomically; link(2) itself can't replace a file."""
    if isinstance(path, RemotePath) or isinstance(name, RemotePath):
        write(name, snapshot)
        return
    temporary = name.with_name(f"{_TEMPORARY}{secrets.token_hex(4)}")
    try:
        os.link(path, temporary)
        os.replace(temporary, name)
    except OSError:  # A file system without hard links.
        write(name, snapshot)
    _sync_directory(name.parent)


def _write(file: Any, snapshot: Snapshot) -> None:
    dtypes = {name: array.dtype.name for name, array in snapshot.arrays.items()}
    known = {**snapshot.meta, "format": FORMAT, "dtypes": dtypes}
    meta = json.dumps(known, default=_to_json)
    members = {_META: np.frombuffer(meta.encode(), np.uint8), **snapshot.arrays}
    # Uncompressed: weights hardly compress.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in members.items():
            # A stream's length isn't known before, and without ZIP64 it ends at 2 GiB.
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, _plain(np.asarray(array)), allow_pickle=False)


def _to_json(value: Any) -> Any:
    """JSON of what callbacks put into logs: NumPy's scalars and arrays, and anything else."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return repr(value)


def _open_regular(path: Path) -> IO[bytes]:
    """Opens a regular file. Opening a FIFO would block, and reading a device might never end.

    Raises:
        OSError: It can't be opened.
        ValueError: It is no regular file.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("it is no regular file")
    return file


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as member:
        # Unpickling would run code from the file.
        array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):  # zipfile compares the checksum when it reads the end.
            raise ValueError(f"{name} is longer than its array")
    return array


def _plain(array: np.ndarray) -> np.ndarray:
    """The same bytes as unsigned integers, where the `.npy` format has no such dtype (bfloat16)."""
    if array.dtype.kind in "biufc":
        return array
    return array.view(np.dtype(f"u{array.dtype.itemsize}"))


def _dtype(name: str) -> np.dtype:
    return np.dtype(tf.as_dtype(name).as_numpy_dtype)


def _sync_directory(directory: Path) -> None:
    """Makes a rename in the directory survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
