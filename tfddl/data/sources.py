"""What examples are read from."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tfddl.data import structure
from tfddl.data.memory_map import MappedRows
from tfddl.errors import DataError
from tfddl.plan import Indices


class Source(Protocol):
    """The examples of a data set, by their number."""

    @property
    def num_examples(self) -> int:
        """How many there are, at least 1."""

    @property
    def parts(self) -> tuple[Any, ...]:
        """The specs of one example: x, (x, y) or (x, y, sample_weight)."""

    def read(self, batches: Iterable[Indices]) -> Iterator[list[Any]]:
        """The examples of each batch: for each leaf, its values in the order of the batch."""


class Arrays:
    """Arrays whose first dimension counts the examples; read in any order.

    Rows of memory maps are read into the batch's own buffer, see `MappedRows`.
    """

    def __init__(self, x: Any, y: Any, sample_weight: Any) -> None:
        given = [part for part in (x, y, sample_weight) if part is not None]
        arrays = structure.map_parts(_array, tuple(given))
        flat: list[np.ndarray] = tf.nest.flatten(arrays)
        if not flat:
            raise DataError(f"x has no arrays in it: {x!r}.")
        names = structure.names(arrays)
        _check_lengths(names, flat)
        self._arrays = [
            MappedRows.of(array, name) or array for array, name in zip(flat, names, strict=True)
        ]
        self._specs = tf.nest.map_structure(lambda a: tf.TensorSpec(a.shape[1:], a.dtype), arrays)

    @property
    def num_examples(self) -> int:
        """See `Source`."""
        return len(self._arrays[0])

    @property
    def parts(self) -> tuple[Any, ...]:
        """See `Source`."""
        return self._specs

    def read(self, batches: Iterable[Indices]) -> Iterator[list[np.ndarray]]:
        """See `Source`."""
        for indices in batches:
            yield [np.asarray(array[indices]) for array in self._arrays]


def _array(leaf: Any, name: str) -> np.ndarray:
    if isinstance(leaf, list):
        leaf = np.asarray(leaf)
    if isinstance(leaf, tf.data.Dataset) or not hasattr(leaf, "shape"):
        raise DataError(
            f"{name} is a {type(leaf).__name__}; shard_dataset takes arrays, memory-mapped arrays "
            "and tensors (or tuples and dictionaries of them)."
        )
    array = leaf if isinstance(leaf, np.ndarray) else np.asarray(leaf)
    if array.ndim == 0:
        raise DataError(f"{name} is a scalar; its first dimension must count the examples.")
    return array


def _check_lengths(names: list[str], arrays: list[Any]) -> None:
    lengths = {name: len(array) for name, array in zip(names, arrays, strict=True)}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise DataError(f"All parts need the same number of examples, but {said}.")
    if not arrays or len(arrays[0]) == 0:
        raise DataError(f"{names[0]} has no examples (its length is 0).")
