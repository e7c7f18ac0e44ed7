"""Data that is replicated, the same arrays on all ranks, is sharded.

A script may give every rank the whole validation set, or each rank a part of it. Ranks find out
which by comparing digests of what they have.
"""

import hashlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfddl._src.collectives import DisplayName, allgather_object
from tfddl._src.data import PADDING_WEIGHT
from tfddl._src.runtime import current
from tfddl._src.sharding import shard_range
from tfddl._src.virtual_workers import own_workers
from tfddl.errors import UnsupportedError

DEFAULT_BATCH_SIZE = 32
"""Keras', where neither the data nor the call has one (ArrayDataAdapter)."""

_MAX_DIGEST_BYTES = 64 << 20
"""How much of an array goes into its digest: rows from all over it. A digest of all of a large one
would take seconds in each call."""


def is_replicated(data: Any, *, name: str) -> bool:
    """Whether all ranks have the same arrays. All ranks must call it together.

    Args:
        data: A structure of arrays or tensors with the same first dimension; anything else counts
            as the rank's own.
        name: What messages call it.
    """
    known = allgather_object(_digest(data), name=name)
    return known[0] is not None and known.count(known[0]) == len(known)


def num_examples(data: Any) -> int:
    """The first dimension of a structure of arrays."""
    return int(_leaves(data)[0].shape[0])


def shard_arrays(x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
    """This rank's shard of replicated arrays.

    A rank for which there is no example gets the first one as a padding example.

    Returns:
        ``x``, ``y``, ``sample_weight`` of the shard.

    Raises:
        UnsupportedError: There are fewer examples than ranks, and no ``y``.
    """
    if y is None and num_examples(x) < current().cluster.size:
        raise UnsupportedError(
            f"There are {num_examples(x)} examples for {current().cluster.size} workers; those "
            "that have none need padding examples, whose loss is weighted by 0, but there is no y. "
            "HINT: evaluate on fewer workers."
        )
    start, stop = own_range(num_examples(x))
    if start < stop:
        x, y, sample_weight = (take_rows(part, start, stop) for part in (x, y, sample_weight))
        return x, y, sample_weight
    weights = np.zeros(1, np.float32) if sample_weight is None else sample_weight
    padding = tf.nest.map_structure(lambda _: np.full(1, PADDING_WEIGHT), weights)
    return take_rows(x, 0, 1), take_rows(y, 0, 1), padding


def shard_validation_data(given: dict[str, Any]) -> None:
    """Shards the validation arrays of `fit`, if they are replicated.

    All ranks must call it together, also those that have got none.

    Args:
        given: The arguments of `fit`; changed.
    """
    data = given.get("validation_data")
    if not isinstance(data, tuple | list):
        data = ()
    if not is_replicated(data, name=DisplayName("validation data")):
        return  # Where only some ranks validate, the comparison of plans says so.
    batch_size = given.get("validation_batch_size") or given.get("batch_size")
    parts = take_steps(
        list(keras.utils.unpack_x_y_sample_weight(tuple(data))),
        steps=given.pop("validation_steps", None),
        batch_size=batch_size,
    )
    given["validation_data"] = shard_arrays(*parts)


def take_steps(parts: list[Any], *, steps: int | None, batch_size: int | None) -> list[Any]:
    """The examples of the first steps; all of them where no number of steps is given."""
    if steps is None:
        return parts
    end = steps * (batch_size or DEFAULT_BATCH_SIZE)
    return [take_rows(part, 0, end) for part in parts]


def own_range(num_examples: int) -> tuple[int, int]:
    """The half-open range of this rank's examples."""
    cluster = current().cluster
    return shard_range(num_examples, cluster.rank, cluster.size)


def own_ranges(num_examples: int, virtual_workers: int | None) -> list[tuple[int, int]]:
    """The half-open ranges of this rank's examples: one, or one for each of its virtual workers."""
    if virtual_workers is None:
        return [own_range(num_examples)]
    cluster = current().cluster
    own = own_workers(virtual_workers, cluster.rank, cluster.size)
    return [shard_range(num_examples, worker, virtual_workers) for worker in own]


def take_rows(data: Any, start: int, stop: int) -> Any:
    """The examples ``start`` to ``stop`` (half-open) of a structure of arrays, or of None."""
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
        sample = _sample(leaf)
        digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
        # The bytes of an object array are addresses, another in each process.
        is_object = sample.dtype == object
        digest.update(repr(sample.tolist()).encode() if is_object else sample.tobytes())
    return digest.hexdigest()


def _sample(array: Any) -> np.ndarray:
    """Rows from all over an array: the first, the last, and evenly spaced ones between."""
    array = np.asarray(array)
    row_bytes = max(1, array.itemsize * int(np.prod(array.shape[1:])))
    wanted = min(len(array), max(2, _MAX_DIGEST_BYTES // row_bytes))
    return array[np.linspace(0, len(array) - 1, wanted).astype(np.int64)]
