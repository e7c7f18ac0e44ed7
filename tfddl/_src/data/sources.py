"""Where examples are read from: by their number, in arrays, maps, Parquet and lists."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from tfddl._src.block_rows import BlockRows
from tfddl._src.data import structure
from tfddl._src.data.memory_map import MappedRows
from tfddl._src.data.parquet import ParquetColumn
from tfddl._src.data.tfrecords import TFRecords
from tfddl._src.sharding import Indices
from tfddl.errors import DataError, UnsupportedError

_ARRAY_LIKE = (BlockRows, ParquetColumn, TFRecords)
"""What is indexed as an array, and may be too large to be made one."""

_LONGEST_NAME = 200
"""Characters of a file's name in messages; longer names keep their end."""


class Source(Protocol):
    """The examples of a data set, numbered from 0."""

    @property
    def num_examples(self) -> int:
        """The number of examples, at least 1."""

    @property
    def parts(self) -> tuple[Any, ...]:
        """One example, x, (x, y) or (x, y, sample_weight), with a spec for each leaf.

        The spec is None where it takes an example to know it.
        """

    @property
    def seeks(self) -> bool:
        """Whether examples can be read in any order; if not, only in that of their numbers."""

    def read(self, batches: Iterable[Indices]) -> Iterator[list[Any]]:
        """Reads batch after batch.

        Args:
            batches: The numbers of each batch's examples, int64 of shape (at least 1,).

        Returns:
            For each batch, for each leaf of `parts`, the values in the order of the batch.

        Raises:
            DataError: An example can't be read; while it is iterated over.
        """

    def describe(self, index: int) -> str:
        """The name of an example in messages: "example 3 (x: c.png)"."""


class IndexedSource:
    """A `Source` of parts that can be indexed: arrays, memory maps, lists of what `load` loads.

    Rows of memory maps are read into the batch's own buffer, see `MappedRows`, and so are those of
    Parquet files, see `ParquetColumn`.
    """

    seeks = True

    def __init__(self, parts: Sequence[Any], *, loaded: bool) -> None:
        """Looks at the parts; reads nothing.

        Args:
            parts: x, (x, y) or (x, y, sample_weight), as the user passed them.
            loaded: Whether a function of the user's makes the examples from the parts.

        Raises:
            DataError: Something that can't be indexed, lengths that differ, no examples.
        """
        columns = structure.map_parts(_indexable if loaded else _array, tuple(parts))
        names = structure.names(columns)
        if not names:
            raise DataError(f"x is {parts[0]!r}; expected at least one array in it.")
        flat = tf.nest.flatten(columns)
        _check_lengths(names, flat)
        self._names = names
        self._columns = [_column(leaf, name) for leaf, name in zip(flat, names, strict=True)]
        self.is_in_memory = all(
            isinstance(column, np.ndarray) and column.dtype != object for column in self._columns
        )
        """Whether every leaf is an array of numbers, of which reading can't fail."""
        self.is_read_by_threads = not self.is_in_memory and all(
            isinstance(column, np.ndarray | MappedRows) for column in self._columns
        )
        """Whether several threads may read at the same time, and gain by it."""
        self.num_examples = len(flat[0])
        self.parts: tuple[Any, ...] = tf.nest.map_structure(_spec, columns)

    def read(self, batches: Iterable[Indices]) -> Iterator[list[Any]]:
        """Takes the rows of each batch out of every column, in any order."""
        return map(self.take, batches)

    def take(self, indices: Indices) -> list[Any]:
        """The rows of one batch, see `read`."""
        return [column[indices] for column in self._columns]

    def describe(self, index: int) -> str:
        """The example's number, with those of its parts that are names of files."""
        # Names of files alone: values of arrays would tell a reader nothing.
        columns = [getattr(column, "elements", column) for column in self._columns]
        said = [
            f"{name}: {str(column[index])[-_LONGEST_NAME:]}"
            for name, column in zip(self._names, columns, strict=True)
            if isinstance(column, list | np.ndarray) and _is_name(column[index])
        ]
        said += [c.describe(index) for c in columns if isinstance(c, TFRecords)]
        return f"example {index}" + (f" ({', '.join(said)})" if said else "")


class _Elements:
    """Indexes by an array what itself can only be indexed by one number."""

    def __init__(self, elements: Any, name: str) -> None:
        self.elements = elements
        self._name = name

    def __len__(self) -> int:
        return len(self.elements)

    def __getitem__(self, indices: Indices) -> list[Any]:
        return [self._get(int(i)) for i in indices]

    def _get(self, index: int) -> Any:
        try:
            return self.elements[index]
        except Exception as error:  # Any of the user's own __getitem__.
            raise DataError(
                f"{self._name}[{index}] of the {type(self.elements).__name__} can't be read: "
                f"{type(error).__name__}: {error}."
            ) from error


def gives_examples(x: Any) -> bool:
    """Whether it returns examples by their number, as `grain.MapDataset` does; no arrays.

    Raises:
        UnsupportedError: It is a `keras.utils.PyDataset`, which returns batches.
    """
    if isinstance(x, keras.utils.PyDataset):
        raise UnsupportedError(
            f"x is a {type(x).__name__}, a PyDataset, which returns batches by their number; "
            "expected what returns examples. HINT: pass shard_dataset the examples that the "
            "PyDataset makes batches of, with load=…; or give fit a PyDataset of this rank's "
            "batches."
        )
    is_data = isinstance(x, str | bytes | list | tuple | dict) or hasattr(x, "shape")
    return not is_data and hasattr(x, "__len__") and hasattr(x, "__getitem__")


def _is_name(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


def _array(leaf: Any, name: str) -> Any:
    if isinstance(leaf, _ARRAY_LIKE):
        return leaf
    if isinstance(leaf, list):  # Data, not structure: see `structure.map_leaves`.
        leaf = np.asarray(leaf)
    if not hasattr(leaf, "shape"):
        raise DataError(
            f"{name} is a {type(leaf).__name__}; expected arrays, memory-mapped arrays or tensors "
            "(or tuples and dictionaries of them). HINT: pass anything that can be indexed, such "
            "as a list of files, with load=…; or a tf.data.Dataset alone."
        )
    array = leaf if isinstance(leaf, np.ndarray) else np.asarray(leaf)
    if array.ndim == 0:
        raise DataError(f"{name} is a scalar; expected an array whose rows are the examples.")
    return array


def _indexable(leaf: Any, name: str) -> Any:
    if hasattr(leaf, "__array__") or isinstance(leaf, _ARRAY_LIKE):
        return _array(leaf, name)
    # A string has a length and can be indexed, too, but its characters are hardly meant.
    is_text = isinstance(leaf, str | bytes | os.PathLike)
    if is_text or not hasattr(leaf, "__len__") or not hasattr(leaf, "__getitem__"):
        raise DataError(
            f"{name} is a {type(leaf).__name__}; expected, with load=…, arrays or what has a "
            "length and can be indexed by number, such as a list of files (or tuples and "
            "dictionaries of them)."
        )
    return _Elements(leaf, name)


def _column(leaf: Any, name: str) -> Any:
    mapped = MappedRows.of(leaf, name) if isinstance(leaf, np.ndarray) else None
    return leaf if mapped is None else mapped


def _spec(leaf: Any) -> tf.TensorSpec | None:
    is_array = isinstance(leaf, (np.ndarray, *_ARRAY_LIKE))
    return tf.TensorSpec(leaf.shape[1:], leaf.dtype) if is_array else None


def _check_lengths(names: list[str], columns: list[Any]) -> None:
    lengths = {name: len(column) for name, column in zip(names, columns, strict=True)}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise DataError(f"{said}; expected the same number of examples in all of them.")
    if 0 in lengths.values():
        raise DataError(f"{names[0]} has no examples: its length is 0; expected at least one.")
