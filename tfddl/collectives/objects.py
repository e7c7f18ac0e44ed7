"""Python objects between workers.

They are pickled: only ever between the processes of one job, which trust each other anyway.
"""

import pickle
from typing import Any

import numpy as np
import tensorflow as tf

from tfddl.collectives.operations import allgather, broadcast
from tfddl.runtime import current


def broadcast_object(obj: Any, root_rank: int = 0, *, name: str | None = None) -> Any:
    """Gives every rank a Python object of one. All ranks must call it together, eagerly.

    Args:
        obj: Anything that pickles; only the root's matters.
        root_rank: Whose.
        name: How messages call it.

    Returns:
        On the root the object itself, elsewhere a copy.

    Raises:
        DisagreementError: Ranks named different roots.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    runtime = current()
    if runtime.cluster.size == 1:
        return obj
    is_root = runtime.cluster.rank == root_rank
    words = _words(obj) if is_root else np.zeros(0, np.int32)
    length = int(broadcast(tf.constant(len(words), tf.int64), root_rank, name=name))
    mine = words if is_root else np.zeros(length, np.int32)
    arrived = broadcast(tf.constant(mine), root_rank, name=name)
    return obj if is_root else _object(arrived.numpy())


def allgather_object(obj: Any, *, name: str | None = None) -> list[Any]:
    """Gives every rank the objects of all. All ranks must call it together, eagerly.

    Args:
        obj: Anything that pickles.
        name: How messages call it.

    Returns:
        The objects, in rank order.

    Raises:
        NotInitializedError: `tfddl.init()` has not been called.
    """
    runtime = current()
    if runtime.cluster.size == 1:
        return [obj]
    words = _words(obj)
    lengths = allgather(tf.constant([len(words)], tf.int64), name=name).numpy()
    joined = allgather(tf.constant(words), name=name).numpy()
    return [_object(part) for part in np.split(joined, np.cumsum(lengths)[:-1])]


def _words(obj: Any) -> np.ndarray:
    """The pickled object as int32; trailing zeros don't disturb pickle."""
    data = pickle.dumps(obj)
    return np.frombuffer(data + b"\0" * (-len(data) % 4), np.int32)


def _object(words: np.ndarray) -> Any:
    return pickle.loads(words.tobytes())  # Written by `_words` in a process of the same job.
