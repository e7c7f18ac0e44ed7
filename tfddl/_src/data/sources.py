"""What examples are read from, by their number."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tfddl._src.data import structure
from tfddl._src.data.memory_map import MappedRows
from tfddl._src.sharding import Indices
from tfddl.errors import DataError

_LONGEST_NAME = 200
"""Of a file, in messages; longer ones keep their end."""


class Source(Protocol):
    """The examples of a data set."""

    @property
    def num_examples(self) -> int:
        """How many there are, at least 1."""

    @property
    def parts(self) -> tuple[Any, ...]:
        """One example, x, (x, y) or (x, y, sample_weight), with a spec for each leaf.

        The spec is None where it takes an example to know it.
        """

    @property
    def seeks(self) -> bool:
        """Whether examples can be read in any order; if not, only in that of their numbers."""

    def read(self, batches: Iterable[Indices]) -> Iterator[list[Any]]:
        """The examples of each batch: for each leaf, its values in the order of the batch."""

    def describe(self, index: int) -> str:
        """What an example is called, for messages: "example 3 (x: 'c.png')"."""


class IndexedSource:
    """Parts that can be indexed: arrays, memory maps, and, where they are to be loaded, lists.

    Rows of memory maps are read into the batch's own buffer, see `MappedRows`.
    """

    seeks = True

    def __init__(self, parts: Sequence[Any], *, loaded: bool) -> None:
        """For the parts as `shard_dataset` got them, without those that are None.

        Args:
            parts: x, (x, y) or (x, y, sample_weight).
            loaded: Whether a function of the user's makes the examples from the parts.

        Raises:
            DataError: Something that can't be indexed, lengths that differ, no examples.
        """
        columns = structure.map_parts(_indexable if loaded else _array, tuple(parts))
        names = structure.names(columns)
        if not names:
            raise DataError(f"x has no arrays in it: {parts[0]!r}.")
        flat = tf.nest.flatten(columns)
        _check_lengths(names, flat)
        self._names = names
        self._columns = [_column(leaf, name) for leaf, name in zip(flat, names, strict=True)]
        self._parts = tf.nest.map_structure(_spec, columns)

    @property
    def num_examples(self) -> int:
        """See `Source`."""
        return len(self._columns[0])

    @property
    def parts(self) -> tuple[Any, ...]:
        """See `Source`."""
        return self._parts

    def read(self, batches: Iterable[Indices]) -> Iterator[list[Any]]:
        """See `Source`."""
        for indices in batches:
            yield [column[indices] for column in self._columns]

    def describe(self, index: int) -> str:
        """See `Source`."""
        columns = [getattr(column, "elements", column) for column in self._columns]
        said = [
            f"{name}: {str(column[index])[-_LONGEST_NAME:]}"
            for name, column in zip(self._names, columns, strict=True)
            if isinstance(column, list | np.ndarray) and _is_name(column[index])
        ]
        return f"example {index}" + (f" ({', '.join(said)})" if said else "")


class _Elements:
    """Anything with a length that gives its elements one by one."""

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
        except Exception as error:
            raise DataError(
                f"{self._name}[{index}] can't be had from the {type(self.elements).__name__}: "
                f"{type(error).__name__}: {error}."
            ) from error


def _is_name(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


def _array(leaf: Any, name: str) -> np.ndarray:
    if isinstance(leaf, list):
        leaf = np.asarray(leaf)
    if not hasattr(leaf, "shape"):
        raise DataError(
            f"{name} is a {type(leaf).__name__}; shard_dataset takes arrays, memory-mapped arrays "
            "and tensors (or tuples and dictionaries of them); anything that can be indexed, such "
            "as a list of files, with load=…; or a tf.data.Dataset alone."
        )
    array = leaf if isinstance(leaf, np.ndarray) else np.asarray(leaf)
    if array.ndim == 0:
        raise DataError(f"{name} is a scalar; its first dimension must count the examples.")
    return array


def _indexable(leaf: Any, name: str) -> Any:
    if hasattr(leaf, "__array__"):
        return _array(leaf, name)
    is_text = isinstance(leaf, str | bytes | os.PathLike)
    if is_text or not hasattr(leaf, "__len__") or not hasattr(leaf, "__getitem__"):
        raise DataError(
            f"{name} is a {type(leaf).__name__}; with load=…, shard_dataset takes arrays and "
            "whatever has a length and can be indexed by number, such as a list of files (or "
            "tuples and dictionaries of them)."
        )
    return _Elements(leaf, name)


def _column(leaf: Any, name: str) -> Any:
    mapped = MappedRows.of(leaf, name) if isinstance(leaf, np.ndarray) else None
    return leaf if mapped is None else mapped


def _spec(leaf: Any) -> tf.TensorSpec | None:
    return tf.TensorSpec(leaf.shape[1:], leaf.dtype) if isinstance(leaf, np.ndarray) else None


def _check_lengths(names: list[str], columns: list[Any]) -> None:
    lengths = {name: len(column) for name, column in zip(names, columns, strict=True)}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise DataError(f"All parts need the same number of examples, but {said}.")
    if 0 in lengths.values():
        raise DataError(f"{names[0]} has no examples (its length is 0).")
