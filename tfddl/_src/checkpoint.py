"""Checkpoints on disk: written whole or not at all, checked when read.

A checkpoint is a plain `.npz` file (NumPy opens it too): the arrays of a `Snapshot`, and what is
not an array as JSON. Each member has a checksum. A file gets its name only once everything is on
the disk, so that a crash leaves the one before.

Usage:
    store = Store(directory, keep=3)
    store.write(snapshot, step=1200, is_best=True)
    for name, found in store.newest_first():   # damaged ones are a CheckpointError each
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
# Others write files to such names, too, and maybe into this folder: a timeline, Keras' callbacks.
_TEMPORARY = ".writing-checkpoint-"
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    RuntimeError,  # Also NotImplementedError: a flag that says the member is encrypted or packed.
    zipfile.BadZipFile,
    zlib.error,
)
"""What reading a file that was cut short or changed raises."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The state of a training."""

    meta: Mapping[str, Any]
    """What JSON can hold."""

    arrays: Mapping[str, np.ndarray]
    """By name; any dtype that NumPy or TensorFlow has."""


def write(path: Path, snapshot: Snapshot) -> None:
    """Writes a file, or leaves what is there.

    Raises:
        OSError: The folder or the disk doesn't take it; nothing of it is left behind.
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
    """Reads a file, all of it, with its checksums.

    Raises:
        CheckpointError: It isn't there, is damaged, or was written by a newer tfddl.
    """
    try:
        with _opened(path) as file, zipfile.ZipFile(file) as archive:
            members = {name: _member(archive, name) for name in archive.namelist()}
        meta = json.loads(members.pop(f"{_META}.npy").tobytes())
        written_by = meta["format"]
        dtypes = meta["dtypes"]
        arrays = {name: members[f"{name}.npy"].view(_dtype(dtypes[name])) for name in dtypes}
    except _DAMAGE as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if written_by != FORMAT:
        raise CheckpointError(
            f"{path} has format {written_by}, and this tfddl reads {FORMAT}; update tfddl."
        )
    return Snapshot(meta, arrays)


@dataclasses.dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one training, in a folder."""

    directory: Path
    keep: int = 3
    """How many of the newest stay; the best stays besides."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise CheckpointError(f"keep is {self.keep}; it must be at least 1.")

    def prepare(self) -> DirectoryLock:
        """Makes the folder, takes it for this job, and removes what a crash left.

        Returns:
            The lock on the folder: as long as it isn't released, no other job gets it.

        Raises:
            CheckpointError: The folder can't be made or written, or another job has it.
        """
        lock: DirectoryLock | None = None
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = DirectoryLock(self.directory)
            # Now, and not after hours, is the time to find out that it can't be written.
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
                f"Checkpoints can't be written to {self.directory}: {error}. Choose another folder."
            ) from error

    def write(self, snapshot: Snapshot, *, step: int, is_best: bool = False) -> Path:
        """Writes a checkpoint, and removes those that are too many.

        Args:
            snapshot: What to write.
            step: Its number; a later one is newer.
            is_best: Whether it is the best so far, and is kept under that name too.

        Raises:
            OSError: It can't be written; the others are as they were.
        """
        path = self.directory / f"step-{step:010d}.npz"
        write(path, snapshot)
        if is_best:
            self._link(path, self.directory / BEST)
        for old in self.files()[self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def files(self) -> list[Path]:
        """The checkpoints, the newest first."""
        if not self.directory.is_dir():
            return []
        found = [path for path in self.directory.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.stem.split("-")[1]), reverse=True)

    def newest_first(self) -> Iterator[tuple[Path, Snapshot | CheckpointError]]:
        """Reads one checkpoint after the other; a damaged one comes as its error."""
        for path in self.files():
            try:
                yield path, read(path)
            except CheckpointError as error:
                yield path, error

    def set_aside(self, path: Path) -> Path:
        """Takes a damaged file out of the row, so that it isn't kept in the place of a good one.

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
            CheckpointError: Another job has the folder.
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
        """Gives a file a second name, whatever had it before."""
        temporary = name.with_name(f"{_TEMPORARY}{secrets.token_hex(4)}")
        try:
            os.link(path, temporary)
            os.replace(temporary, name)
        except OSError:  # A file system without hard links: a copy.
            write(name, read(path))
        _sync_directory(name.parent)


def _write(file: Any, snapshot: Snapshot) -> None:
    dtypes = {name: array.dtype.name for name, array in snapshot.arrays.items()}
    known = {**snapshot.meta, "format": FORMAT, "dtypes": dtypes}
    meta = json.dumps(known, default=_simple)
    members = {_META: np.frombuffer(meta.encode(), np.uint8), **snapshot.arrays}
    # Uncompressed: weights hardly shrink, and NumPy can map them.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in members.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, _plain(np.asarray(array)), allow_pickle=False)


def _simple(value: Any) -> Any:
    """What callbacks put into logs need not be a number of Python's."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return repr(value)


def _opened(path: Path) -> IO[bytes]:
    """Opens a plain file; a FIFO would keep us waiting, and a device may never end.

    Raises:
        OSError: It can't be opened.
        ValueError: It is something else.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("it is no plain file")
    return file


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as member:
        array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):  # Reads on to the end, where the checksum is compared.
            raise ValueError(f"{name} is longer than its array")
    return array


def _plain(array: np.ndarray) -> np.ndarray:
    """An array of a dtype that the `.npy` format knows, with the same bytes."""
    if array.dtype.kind in "biufc":
        return array
    return array.view(np.dtype(f"u{array.dtype.itemsize}"))


def _dtype(name: str) -> np.dtype:
    return np.dtype(tf.as_dtype(name).as_numpy_dtype)


def _sync_directory(directory: Path) -> None:
    """Makes new names last through a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
