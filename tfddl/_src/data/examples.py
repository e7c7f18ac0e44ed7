"""Examples as they are trained on: read, transformed, put into batches."""

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfddl._src.data.sources import IndexedSource, Source
from tfddl._src.data.transforms import Transforms, check_example, example_specs
from tfddl._src.parallel_map import map_in_order
from tfddl._src.sharding import Indices
from tfddl.errors import DataError

_JOINED_BATCHES, _JOINED_BYTES = 16, 2**20

Raw = tuple[int, tuple[Any, ...]]
"""The number and the parts of an example, before its transforms."""


class Examples:
    """The transformed examples of a source, in batches.

    Attributes:
        specs: The specs of one example, as Keras takes it.
        sample: One example that is in memory, for padding: an array of shape (1, …) for each leaf.
    """

    def __init__(
        self, source: Source, transforms: Transforms, *, rank: int, num_threads: int, first: Indices
    ) -> None:
        """Reads and transforms the first example, for its shapes and dtypes.

        Args:
            source: What examples are read from.
            transforms: What is done to each.
            rank: For messages.
            num_threads: How many examples are transformed at the same time.
            first: The number of the rank's first example, int64 of shape (1,). A source that can't
                seek starts with example 0 instead.

        Raises:
            DataError: The example can't be read or transformed.
        """
        self._source = source
        self._transforms = transforms
        self._rank = rank
        self._num_threads = num_threads
        with self._naming_rank():
            index, parts = next(self._raw([first if source.seeks else np.zeros(1, np.int64)]))
            example = self._make(index, parts, epoch=0)
        self.specs = example_specs(example)
        self.sample: list[np.ndarray] = [leaf[np.newaxis] for leaf in tf.nest.flatten(example)]

    def num_joined(self, batch_size: int) -> int:
        """How many batches TensorFlow should get from Python at once.

        For each element that it takes from a generator it needs some 0.2 ms of CPU time: more than
        a small batch. What may fail, or takes time to make, goes one by one.
        """
        source = self._source
        is_array = isinstance(source, IndexedSource) and source.is_in_memory
        if not is_array or not self._transforms.is_empty:
            return 1
        num_bytes = batch_size * sum(leaf.nbytes for leaf in self.sample)
        return max(1, min(_JOINED_BATCHES, _JOINED_BYTES // max(1, num_bytes)))

    def batches(self, batches: Iterable[Indices], *, epoch: int) -> Generator[list[np.ndarray]]:
        """Reads and transforms batch after batch.

        Args:
            batches: The numbers of each batch's examples, int64 of shape (at least 1,).
            epoch: On which augmentation depends.

        Returns:
            For each batch an array per leaf, the batch's length first.

        Raises:
            DataError: While iterated over: an example can't be read or transformed, or has other
                specs than the first. The text names rank and example.
        """
        with self._naming_rank():
            # Whole rows of a batch at once, instead of one example after the other.
            if self._transforms.is_empty and isinstance(self._source, IndexedSource):
                num_threads = self._num_threads if self._source.is_read_by_threads else 0
                rows = map_in_order(self._source.take, batches, num_threads=num_threads)
                with contextlib.closing(rows):
                    yield from rows
            else:
                yield from self._made(batches, epoch)

    def _made(self, batches: Iterable[Indices], epoch: int) -> Generator[list[np.ndarray]]:
        """The batches, example by example."""
        # Used twice: threads read examples ahead by one, batches get their sizes from the other.
        indices, again = itertools.tee(batches)

        def make(raw: Raw) -> list[np.ndarray]:
            number, parts = raw
            example = self._make(number, parts, epoch=epoch)
            with self._naming(number):
                return check_example(example, self.specs)

        examples = map_in_order(
            make,
            self._raw(indices),
            # Without transforms there is nothing to do in parallel.
            num_threads=0 if self._transforms.is_empty else self._num_threads,
        )
        with contextlib.closing(examples):
            for batch in again:
                yield self._stacked(itertools.islice(examples, len(batch)), len(batch))

    def _raw(self, batches: Iterable[Indices]) -> Iterator[Raw]:
        indices, again = itertools.tee(batches)
        for columns, batch in zip(self._source.read(indices), again, strict=True):
            for i, number in enumerate(batch):
                leaves = [column[i] for column in columns]
                yield int(number), tf.nest.pack_sequence_as(self._source.parts, leaves)

    def _make(self, number: int, parts: tuple[Any, ...], *, epoch: int) -> Any:
        with self._naming(number):
            return self._transforms.make(parts, epoch=epoch, index=number)

    def _stacked(self, examples: Iterator[list[np.ndarray]], count: int) -> list[np.ndarray]:
        specs = tf.nest.flatten(self.specs)
        rows = [np.empty((count, *s.shape), s.dtype.as_numpy_dtype) for s in specs]
        for i, example in enumerate(examples):
            for row, leaf in zip(rows, example, strict=True):
                # [()]: the string itself, where the leaf is an object array of shape ().
                row[i] = leaf[()]
        return rows

    def _naming(self, number: int) -> contextlib.AbstractContextManager[None]:
        return _prefixed(lambda: self._source.describe(number))

    def _naming_rank(self) -> contextlib.AbstractContextManager[None]:
        return _prefixed(lambda: f"rank {self._rank}")


@contextlib.contextmanager
def _prefixed(name: Callable[[], str]) -> Iterator[None]:
    """Puts a name in front of the message of a `DataError`."""
    try:
        yield
    except DataError as error:
        error.args = (f"{name()}: {error}",)
        raise
