"""Where the records of TFRecord files are: found once, and kept beside the files.

A TFRecord file is a sequence of records: length (8 bytes), checksum of the length (4), data,
checksum of the data (4). So the lengths of all records tell where each is. TensorFlow's own reader
finds them, and verifies all checksums meanwhile.

An index has size and time of modification of its file, and is made anew where they are others.
Processes share the work: each begins with other files, leaves out what it finds done, and comes
back to what another process of its machine is doing.

References:
    The format: tensorflow/core/lib/io/record_writer.h.
"""

import contextlib
import fcntl
import hashlib
import io
import logging
import os
import posixpath
import re
import secrets
import time
import zipfile
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from tfddl._src.parallel_map import map_in_order
from tfddl.errors import DataError

_LOG = logging.getLogger("tfddl")

SUFFIX = ".tfddl-index"
HEADER_BYTES, FOOTER_BYTES = 12, 4
"""Around the data of a record."""

_BUFFER_BYTES = 8 << 20
_LENGTHS_AT_ONCE = 2**16
_GZIP, _ZLIB = b"\x1f\x8b", b"\x78"
# Another process of this machine that holds a file's lock, but isn't done after that, may have been
# stopped: its work is then done twice.
_WAIT_S = 600.0
_POLL_S = 0.1
_PROGRESS_S = 10.0


def find_lengths(
    files: Sequence[str], index_dir: str | None, *, begin: int, num_threads: int
) -> list[np.ndarray]:
    """The lengths of the records of each file: from its index, which is made where there is none.

    Args:
        files: Their paths, or URLs that `tf.io.gfile` reaches.
        index_dir: Where indices are kept; None is beside each file, or in the user's cache
            directory where that can't be written to.
        begin: The first file to be looked at; other processes begin with others.
        num_threads: That read files at the same time.

    Returns:
        For each file int64 of shape (its records,).

    Raises:
        DataError: A file can't be read, is damaged, cut short or compressed.
    """
    lengths: dict[str, np.ndarray] = {}
    progress = _Progress(len(files))
    order = [*files[begin:], *files[:begin]]
    for wait_s in (0.0, _WAIT_S):

        def find(file: str, wait_s: float = wait_s) -> np.ndarray | None:
            return _find(file, _places(file, index_dir), wait_s)

        left = [file for file in order if file not in lengths]
        results = map_in_order(find, left, num_threads=num_threads)
        for file, found in zip(left, results, strict=True):
            if found is not None:
                lengths[file] = found
                progress.say(len(lengths))
    return [lengths[file] for file in files]


def _find(file: str, places: Sequence[str], wait_s: float) -> np.ndarray | None:
    """The lengths; None where another process is finding them, and doesn't end in time."""
    try:
        stamp = _stamp(file)
        if (found := _load(places, stamp)) is not None:
            return found
        with _lock(file, wait_s) as is_held:
            if (found := _load(places, stamp)) is not None:  # Made by who held the lock.
                return found
            if not is_held and not wait_s:
                return None
            lengths = _read_lengths(file, size=int(stamp[0]))
    except tf.errors.OpError as error:
        raise DataError(_explain(file, error)) from error
    except OSError as error:
        raise DataError(f"{file} can't be read: {error}.") from error
    _save(places, stamp, lengths)
    return lengths


def _read_lengths(file: str, *, size: int) -> np.ndarray:
    """Reads all of a file, and verifies its checksums.

    Raises:
        DataError: It has another size than it had when it was looked at.
    """
    records = tf.data.TFRecordDataset(file, buffer_size=_BUFFER_BYTES)
    lengths = records.map(tf.strings.length).batch(_LENGTHS_AT_ONCE)
    parts = [np.zeros(0), *lengths.as_numpy_iterator()]
    found = np.concatenate(parts).astype(np.int64)
    num_bytes = int((found + HEADER_BYTES + FOOTER_BYTES).sum())
    if num_bytes != size:
        raise DataError(
            f"{file} has {size} bytes, but its records {num_bytes}; expected the same: it was "
            "written while its records were looked for. HINT: start again when it is complete."
        )
    return found


def _explain(file: str, error: tf.errors.OpError) -> str:
    # As tensorflow/core/lib/io/record_reader.cc says it, among names of operations.
    found = re.search(r"(corrupted|truncated) record at (\d+)", error.message)
    if found is None:
        return f"{file} can't be read: {error.message}."
    if found[2] == "0":
        with tf.io.gfile.GFile(file, "rb") as opened:
            if opened.read(2).startswith((_GZIP, _ZLIB)):
                return (
                    f"{file} is compressed, so that its records can't be read by number; expected "
                    "an uncompressed TFRecord file. HINT: decompress it, or give shard_dataset a "
                    "tf.data.TFRecordDataset(…, compression_type=…), which every rank reads whole."
                )
    return (
        f"{file} has a {found[1]} record at byte {found[2]}; expected a whole TFRecord file. HINT: "
        "write it again."
    )


def _stamp(file: str) -> np.ndarray:
    found = tf.io.gfile.stat(file)
    return np.array([found.length, found.mtime_nsec], np.int64)


def _places(file: str, index_dir: str | None) -> list[str]:
    """Where an index may be, and be written; the best first."""
    if is_local(file):
        file = os.path.abspath(file)
    name = posixpath.basename(file)
    digest = hashlib.sha256(file.encode()).hexdigest()[:16]
    unique = f"{name}-{digest}{SUFFIX}"
    if index_dir is not None:
        return [posixpath.join(index_dir, unique)]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(cache):  # As in a container whose user has no home.
        return [file + SUFFIX]
    return [file + SUFFIX, posixpath.join(cache, "tfddl", "tfrecords", unique)]


def _load(places: Sequence[str], stamp: np.ndarray) -> np.ndarray | None:
    for place in places:
        with contextlib.suppress(tf.errors.NotFoundError, tf.errors.PermissionDeniedError):
            with tf.io.gfile.GFile(place, "rb") as file:
                content = file.read()
            try:
                with np.load(io.BytesIO(content), allow_pickle=False) as index:
                    if np.array_equal(index["stamp"], stamp):
                        lengths: np.ndarray = index["lengths"]
                        return lengths
            except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
                _LOG.warning("%s is no index of records, and is made anew: %s", place, error)
    return None


def _save(places: Sequence[str], stamp: np.ndarray, lengths: np.ndarray) -> None:
    """Writes an index where it can; without one, the file is read again at the next start."""
    content = io.BytesIO()
    np.savez(content, stamp=stamp, lengths=lengths)
    errors = []
    for place in places:
        directory, name = posixpath.split(place)
        temporary = posixpath.join(directory, f".{name}.{secrets.token_hex(4)}")
        try:
            tf.io.gfile.makedirs(directory)
            try:
                with tf.io.gfile.GFile(temporary, "wb") as file:
                    file.write(content.getvalue())
                tf.io.gfile.rename(temporary, place, overwrite=True)
            except tf.errors.OpError:
                with contextlib.suppress(tf.errors.OpError):
                    tf.io.gfile.remove(temporary)
                raise
        except tf.errors.OpError as error:
            errors.append(f"{place}: {error.message}")
        else:
            return
    _LOG.warning(
        "The index of records can't be kept, and is made at every start (%s). HINT: "
        "tfddl.open_tfrecords(…, index_dir=…), a directory that can be written to.",
        "; ".join(errors),
    )


@contextlib.contextmanager
def _lock(file: str, wait_s: float) -> Iterator[bool]:
    """Whether no other process of this machine is finding the records of a file, meanwhile.

    The lock is flock(2) on the file itself, which the kernel releases when its holder ends. File
    systems without locks, and stores, have none: two processes may then do the same work.
    """
    if not is_local(file):
        yield True
        return
    with open(file, "rb") as opened:
        end_s = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < end_s:
                    time.sleep(_POLL_S)
                    continue
                yield False
            except OSError:  # NFS, for one, locks only what is open for writing.
                yield True
            else:
                yield True
            return


def is_local(file: str) -> bool:
    """Whether it is a path of this machine, not a URL."""
    return "://" not in file


class _Progress:
    """Says how far it is, where that takes long."""

    def __init__(self, total: int) -> None:
        self._total, self._said_s = total, time.monotonic()

    def say(self, done: int) -> None:
        if time.monotonic() - self._said_s > _PROGRESS_S:
            self._said_s = time.monotonic()
            _LOG.info("Looking for the records of TFRecord files: %d of %d", done, self._total)
