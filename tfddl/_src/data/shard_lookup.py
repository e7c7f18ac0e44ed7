"""From a dataset that the user transformed further back to its share."""

from typing import Any

import tensorflow as tf

from tfddl._src.data import lineage
from tfddl._src.data.shard import Shard
from tfddl.errors import DataError

# Each makes one element out of one.
_ONE_TO_ONE = {
    "AssertCardinalityDataset",
    "MapDataset",
    "OptionsDataset",
    "ParallelMapDataset",
    "PrefetchDataset",
}


def find_shard(dataset: Any) -> Shard | None:
    """The share that a dataset was made from, one batch for each of the share's batches.

    Looks through map, prefetch, with_options and assert_cardinality. After anything else (shuffle,
    batch, repeat, take, …), or where TensorFlow doesn't keep the order (``deterministic=False``),
    a position in the share says nothing about the dataset.

    Returns:
        None where there is none, or where TensorFlow doesn't tell what a dataset was made from.
    """
    if not isinstance(dataset, tf.data.Dataset) or dataset.options().deterministic is False:
        return None
    while not isinstance(getattr(dataset, "tfddl_shard", None), Shard):
        parents = lineage.inputs_of(dataset)
        if lineage.dataset_type(dataset) not in _ONE_TO_ONE or len(parents) != 1:
            return None
        if not lineage.keeps_order(dataset):
            return None
        dataset = parents[0]
    return dataset.tfddl_shard


def find_error(dataset: Any) -> DataError | None:
    """What went wrong when any share that a dataset was made from was read, if anything has."""
    for ancestor in lineage.ancestors(dataset):
        share = getattr(ancestor, "tfddl_shard", None)
        if isinstance(share, Shard) and share.failure is not None:
            return share.failure
    return None


def clear_errors(dataset: Any) -> None:
    """Forgets what went wrong when the dataset was read before."""
    for ancestor in lineage.ancestors(dataset):
        share = getattr(ancestor, "tfddl_shard", None)
        if isinstance(share, Shard):
            share.failure = None


def repeats_shard(dataset: Any) -> bool:
    """Whether a dataset begins a share anew by itself, by ``repeat()``.

    It may do so before the epoch that `fit` is in has ended, sooner on one rank than on another:
    the ranks' passes would then have the orders of different epochs.
    """
    return any(
        lineage.dataset_type(ancestor) == "RepeatDataset" and has_shard(ancestor)
        for ancestor in lineage.ancestors(dataset)
    )


def has_shard(dataset: Any) -> bool:
    """Whether a dataset was made from a share, by whatever transformations."""
    return any(
        isinstance(getattr(a, "tfddl_shard", None), Shard) for a in lineage.ancestors(dataset)
    )
