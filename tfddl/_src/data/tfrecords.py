"""Records of TFRecord files by their number."""

import collections
import os
import posixpath
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfddl._src.block_rows import row_numbers
from tfddl._src.cpu import num_loader_threads
from tfddl._src.data import record_index
from tfddl._src.data.record_index import FOOTER_BYTES, HEADER_BYTES, is_local
from tfddl._src.parallel_map import map_in_order
from tfddl._src.runtime import current
from tfddl._src.sharding import Indices
from tfddl.errors import DataError

_OPEN_FILES = 64
_RUN_BYTES = 16 << 20
# Of a store, where a read takes tens of milliseconds, whatever is read.
_REMOTE_READS = 16

Run = tuple[int, int, int]
"""Records that follow each other in a file: the file's number, and the first record and the one
after the last, among the records of all files."""


def open_tfrecords(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    index_dir: str | os.PathLike[str] | None = None,
) -> "TFRecords":
    """The records of TFRecord files, for `shard_dataset`: read by number, in any order.

    Each worker reads its own records only. For that it has to be known where they are: the first
    time, every file is read once, its checksums are verified, and an index is kept beside it (8
    bytes per record; where that directory can't be written to, in the user's cache directory). The
    ranks share this work, also over hosts with a common file system. A file that has changed is
    indexed anew.

    Usage::

        records = tfddl.open_tfrecords("train-*.tfrecord")
        data = tfddl.shard_dataset(records, batch_size=32, seed=1)  # strings, of shape (batch,)
        data = data.map(lambda batch: parse(tf.io.parse_example(batch, features)))

    Any rank may call it alone.

    Args:
        path: A file, a pattern with ``*`` or ``?``, a directory (but for names that begin with "_"
            or "."), or a list of these; also URLs that `tf.io.gfile` reaches (``gs://``). Files of
            a pattern or directory are in the order of their names.
        index_dir: Where indices are kept instead.

    Returns:
        Its length is the number of records; ``records[i]`` is one as `bytes`, ``records[indices]``
        an array of them.

    Raises:
        NotInitializedError: `tfddl.init()` has not been called.
        DataError: There is no such file, or there are no records; a file isn't a TFRecord file, is
            damaged, cut short, or compressed.
    """
    runtime = current()
    given = [path] if isinstance(path, str | os.PathLike) else path
    files = [file for item in given for file in _find_files(os.fspath(item))]
    cluster = runtime.cluster
    lengths = record_index.find_lengths(
        files,
        None if index_dir is None else os.fspath(index_dir),
        begin=cluster.rank * len(files) // cluster.size,
        num_threads=num_loader_threads(runtime.num_cores),
    )
    if not sum(map(len, lengths)):
        raise DataError(f"{given[0]} has no records; expected at least one.")
    return TFRecords(files, lengths)


class TFRecords:
    """The records of TFRecord files; see `open_tfrecords`.

    Attributes:
        shape: (records,).
        dtype: object: each is `bytes`.
    """

    def __init__(self, files: Sequence[str], lengths: Sequence[np.ndarray]) -> None:
        """Reads nothing.

        Args:
            files: Their paths.
            lengths: For each file those of its records, int64.
        """
        self._files = list(files)
        self._lengths = np.concatenate(lengths)
        counts = np.array([len(own) for own in lengths])
        self._ends = np.cumsum(counts)
        self._offsets = np.concatenate([_offsets(own) for own in lengths])
        self._open = _OpenFiles()
        self.shape = (len(self._lengths),)
        self.dtype = np.dtype(object)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        """Records, as an index of an array's first dimension; see `row_numbers`.

        Raises:
            DataError: A file is gone, or isn't what it was when its records were found.
        """
        numbers = row_numbers(key, len(self), "the records")
        if numbers.ndim == 0:
            return self._read(numbers.reshape(1))[0]
        return self._read(numbers.reshape(-1)).reshape(numbers.shape)

    def describe(self, number: int) -> str:
        """Where a record is, for messages."""
        file = int(np.searchsorted(self._ends, number, side="right"))
        return f"{self._files[file]}, from byte {self._offsets[number]} on"

    def _read(self, numbers: Indices) -> np.ndarray:
        wanted = np.unique(numbers)
        found: dict[int, bytes] = {}
        for (_, first, _), records in self._read_runs(list(self._runs(wanted))):
            found.update(enumerate(records, first))
        rows = np.empty(len(numbers), object)
        rows[:] = [found[int(number)] for number in numbers]
        return rows

    def _runs(self, numbers: Indices) -> Iterator[Run]:
        """What can be read at once, of numbers in ascending order."""
        files = np.searchsorted(self._ends, numbers, side="right")
        begin = 0
        for i in range(1, len(numbers) + 1):
            is_next = (
                i < len(numbers)
                and numbers[i] == numbers[i - 1] + 1
                and files[i] == files[begin]
                and self._offsets[numbers[i]] - self._offsets[numbers[begin]] < _RUN_BYTES
            )
            if not is_next:
                yield int(files[begin]), int(numbers[begin]), int(numbers[i - 1]) + 1
                begin = i

    def _read_runs(self, runs: Sequence[Run]) -> Iterator[tuple[Run, list[bytes]]]:
        is_remote = any(not is_local(self._files[file]) for file, _, _ in runs)
        threads = min(_REMOTE_READS, len(runs)) if is_remote else 0
        return zip(runs, map_in_order(self._read_run, runs, num_threads=threads), strict=True)

    def _read_run(self, run: Run) -> list[bytes]:
        number, first, end = run
        file = self._files[number]
        begin = int(self._offsets[first])
        size = int(self._offsets[end - 1] + self._lengths[end - 1]) + HEADER_BYTES - begin
        read = self._open.read if is_local(file) else _read_remote
        try:
            data = read(file, begin, size)
        except (OSError, tf.errors.OpError) as error:
            raise DataError(f"{file} can't be read: {error}.") from error
        records = []
        for at, length in zip(
            (self._offsets[first:end] - begin).tolist(),
            self._lengths[first:end].tolist(),
            strict=True,
        ):
            start = at + HEADER_BYTES
            record = data[start : start + length]
            if len(record) != length or int.from_bytes(data[at : at + 8], "little") != length:
                raise DataError(
                    f"{file} has no record of {length} bytes from byte {begin + at} on; expected "
                    "the file as it was when its records were found. HINT: don't write to it "
                    "while it is read; start again."
                )
            records.append(record)
        return records


class _OpenFiles:
    """Local files that are kept open, the last ones used. Several threads may read."""

    def __init__(self) -> None:
        self._fds: collections.OrderedDict[str, int] = collections.OrderedDict()
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._fds)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # In another process there are none.

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def read(self, file: str, begin: int, size: int) -> bytes:
        """Bytes of a file; fewer where it ends before."""
        with self._lock:
            fd = self._fds.pop(file, -1)
            if fd < 0:
                fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            self._fds[file] = fd
            if len(self._fds) > _OPEN_FILES:
                os.close(self._fds.popitem(last=False)[1])
            parts: list[bytes] = []
            while size and (part := os.pread(fd, size, begin)):
                parts.append(part)
                begin, size = begin + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _close_all(fds: dict[str, int]) -> None:
    for fd in fds.values():
        os.close(fd)


def _read_remote(file: str, begin: int, size: int) -> bytes:
    with tf.io.gfile.GFile(file, "rb") as opened:
        opened.seek(begin)
        return bytes(opened.read(size))


def _offsets(lengths: np.ndarray) -> np.ndarray:
    """Where each record begins in its file."""
    sizes = lengths + HEADER_BYTES + FOOTER_BYTES
    offsets: np.ndarray = np.cumsum(sizes) - sizes
    return offsets


def _find_files(path: str) -> list[str]:
    gfile = tf.io.gfile
    try:
        if any(character in path for character in "*?["):
            files = sorted(file for file in gfile.glob(path) if _is_data(file))
        elif gfile.isdir(path):
            names = sorted(name for name in gfile.listdir(path) if _is_data(name))
            found = [posixpath.join(path, name) for name in names]
            files = [file for file in found if not gfile.isdir(file)]
        else:
            return [path]
    except tf.errors.OpError as error:
        raise DataError(f"{path} can't be listed: {error.message}.") from error
    if not files:
        raise DataError(f"there are no files in {path}; expected TFRecord files.")
    return files


def _is_data(file: str) -> bool:
    name = posixpath.basename(file)
    return not name.startswith(("_", ".")) and not name.endswith(record_index.SUFFIX)
