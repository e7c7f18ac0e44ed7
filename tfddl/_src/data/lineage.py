"""What a `tf.data.Dataset` was made from.

TensorFlow has no public way to ask. Where its private one changes, a dataset looks as if it were
made from nothing.
"""

from collections.abc import Iterator
from typing import Any


def inputs_of(dataset: Any) -> list[Any]:
    """The datasets that a transformation was applied to."""
    inputs = getattr(dataset, "_inputs", None)
    return list(inputs()) if callable(inputs) else []


def ancestors(dataset: Any) -> Iterator[Any]:
    """The dataset and all that it was made from."""
    yield dataset
    for parent in inputs_of(dataset):
        yield from ancestors(parent)


def dataset_type(dataset: Any) -> str:
    """What made it: "MapDataset"."""
    return type(dataset).__name__.removeprefix("_")


def keeps_order(dataset: Any) -> bool:
    """Whether the transformation itself wasn't told that it need not."""
    # What map(…, deterministic=…) leaves: "true", "false" or "default".
    return getattr(dataset, "_deterministic", "default") != "false"


def seeds(dataset: Any) -> tuple[int, int]:
    """What a shuffle was seeded with; zeros where it draws another seed in every process."""
    return int(getattr(dataset, "_seed", 0)), int(getattr(dataset, "_seed2", 0))
