"""From a dataset that the user transformed further back to its share."""

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfddl.data.share import Share
from tfddl.errors import DataError

# Each makes one element out of one. Some TensorFlows name them with an underscore.
_ONE_TO_ONE = {
    "AssertCardinalityDataset",
    "MapDataset",
    "OptionsDataset",
    "ParallelMapDataset",
    "PrefetchDataset",
}


def find_share(dataset: Any) -> Share | None:
    """The share that a dataset was made from, one batch for each of the share's batches.

    Looks through map, prefetch, with_options and assert_cardinality. After anything else (shuffle,
    batch, repeat, take, …), or where TensorFlow doesn't keep the order (``deterministic=False``),
    a position in the share says nothing about the dataset.

    Returns:
        None where there is none, or where TensorFlow doesn't tell what a dataset was made from.
    """
    if not isinstance(dataset, tf.data.Dataset) or dataset.options().deterministic is False:
        return None
    while not isinstance(getattr(dataset, "tfddl_share", None), Share):
        kind = type(dataset).__name__.removeprefix("_")
        inputs = _inputs(dataset)
        # What map(…, deterministic=…) leaves: "true", "false" or "default".
        ordered = getattr(dataset, "_deterministic", "default") != "false"
        if kind not in _ONE_TO_ONE or not ordered or len(inputs) != 1:
            return None
        dataset = inputs[0]
    return dataset.tfddl_share


def find_failure(dataset: Any) -> DataError | None:
    """What went wrong when any share that a dataset was made from was read, if anything has."""
    shares = (getattr(made_from, "tfddl_share", None) for made_from in ancestors(dataset))
    failures = (share.failure for share in shares if share is not None)
    return next((failure for failure in failures if failure is not None), None)


def ancestors(dataset: Any) -> Iterator[Any]:
    """The dataset and all that it was made from, as far as TensorFlow tells."""
    yield dataset
    for made_from in _inputs(dataset):
        yield from ancestors(made_from)


def _inputs(dataset: Any) -> list[Any]:
    inputs = getattr(dataset, "_inputs", None)
    return list(inputs()) if callable(inputs) else []
