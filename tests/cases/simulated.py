"""What collectives compute, by NumPy in one process that has all ranks' values.

Every function takes the values of all ranks, and gives what each rank gets.
"""

from collections.abc import Callable, Sequence

import numpy as np

from tfddl import shard_range

Arrays = list[np.ndarray]


def allreduce(xs: Arrays, op: str, *, pre: float = 1.0, post: float = 1.0) -> Arrays:
    stacked = np.stack(xs) * pre if pre != 1.0 else np.stack(xs)
    reduced: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "sum": lambda x: x.sum(0),
        "average": _mean,
        "min": lambda x: x.min(0),
        "max": lambda x: x.max(0),
        "product": lambda x: x.prod(0),
    }
    total = reduced[op](stacked)
    return [total * post if post != 1.0 else total] * len(xs)


def _mean(stacked: np.ndarray) -> np.ndarray:
    if stacked.dtype.kind in "iu":
        total = stacked.sum(0)
        return np.sign(total) * (np.abs(total) // len(stacked))  # Cut off.
    return stacked.sum(0) / len(stacked)


def allgather(xs: Arrays) -> Arrays:
    return [np.concatenate(xs)] * len(xs)


def broadcast(xs: Arrays, root: int) -> Arrays:
    return [xs[root]] * len(xs)


def alltoall(xs: Arrays, splits: Sequence[Sequence[int]]) -> Arrays:
    """`splits[i][j]`: how many rows rank i sends to rank j."""
    parts = [np.split(x, np.cumsum(row)[:-1]) for x, row in zip(xs, splits, strict=True)]
    return [np.concatenate([sent[rank] for sent in parts]) for rank in range(len(xs))]


def reducescatter(xs: Arrays, op: str, *, pre: float = 1.0, post: float = 1.0) -> Arrays:
    total = allreduce(xs, op, pre=pre, post=post)[0]
    cuts = [shard_range(len(total), rank, len(xs)) for rank in range(len(xs))]
    return [total[start:stop] for start, stop in cuts]
