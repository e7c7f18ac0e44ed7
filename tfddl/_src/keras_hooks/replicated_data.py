"""Arrays that all ranks have got alike are the whole data, and are dealt out.

A script may give every rank the whole validation set, or each rank a part of it. Which of both is
told by looking: ranks compare digests of what they have.
"""

import hashlib
from typing import Any

import numpy as np
import tensorflow as tf

from tfddl._src.collectives import allgather_object
from tfddl._src.data import PADDING_WEIGHT
from tfddl._src.runtime import current
from tfddl._src.sharding import shard_range
from tfddl.errors import UnsupportedError

_BATCH_SIZE = 32  # Keras' default.
_BYTES = 64 << 20
"""Of each array that go into its digest, in rows from all over it."""


def is_replicated(data: Any, *, name: str) -> bool:
    """Whether all ranks have the same arrays. All ranks must call it together.

    Args:
        data: A structure of arrays or tensors with the same first dimension; anything else is
            the rank's own.
        name: How messages call it.
    """
    known = allgather_object(_digest(data), name=name)
    return known[0] is not None and known.count(known[0]) == len(known)


def num_examples(data: Any) -> int:
    """How many examples arrays have."""
    return int(_leaves(data)[0].shape[0])


def shard_arrays(x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
    """This rank's share of whole arrays.

    A rank for which there is none gets the first example, with a weight that doesn't count.

    Returns:
        ``x``, ``y``, ``sample_weight`` of the share.

    Raises:
        UnsupportedError: There are fewer examples than ranks, and no ``y`` to weigh.
    """
    if y is None and num_examples(x) < current().cluster.size:
        raise UnsupportedError(
            f"There are {length(x)} examples for {current().cluster.size} workers, and no y whose "
            "loss could be weighed for those that have none. Evaluate on fewer workers."
        )
    start, stop = own_range(num_examples(x))
    if start < stop:
        x, y, sample_weight = (take_rows(part, start, stop) for part in (x, y, sample_weight))
        return x, y, sample_weight
    weights = np.zeros(1, np.float32) if sample_weight is None else sample_weight
    absent = tf.nest.map_structure(lambda _: np.full(1, PADDING_WEIGHT), weights)
    return take_rows(x, 0, 1), take_rows(y, 0, 1), absent


def take_steps(parts: list[Any], *, steps: int | None, batch_size: int | None) -> list[Any]:
    """Where only some steps are asked for, the examples of those."""
    if steps is None:
        return parts
    end = steps * (batch_size or _BATCH_SIZE)
    return [take_rows(part, 0, end) for part in parts]


def own_range(num_examples: int) -> tuple[int, int]:
    """The half-open range of this rank's examples."""
    cluster = current().cluster
    return shard_range(num_examples, cluster.rank, cluster.size)


def take_rows(data: Any, start: int, stop: int) -> Any:
    """Some of the examples of arrays."""
    return tf.nest.map_structure(lambda leaf: None if leaf is None else leaf[start:stop], data)


def _leaves(data: Any) -> list[Any]:
    return [leaf for leaf in tf.nest.flatten(data) if leaf is not None]


def _digest(data: Any) -> str | None:
    leaves = _leaves(data)
    if not leaves or not all(isinstance(leaf, np.ndarray | tf.Tensor) for leaf in leaves):
        return None
    if any(not leaf.shape for leaf in leaves) or len({leaf.shape[0] for leaf in leaves}) > 1:
        return None
    if not leaves[0].shape[0]:
        return None
    digest = hashlib.blake2b(digest_size=16)
    for leaf in leaves:
        some = _sample(leaf)
        digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
        digest.update(some.tobytes() if some.dtype != object else repr(some.tolist()).encode())
    return digest.hexdigest()


def _sample(array: Any) -> np.ndarray:
    """Rows from all over an array, not more than a digest can take in quickly."""
    array = np.asarray(array)
    row_bytes = max(1, array.itemsize * int(np.prod(array.shape[1:])))
    wanted = min(len(array), max(2, _BYTES // row_bytes))
    some: np.ndarray = array[np.linspace(0, len(array) - 1, wanted).astype(np.int64)]
    return some
