"""Columns of Parquet files as arrays: rows by their number, decoded once, kept on disk."""

from __future__ import annotations

import errno
import math
import os
import posixpath
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tfddl._src.block_rows import row_numbers
from tfddl._src.data import parquet_values
from tfddl._src.data.memory_map import MappedRows
from tfddl._src.sharding import Indices
from tfddl.errors import DataError

if TYPE_CHECKING:
    import pyarrow.fs
    from pyarrow.parquet import FileMetaData

# What is decoded at once.
_CHUNK_BYTES = 16 << 20
# What is read from a file at once.
_BUFFER_BYTES = 1 << 20
_SHOWN_COLUMNS = 20


def open_parquet(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    columns: Sequence[str] | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
) -> dict[str, ParquetColumn]:
    """The columns of Parquet files, for `shard_dataset`; needs pyarrow.

    Columns of numbers, lists of numbers that have the same shape in all rows (also lists of lists,
    such as images), and the vectors of Spark ML, dense and sparse. Decimals are float64.

    Only footers, and the first row of each column, are read at once. A row group is decoded when a
    row of it is asked for first, 16 MiB at a time, into a file without a name in ``cache_dir``;
    from there on its rows are read from that file, in any order: a process keeps none of it in
    memory, and needs disk for the columns that it reads, decoded. With ``order="block"`` that is
    its own shard.

    Args:
        path: A file, a directory of files (those in directories under it as well; files and
            directories that begin with "_" or "." are left out), or a list of files. Also a URI
            that `pyarrow.fs` reaches: ``hdfs://``, ``s3://``, ``gs://``. Rows are in the order of
            the files' names; files of a list in that of the list.
        columns: Their names; None is all.
        cache_dir: For decoded rows; None is that of `tempfile` (TMPDIR).

    Returns:
        Name -> `ParquetColumn`, which has `shape`, `dtype`, a length, and can be indexed.

    Raises:
        DataError: There is no pyarrow; a file is missing or isn't Parquet; there are no rows; files
            have different columns; a column is missing, has nulls or is of a type that isn't here.
    """
    table = ParquetTable.open(path)
    names = list(table.types) if columns is None else list(columns)
    return {name: ParquetColumn.open(table, name, cache_dir) for name in names}


@dataclass(frozen=True)
class _RowGroup:
    file: int
    """Which of the files."""
    group: int
    start: int
    """The number of its first row, among the rows of all files."""
    num_rows: int


class ParquetTable:
    """The files of a table, of which the footers were read.

    Attributes:
        num_rows: of all files.
        types: name of a column -> its Arrow type.
    """

    def __init__(
        self, filesystem: pyarrow.fs.FileSystem, files: list[str], footers: list[FileMetaData]
    ) -> None:
        """Numbers the rows of the files; reads nothing."""
        self._filesystem = filesystem
        self.files = files
        self._footers = footers
        schema = footers[0].schema.to_arrow_schema()
        self.types = {field.name: field.type for field in schema}
        self.row_groups: list[_RowGroup] = []
        start = 0
        for number, footer in enumerate(footers):
            found = {field.name: field.type for field in footer.schema.to_arrow_schema()}
            if found != self.types:
                raise DataError(
                    f"{files[number]} has the columns {_show(found)}, but {files[0]} "
                    f"{_show(self.types)}. HINT: write them with the same schema."
                )
            for group in range(footer.num_row_groups):
                num_rows = footer.row_group(group).num_rows
                self.row_groups.append(_RowGroup(number, group, start, num_rows))
                start += num_rows
        self.num_rows = start
        if not start:
            raise DataError(f"{files[0]} has no rows, nor has any of {len(files)} files.")

    @classmethod
    def open(cls, path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> ParquetTable:
        """Finds the files and reads their footers.

        Raises:
            DataError: See `open_parquet`.
        """
        try:
            from pyarrow import ArrowException, fs
            from pyarrow.parquet import read_metadata
        except ImportError as error:
            raise DataError(
                "Parquet files need pyarrow, which can't be imported here. HINT: pip install "
                f"'tfddl[parquet]' ({error})"
            ) from None
        given = [path] if isinstance(path, str | os.PathLike) else path
        files: list[str] = []
        filesystem: Any = fs.LocalFileSystem()
        footers = []
        reading = str(path)
        try:
            for item in given:
                filesystem, inner = _resolve(os.fspath(item))
                files += _find_files(filesystem, inner)
            for reading in files:
                with filesystem.open_input_file(reading) as opened:
                    footers.append(read_metadata(opened))
        except (OSError, ArrowException) as error:
            raise DataError(f"{reading} can't be read as Parquet: {error}") from error
        if not files:
            raise DataError(f"there are no Parquet files in {path!s}.")
        return cls(filesystem, files, footers)

    def check_column(self, name: str) -> None:
        """Raises where a column is missing, or statistics say that it has nulls."""
        if name not in self.types:
            raise DataError(f"there is no column {name!r}; the files have {_show(self.types)}.")
        for group in self.row_groups:
            nulls = self._count_nulls(group, name)
            if nulls:
                raise DataError(_nulls(name, nulls, self.files[group.file]))

    def read(self, group: _RowGroup, name: str, num_rows: int) -> Iterator[Any]:
        """Arrow arrays of a column's rows in a row group, at most so many at a time."""
        from pyarrow.parquet import ParquetFile

        footer = self._footers[group.file]
        with (
            self._filesystem.open_input_file(self.files[group.file]) as opened,
            # Otherwise all of a column's bytes in the row group are in memory at once.
            ParquetFile(
                opened, metadata=footer, buffer_size=_BUFFER_BYTES, pre_buffer=False
            ) as file,
        ):
            for batch in file.iter_batches(
                num_rows, row_groups=[group.group], columns=[name], use_threads=False
            ):
                yield batch.column(0)

    def _count_nulls(self, group: _RowGroup, name: str) -> int:
        footer = self._footers[group.file].row_group(group.group)
        for number in range(footer.num_columns):
            chunk = footer.column(number)
            if chunk.path_in_schema == name:  # Not of lists, whose statistics count elements.
                statistics = chunk.statistics
                return statistics.null_count or 0 if statistics is not None else 0
        return 0


class ParquetColumn:
    """One column of Parquet files, which is indexed like an array; see `open_parquet`.

    Attributes:
        shape: of all rows, (rows, …).
        dtype: of the values, as `astype` has set it.
    """

    def __init__(  # noqa: PLR0913 - what a column is, and what it becomes
        self,
        table: ParquetTable,
        name: str,
        cache_dir: str | os.PathLike[str] | None,
        *,
        stored_shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        row_shape: tuple[int, ...],
    ) -> None:
        """Reads nothing.

        Args:
            table: The files.
            name: Of the column.
            cache_dir: As of `open_parquet`.
            stored_shape: Of a row in the files.
            dtype: That the values get.
            row_shape: That a row gets.
        """
        self._table = table
        self._name = name
        self._cache_dir = cache_dir
        self._stored_shape = stored_shape
        self.dtype = np.dtype(dtype)
        self.shape = (table.num_rows, *row_shape)
        self._starts = np.array([group.start for group in table.row_groups])
        self._decoded = [not group.num_rows for group in table.row_groups]
        self._lock = threading.Lock()
        self._rows: tuple[int, MappedRows] | None = None

    @classmethod
    def open(
        cls, table: ParquetTable, name: str, cache_dir: str | os.PathLike[str] | None
    ) -> ParquetColumn:
        """The column as it is stored; reads its first row.

        Raises:
            DataError: The column is missing, has nulls, or a type that isn't here.
        """
        table.check_column(name)
        first = next(group for group in table.row_groups if group.num_rows)
        row = _decode(table, next(table.read(first, name, 1)), name, first, None)
        shape = row.shape[1:]
        return cls(table, name, cache_dir, stored_shape=shape, dtype=row.dtype, row_shape=shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        """Rows, as an index of an array's first dimension; see `row_numbers`."""
        numbers = row_numbers(key, len(self), f"column {self._name!r}")
        return self._read(numbers.reshape(-1)).reshape(*numbers.shape, *self.shape[1:])

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """All rows, in memory."""
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    def astype(self, dtype: npt.DTypeLike) -> ParquetColumn:
        """The column with values of another dtype."""
        return self._with(dtype, self.shape[1:])

    def reshape(self, *row_shape: int) -> ParquetColumn:
        """The column with rows of another shape: ``reshape(28, 28, 1)`` for rows of 784 values.

        Raises:
            DataError: Another number of values.
        """
        if math.prod(row_shape) != math.prod(self.shape[1:]):
            raise DataError(
                f"column {self._name!r} has {math.prod(self.shape[1:])} values in a row, of shape "
                f"{self.shape[1:]}; they can't have the shape {row_shape}."
            )
        return self._with(self.dtype, row_shape)

    def _with(self, dtype: npt.DTypeLike, row_shape: tuple[int, ...]) -> ParquetColumn:
        return ParquetColumn(
            self._table,
            self._name,
            self._cache_dir,
            stored_shape=self._stored_shape,
            dtype=dtype,
            row_shape=row_shape,
        )

    def _read(self, numbers: Indices) -> np.ndarray:
        with self._lock:
            file, rows = self._rows if self._rows is not None else self._make_cache()
            for group in np.unique(np.searchsorted(self._starts, numbers, side="right") - 1):
                if not self._decoded[group]:
                    self._fill(file, group)
                    self._decoded[group] = True
        return rows[numbers]

    def _make_cache(self) -> tuple[int, MappedRows]:
        """A file for all rows, which takes no disk before they are written."""
        size = math.prod(self.shape) * self.dtype.itemsize
        with tempfile.NamedTemporaryFile(prefix="tfddl-parquet-", dir=self._cache_dir) as named:
            named.truncate(size)
            rows = MappedRows.of(np.memmap(named.name, self.dtype, "r", shape=self.shape), "rows")
            assert rows is not None, "an empty row isn't decoded"
            file = os.dup(named.fileno())
        weakref.finalize(self, os.close, file)
        self._rows = file, rows
        return self._rows

    def _fill(self, file: int, number: int) -> None:
        """Writes the decoded rows of a row group to their places in the file."""
        group = self._table.row_groups[number]
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        position = group.start * row_bytes
        for values in self._table.read(group, self._name, max(1, _CHUNK_BYTES // row_bytes)):
            rows = _decode(self._table, values, self._name, group, self._stored_shape)
            rows = rows.astype(self.dtype, copy=False)
            data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
            try:
                while data:
                    count = os.pwrite(file, data, position)
                    data, position = data[count:], position + count
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                directory = self._cache_dir or tempfile.gettempdir()
                raise DataError(
                    f"{directory} has no space for the decoded rows of column {self._name!r}: "
                    f"{len(self) * row_bytes} bytes in all. HINT: cache_dir=…, or TMPDIR."
                ) from error


def _decode(
    table: ParquetTable,
    values: Any,
    name: str,
    group: _RowGroup,
    row_shape: tuple[int, ...] | None,
) -> np.ndarray:
    try:
        return parquet_values.to_numpy(values, name, row_shape)
    except DataError as error:
        raise DataError(
            f"{error} ({table.files[group.file]}, rows from {group.start} on)"
        ) from None


def _resolve(path: str) -> tuple[Any, str]:
    from pyarrow import fs

    if "://" in path:
        return fs.FileSystem.from_uri(path)
    return fs.LocalFileSystem(), path


def _find_files(filesystem: Any, path: str) -> list[str]:
    from pyarrow import fs

    if filesystem.get_file_info(path).type != fs.FileType.Directory:
        return [path]
    found = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    files = (info.path for info in found if info.type == fs.FileType.File)
    return sorted(file for file in files if not _is_hidden(posixpath.relpath(file, path)))


def _is_hidden(path: str) -> bool:
    """Whether a file isn't data: Spark's own are in ``_temporary``, Delta Lake's in ``_delta_log``.

    As in Spark, a directory such as ``_split=1``, of a column's value, is data.
    """
    *directories, name = path.split("/")
    hidden = ("_", ".")
    return name.startswith(hidden) or any(
        d.startswith(hidden) and "=" not in d for d in directories
    )


def _show(types: dict[str, Any]) -> str:
    shown = [f"{name} ({kind})" for name, kind in list(types.items())[:_SHOWN_COLUMNS]]
    return ", ".join(shown) + (", …" if len(types) > _SHOWN_COLUMNS else "")


def _nulls(name: str, count: int, where: str) -> str:
    return f"column {name!r} has {count} nulls in {where}. {parquet_values.NULL_HINT}"
