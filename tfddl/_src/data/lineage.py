"""What a `tf.data.Dataset` was made from.

TensorFlow has no public way to ask, so this reads what the Python classes of tf.data (in 2.18 to
2.21: tensorflow/python/data/ops/) keep for themselves. Where one of these names is gone, a dataset
looks as if it were made from nothing: no shard is found then, so that training within an epoch
can't be resumed, and a dataset whose order differs between ranks isn't noticed. `tests` look at
each of them with the TensorFlow that is installed.
"""

from collections.abc import Iterator
from typing import Any


def inputs_of(dataset: Any) -> list[Any]:
    """The datasets that a transformation was applied to; none for a source of data."""
    inputs = getattr(dataset, "_inputs", None)  # dataset_ops.py: DatasetV2._inputs()
    return list(inputs()) if callable(inputs) else []


def ancestors(dataset: Any) -> Iterator[Any]:
    """The dataset and all that it was made from."""
    yield dataset
    for parent in inputs_of(dataset):
        yield from ancestors(parent)


def dataset_type(dataset: Any) -> str:
    """The transformation or source that made it, such as "MapDataset"."""
    return type(dataset).__name__.removeprefix("_")


def keeps_order(dataset: Any) -> bool:
    """Whether the transformation itself wasn't told that it need not."""
    # map_op.py and others: map(…, deterministic=…) leaves "true", "false" or "default".
    return getattr(dataset, "_deterministic", "default") != "false"


def seeds(dataset: Any) -> tuple[int, int]:
    """What a shuffle was seeded with; zeros where each process draws a seed of its own."""
    # shuffle_op.py: _ShuffleDataset, from random_seed.get_seed.
    return int(getattr(dataset, "_seed", 0)), int(getattr(dataset, "_seed2", 0))
