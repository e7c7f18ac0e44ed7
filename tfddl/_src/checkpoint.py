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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import tensorflow as tf

from tfddl._src.directory_lock import DirectoryLock
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


def write(path: Path, snapshot: Snapshot) -> None:
    """Writes a file atomically; see the top of this file.

    Raises:
        OSError: It can't be written; what was there is unchanged, no temporary file is left.
    """
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


def read(path: Path) -> Snapshot:
    """Reads a whole file, and verifies its checksums.

    Raises:
        CheckpointError: It is missing or damaged, or a newer tfddl has written it.
    """
    try:
        with _open_regular(path) as file, zipfile.ZipFile(file) as archive:
            members = {name: _member(archive, name) for name in archive.namelist()}
        meta = json.loads(members.pop(f"{_META}.npy").tobytes())
        written_by = meta["format"]
        dtypes = meta["dtypes"]
        arrays = {name: members[f"{name}.npy"].view(_dtype(dtypes[name])) for name in dtypes}
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

    directory: Path
    keep: int = 3
    """How many of the newest are kept, besides the best."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise CheckpointError(f"keep is {self.keep}; it must be at least 1.")

    def prepare(self) -> DirectoryLock:
        """Creates the directory, locks it for this job, and removes what a crash has left.

        Returns:
            The lock: until it is released, other jobs are refused.

        Raises:
            CheckpointError: The directory can't be created or written, or another job has it.
        """
        lock: DirectoryLock | None = None
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = DirectoryLock(self.directory)
            # Fails now, rather than at the first checkpoint, where it can't be written.
            with tempfile.NamedTemporaryFile(prefix=_TEMPORARY, dir=self.directory) as file:
                file.write(b"tfddl")
            if lock.is_held:  # otherwise another job may be writing them
                for left in self.directory.glob(f"{_TEMPORARY}*"):
                    left.unlink(missing_ok=True)
            return lock
        except OSError as error:
            if lock is not None:
                lock.release()
            raise CheckpointError(
                f"Checkpoints can't be written to {self.directory}: {error}. HINT: choose another "
                "directory."
            ) from error

    def write(self, snapshot: Snapshot, *, step: int, is_best: bool = False) -> Path:
        """Writes a checkpoint, then removes the oldest ones beyond `keep`.

        Args:
            snapshot: What to write.
            step: Its number, >= 0: the largest is the newest.
            is_best: Whether it is the best so far, and becomes best.npz.

        Raises:
            OSError: It can't be written; the other checkpoints are unchanged.
        """
        path = self.directory / f"step-{step:010d}.npz"
        write(path, snapshot)
        if is_best:
            self._link(path, self.directory / BEST)
        for old in self.files()[self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def files(self) -> list[Path]:
        """Paths of the checkpoints, the newest first."""
        if not self.directory.is_dir():
            return []
        found = [path for path in self.directory.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.stem.split("-")[1]), reverse=True)

    def newest_first(self) -> Iterator[tuple[Path, Snapshot | CheckpointError]]:
        """Reads one checkpoint after the other; a damaged one is yielded as its error."""
        for path in self.files():
            try:
                yield path, read(path)
            except CheckpointError as error:
                yield path, error

    def set_aside(self, path: Path) -> Path:
        """Renames a damaged checkpoint, so that it doesn't count as one of those to keep.

        Raises:
            OSError: It can't be renamed.
        """
        return path.rename(path.with_name(f"{path.name}.damaged"))

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
        lock = DirectoryLock(self.directory)
        try:
            for pattern in ("step-*.npz*", BEST):
                for path in self.directory.glob(pattern):
                    path.unlink(missing_ok=True)
        finally:
            lock.release()

    def _link(self, path: Path, name: Path) -> None:
        """Gives a file a second name atomically; link(2) itself can't replace a file."""
        temporary = name.with_name(f"{_TEMPORARY}{secrets.token_hex(4)}")
        try:
            os.link(path, temporary)
            os.replace(temporary, name)
        except OSError:  # A file system without hard links.
            write(name, read(path))
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
