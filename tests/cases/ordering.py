"""Cases of `tests/test_ordering.py`, run by every worker: what depends on the order of ranks."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

import tfddl


def wrong(sets: Sequence[Sequence[int]], *, everywhere: bool) -> list[str]:
    """Every collective, over all ranks and over sets of them, eagerly and in a graph.

    Args:
        sets: The sets.
        everywhere: Whether to run all in graphs; otherwise, since to make one takes long where many
            processes do, two collectives over all ranks.

    Returns:
        What isn't as it would be in rank order.
    """
    found = []
    for ranks in [list(range(tfddl.size())), *sets]:
        if tfddl.rank() not in ranks:
            continue
        for way, run in (("eager", _run), ("graph", tf.function(_run, autograph=False))):
            names = _NAMES if everywhere or way == "eager" else _NAMES[:2]
            if names != _NAMES and len(ranks) < tfddl.size():
                continue
            results = {k: v.numpy().tolist() for k, v in run(ranks, names).items()}
            for name, expected in _expected(ranks).items():
                if name in names and results[name] != expected:
                    found.append(f"{name} among {ranks}, {way}: {results[name]}, not {expected}")
        objects = tfddl.allgather_object(tfddl.rank()) if len(ranks) == tfddl.size() else ranks
        if objects != ranks:
            found.append(f"objects: {objects}")
    return found


def _own(rank: int, n: int) -> Any:
    return 100 * rank + np.arange(n)


_NAMES = (
    "allgather",
    "alltoall",
    "allreduce",
    "allgather bfloat16",
    "uneven allgather",
    "broadcast",
    "uneven alltoall",
    "reducescatter",
)


def _run(ranks: Sequence[int], names: Sequence[str]) -> dict[str, tf.Tensor]:
    among: dict[str, Any] = {"process_set": tfddl.ProcessSet(ranks)}
    rank, size = tfddl.rank(), len(ranks)

    def own(n: int, dtype: Any = tf.float32) -> tf.Tensor:
        return tf.constant(_own(rank, n), dtype)

    splits = [(rank + other) % 3 for other in ranks]
    calls: dict[str, Callable[[], Any]] = {
        "allgather": lambda: tfddl.allgather(own(2), **among),
        "alltoall": lambda: tfddl.alltoall(own(size), **among),
        "allreduce": lambda: tfddl.allreduce(own(3), "sum", **among),
        "allgather bfloat16": lambda: tf.cast(
            tfddl.allgather(own(1, tf.bfloat16), **among), tf.int32
        ),
        "uneven allgather": lambda: tfddl.allgather(own(rank % 3, tf.int64), **among),
        "broadcast": lambda: tfddl.broadcast(own(2), ranks[-1], **among),
        "uneven alltoall": lambda: tfddl.alltoall(own(sum(splits)), splits, **among)[0],
        "reducescatter": lambda: tfddl.reducescatter(own(2 * size - 1), "sum", **among),
    }
    return {name: calls[name]() for name in names}


def _expected(ranks: Sequence[int]) -> dict[str, list[float]]:
    rank, size = tfddl.rank(), len(ranks)
    place = list(ranks).index(rank)
    sums = np.sum([_own(r, 2 * size - 1) for r in ranks], axis=0)
    start, stop = tfddl.shard_range(2 * size - 1, place, size)
    narrow = tf.bfloat16.as_numpy_dtype

    def part(sender: int) -> Any:
        splits = [(sender + other) % 3 for other in ranks]
        begin = sum(splits[:place])
        return _own(sender, sum(splits))[begin : begin + splits[place]]

    found = {
        "allreduce": np.sum([_own(r, 3) for r in ranks], axis=0),
        "allgather": np.concatenate([_own(r, 2) for r in ranks]),
        "allgather bfloat16": np.array([100 * r for r in ranks]).astype(narrow).astype(np.int32),
        "uneven allgather": np.concatenate([_own(r, r % 3) for r in ranks]),
        "broadcast": _own(ranks[-1], 2),
        "alltoall": np.array([_own(r, size)[place] for r in ranks]),
        "uneven alltoall": np.concatenate([part(r) for r in ranks]),
        "reducescatter": sums[start:stop],
    }
    return {name: values.tolist() for name, values in found.items()}
