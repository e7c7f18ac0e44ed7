"""From a dataset that the user transformed further back to its shard."""

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfddl._src.data import lineage
from tfddl._src.data.shard import Shard
from tfddl.errors import DataError

# What makes one element out of one, and keeps their order.
_ONE_TO_ONE = {
    "AssertCardinalityDataset",
    "MapDataset",
    "OptionsDataset",
    "ParallelMapDataset",
    "PrefetchDataset",
}


def find_shard(dataset: Any) -> Shard | None:
    """The shard that a dataset was made from, with one element for each of the shard's batches.

    Looks through map, prefetch, with_options and assert_cardinality. After anything else (shuffle,
    batch, repeat, take, …), or where TensorFlow doesn't keep the order (``deterministic=False``),
    a position in the shard says nothing about the dataset.

    Returns:
        None where there is none, or where TensorFlow doesn't say what a dataset was made from.
    """
    if not isinstance(dataset, tf.data.Dataset) or dataset.options().deterministic is False:
        return None
    while not isinstance(getattr(dataset, "tfddl_shard", None), Shard):
        inputs = lineage.inputs_of(dataset)
        if lineage.dataset_type(dataset) not in _ONE_TO_ONE or len(inputs) != 1:
            return None
        if not lineage.keeps_order(dataset):
            return None
        dataset = inputs[0]
    return dataset.tfddl_shard


def find_error(dataset: Any) -> DataError | None:
    """Why reading any shard that a dataset was made from last failed, if it did."""
    return next((shard.error for shard in _shards(dataset) if shard.error is not None), None)


def clear_errors(dataset: Any) -> None:
    """Forgets the errors of the shards that a dataset was made from."""
    for shard in _shards(dataset):
        shard.error = None


def has_shard(dataset: Any) -> bool:
    """Whether a dataset was made from a shard, by whatever transformations."""
    return any(True for _ in _shards(dataset))


def repeats_shard(dataset: Any) -> bool:
    """Whether a dataset iterates over a shard several times by itself, by ``repeat()``.

    It may begin the next pass before the epoch that `fit` is in has ended, sooner on one rank than
    on another: the ranks' passes would then have the orders of different epochs.
    """
    return any(
        lineage.dataset_type(ancestor) == "RepeatDataset" and has_shard(ancestor)
        for ancestor in lineage.ancestors(dataset)
    )


def _shards(dataset: Any) -> Iterator[Shard]:
    for ancestor in lineage.ancestors(dataset):
        shard = getattr(ancestor, "tfddl_shard", None)
        if isinstance(shard, Shard):
            yield shard
