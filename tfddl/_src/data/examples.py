"""Examples as they are trained on: read, made, put into batches."""

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

Raw = tuple[int, tuple[Any, ...]]
"""The number and the parts of an example."""


class Examples:
    """What one rank makes of a source by a recipe.

    Attributes:
        specs: Of one example, as Keras takes it.
        sample: One example that is always at hand: an array of shape (1, …) for each leaf.
    """

    def __init__(
        self, source: Source, recipe: Transforms, *, rank: int, num_threads: int, first: Indices
    ) -> None:
        """Makes the first example, to know shapes and dtypes.

        Args:
            source: Where from.
            recipe: How.
            rank: Whose, for messages.
            num_threads: How many examples to make at the same time.
            first: The number of the rank's first example, int64 of shape (1,). What can't seek
                takes its own first.

        Raises:
            DataError: It can't be read or made.
        """
        self._source = source
        self._recipe = recipe
        self._rank = rank
        self._num_threads = num_threads
        with self._naming_rank():
            index, parts = next(self._raw([first if source.seeks else np.zeros(1, np.int64)]))
            example = self._make(index, parts, epoch=0)
        self.specs = example_specs(example)
        self.sample: list[np.ndarray] = [leaf[np.newaxis] for leaf in tf.nest.flatten(example)]

    def batches(self, batches: Iterable[Indices], *, epoch: int) -> Generator[list[np.ndarray]]:
        """For each batch an array per leaf.

        Raises:
            DataError: An example can't be read or made, or isn't like the first; named, with the
                rank.
        """
        with self._naming_rank():
            if self._recipe.is_empty and isinstance(self._source, IndexedSource):
                yield from self._source.read(batches)
            else:
                yield from self._made(batches, epoch)

    def _made(self, batches: Iterable[Indices], epoch: int) -> Generator[list[np.ndarray]]:
        """The batches, example by example."""
        indices, again = itertools.tee(batches)

        def make(raw: Raw) -> list[np.ndarray]:
            number, parts = raw
            example = self._make(number, parts, epoch=epoch)
            with self._naming(number):
                return check_example(example, self.specs)

        examples = map_in_order(
            make,
            self._raw(indices),
            # What is taken as it is isn't worth the threads.
            num_threads=0 if self._recipe.is_empty else self._num_threads,
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
            return self._recipe.make(parts, epoch=epoch, index=number)

    def _stacked(self, examples: Iterator[list[np.ndarray]], count: int) -> list[np.ndarray]:
        specs = tf.nest.flatten(self.specs)
        rows = [np.empty((count, *s.shape), s.dtype.as_numpy_dtype) for s in specs]
        for i, example in enumerate(examples):
            for row, leaf in zip(rows, example, strict=True):
                row[i] = leaf[()]  # A string of shape () would stay an array.
        return rows

    def _naming(self, number: int) -> contextlib.AbstractContextManager[None]:
        return _in_front(lambda: self._source.describe(number))

    def _naming_rank(self) -> contextlib.AbstractContextManager[None]:
        return _in_front(lambda: f"rank {self._rank}")


@contextlib.contextmanager
def _in_front(name: Callable[[], str]) -> Iterator[None]:
    """Puts a name in front of the message of an error of ours."""
    try:
        yield
    except DataError as error:
        error.args = (f"{name()}: {error}",)
        raise
