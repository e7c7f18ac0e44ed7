"""Python objects between workers.

They are pickled: only ever between the processes of one job, which trust each other anyway.
"""

import pickle
from typing import Any

import numpy as np
import tensorflow as tf

from tfddl._src.collectives.allgather import allgather
from tfddl._src.collectives.broadcast import broadcast
from tfddl._src.collectives.process_sets import ProcessSet, group_of


def broadcast_object(
    obj: Any,
    root_rank: int = 0,
    *,
    name: str | None = None,
    process_set: ProcessSet | None = None,
) -> Any:
    """Gives every rank a Python object of one. All ranks must call it together, eagerly.

    Args:
        obj: Anything that pickles; only the root's matters.
        root_rank: Whose: a rank of the job, not its place in the process set.
        name: How messages call it.
        process_set: Between which ranks; without it, all.

    Returns:
        On the root the object itself, elsewhere a copy.

    Raises:
        DisagreementOpError: Ranks named different roots.
        WrongArgumentError: There is no such rank in the set.
        UnsupportedError: A process set that this rank isn't in.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    group = group_of(process_set)
    is_root = group.ranks[group.rank] == root_rank
    words = _words(obj) if is_root else np.zeros(0, np.int32)
    number = tf.constant(len(words), tf.int64)
    length = int(broadcast(number, root_rank, name=name, process_set=process_set))
    mine = words if is_root else np.zeros(length, np.int32)
    arrived = broadcast(tf.constant(mine), root_rank, name=name, process_set=process_set)
    return obj if is_root else _object(arrived.numpy())


def allgather_object(
    obj: Any, *, name: str | None = None, process_set: ProcessSet | None = None
) -> list[Any]:
    """Gives every rank the objects of all. All ranks must call it together, eagerly.

    Args:
        obj: Anything that pickles.
        name: How messages call it.
        process_set: Between which ranks; without it, all.

    Returns:
        The objects, in rank order.

    Raises:
        UnsupportedError: A process set that this rank isn't in.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    if group_of(process_set).size == 1:
        return [obj]
    words = _words(obj)
    length = tf.constant([len(words)], tf.int64)
    lengths = allgather(length, name=name, process_set=process_set).numpy()
    joined = allgather(tf.constant(words), name=name, process_set=process_set).numpy()
    return [_object(part) for part in np.split(joined, np.cumsum(lengths)[:-1])]


def _words(obj: Any) -> np.ndarray:
    """The pickled object as int32; trailing zeros don't disturb pickle."""
    # int32, which every process group carries as it is: RING would widen bytes to it, and send four
    # times as many. pickle stops at its own end, whatever follows.
    data = pickle.dumps(obj)
    return np.frombuffer(data + b"\0" * (-len(data) % 4), np.int32)


def _object(words: np.ndarray) -> Any:
    return pickle.loads(words.tobytes())  # Written by `_words` in a process of the same job.
