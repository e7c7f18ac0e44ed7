"""The examples of a `tf.data.Dataset`, which can only be read from its beginning."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfddl._src.data import lineage, structure
from tfddl._src.sharding import Indices
from tfddl.errors import DataError


class DatasetSource:
    """A `Source` of the examples of a dataset of known length, numbered in its order.

    What comes before the first example that is asked for, and between those that are, is made by
    the dataset and dropped at once.
    """

    seeks = False

    def __init__(self, dataset: tf.data.Dataset) -> None:
        """Looks at the dataset; reads nothing.

        Args:
            dataset: Of single examples, with the same elements in the same order in each iteration.

        Raises:
            DataError: Its length isn't known, or 0; its elements aren't dense tensors; or its
                order changes.
        """
        self.num_examples = _length(dataset)
        self.parts = structure.parts_of(_specs(dataset))
        _refuse_changing_order(dataset)
        # Examples are numbered by their order. An option that is set later overrides one that the
        # user has set before.
        options = tf.data.Options()
        options.deterministic = True
        self._dataset = dataset.with_options(options)

    def read(self, batches: Iterable[Indices]) -> Iterator[list[Any]]:
        """Reads batches whose numbers only ever grow, in one pass over the dataset."""
        wanted = list(batches)
        if not wanted:
            return
        indices = np.concatenate(wanted)
        assert (np.diff(indices) > 0).all(), "a dataset is read in its own order"
        elements = self._elements(indices)
        for batch in wanted:
            rows = [next(elements) for _ in batch]
            yield [list(values) for values in zip(*rows, strict=True)]

    def describe(self, index: int) -> str:
        """The example's number."""
        return f"example {index} of the dataset"

    def _elements(self, indices: Indices) -> Iterator[list[np.ndarray]]:
        """The leaves of each of the examples."""
        first, count = int(indices[0]), int(indices[-1] - indices[0]) + 1
        # TensorFlow drops the examples in between, without a call into Python for each.
        dataset = self._dataset.skip(first).take(count)
        if count > len(indices):
            # Global order: other ranks' examples lie between.
            mine = np.zeros(count, bool)
            mine[indices - first] = True
            dataset = _only(dataset, tf.constant(mine))
        elements = iter(dataset)
        for index in indices:
            try:
                element = next(elements, None)
            # tf.data raises an OpError of any kind for what fails in a map.
            except tf.errors.OpError as error:
                raise DataError(
                    f"{self.describe(int(index))} can't be read: {error.message}"
                ) from error
            if element is None:
                raise DataError(
                    f"the dataset ended before {self.describe(int(index))}, but its cardinality is "
                    f"{self.num_examples}. HINT: give assert_cardinality the true number."
                )
            yield [leaf.numpy() for leaf in tf.nest.flatten(element)]


@tf.autograph.experimental.do_not_convert
def _only(dataset: tf.data.Dataset, mine: tf.Tensor) -> tf.data.Dataset:
    """The elements at whose positions the vector is true."""
    kept = dataset.enumerate().filter(lambda position, _: tf.gather(mine, position))
    return kept.map(lambda _, element: element)


def _length(dataset: tf.data.Dataset) -> int:
    length = int(dataset.cardinality())
    if length == tf.data.INFINITE_CARDINALITY:
        raise DataError(
            "x is an infinite dataset; expected the examples of one epoch. HINT: leave "
            "repeat() out, or cut it, dataset.take(n)."
        )
    if length == tf.data.UNKNOWN_CARDINALITY:
        raise DataError(
            "x is a dataset of unknown length; without it the steps can't be planned. HINT: set "
            "it, dataset.apply(tf.data.experimental.assert_cardinality(n))."
        )
    if length == 0:
        raise DataError("x has no examples: its length is 0; expected at least one.")
    return length


def _specs(dataset: tf.data.Dataset) -> Any:
    specs = dataset.element_spec
    other = [spec for spec in tf.nest.flatten(specs) if not isinstance(spec, tf.TensorSpec)]
    if other:
        raise DataError(
            f"x is a dataset with {type(other[0]).__name__} in its elements; expected dense "
            "tensors of one shape. HINT: make them dense with dataset.map."
        )
    return specs


def _refuse_changing_order(dataset: tf.data.Dataset) -> None:
    for ancestor in lineage.ancestors(dataset):
        if not lineage.keeps_order(ancestor) or not _shuffles_alike(ancestor):
            raise DataError(
                f"x is a dataset whose order changes ({lineage.dataset_type(ancestor)}), so that "
                "workers would read some examples twice and others not at all. HINT: shuffle it "
                "the same way each time, "
                "dataset.shuffle(n, seed=…, reshuffle_each_iteration=False); leave "
                "deterministic=False out, and give list_files shuffle=False."
            )


def _shuffles_alike(dataset: Any) -> bool:
    """Whether the dataset, if it shuffles, does so in the same way on each rank, each time."""
    # list_files(shuffle=True) is a shuffle too, of the names.
    if lineage.dataset_type(dataset) != "ShuffleDataset":
        return True
    return (
        any(lineage.seeds(dataset)) and getattr(dataset, "_reshuffle_each_iteration", True) is False
    )
