"""Cases of `tests/test_chunking.py`, run by every worker."""

import hashlib
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf

import tfddl
from tfddl._src.runtime import current

_MANY = (3_000_001, 7, 0, 600_000, 600_001, 5)
"""Elements of tensors that need several pieces, or share one."""


def _data(dtype: str) -> list[tf.Tensor]:
    rng = np.random.default_rng(tfddl.rank())
    return [tf.constant(rng.normal(size=n) * 100, dtype) for n in _MANY]


def sums(dtypes: list[str]) -> tuple[list[float], str]:
    """Eagerly, in a graph, and in a loop of one; how far they are off, and all bits."""
    off, digest = [], hashlib.sha256()
    for dtype in dtypes:
        data = _data(dtype)
        expected = [
            sum(parts)
            for parts in zip(*tfddl.allgather_object([t.numpy() for t in data]), strict=True)
        ]
        for way in (_plainly, _in_a_graph, _in_a_loop_of_one):
            found = way(data)
            assert [t.shape for t in found] == [t.shape for t in data]
            for total, right in zip(found, expected, strict=True):
                digest.update(total.numpy().tobytes())
                off.append(float(np.abs(total.numpy() - right).max(initial=0.0)))
    return off, digest.hexdigest()


def others() -> list[bool]:
    """What isn't a sum, cut as well: whether the results are right."""
    rank, size = tfddl.rank(), tfddl.size()
    n = 2_500_000
    mine = tf.range(n) * size + rank
    gathered = tfddl.allgather(mine).numpy().reshape(size, n)
    told = tfddl.broadcast(tf.cast(mine, tf.float32), 1).numpy()
    part = tfddl.reducescatter(tf.tile(mine, [size]), "sum").numpy()
    swapped = tfddl.alltoall(tf.tile(mine, [size])).numpy().reshape(size, n)
    everyone = np.arange(n) * size
    return [
        all((gathered[r] == everyone + r).all() for r in range(size)),
        bool((told == (everyone + 1).astype(np.float32)).all()),
        bool((part == everyone * size + sum(range(size))).all()),
        all((swapped[r] == everyone + r).all() for r in range(size)),
    ]


def subsets() -> list[float]:
    """Sums over all ranks and over two of them, one after the other in one graph."""
    pair = tfddl.ProcessSet([0, 1])
    x = tf.fill([2_000_000], float(1 + tfddl.rank()))

    @tf.function
    def both() -> list[tf.Tensor]:
        found = [tfddl.allreduce(x, "sum")]
        if tfddl.rank() < 2:
            found.append(tfddl.allreduce(x * 10.0, "sum", process_set=pair))
        return [*found, tfddl.allreduce(x, "max")]

    return [float(total[-1]) for total in both()]


def at_once() -> dict[str, Any]:
    """How many of TensorFlow's ops a sum of 16 MB takes, and whether all operations have ended."""
    op = tf.raw_ops.CollectiveReduceV2
    with mock.patch.object(tf.raw_ops, "CollectiveReduceV2", wraps=op) as launched:
        tfddl.allreduce(tf.ones([4 * 2**20]), "sum")
    begun, ended = current().instrumentation.counts()
    return {"launched": launched.call_count, "open": begun - ended}


def _plainly(data: list[tf.Tensor]) -> list[tf.Tensor]:
    return tfddl.grouped_allreduce(data, "sum")


def _in_a_loop(data: list[tf.Tensor]) -> list[tf.Tensor]:
    totals = [tf.zeros_like(t) for t in data]
    for _ in tf.range(2):
        totals = tfddl.grouped_allreduce(data, "sum")
    return totals


# Made once for several runs.
_in_a_graph = tf.function(_plainly)
_in_a_loop_of_one = tf.function(_in_a_loop)


def known_and_unknown() -> list[float]:
    """How far off six sums are, of two of which no size is known when the graph is made."""
    lengths = [3, 40, 30_000, 5, 1, 20_000]
    mine = [(tfddl.rank() + 1) * tf.range(n, dtype=tf.float32) for n in lengths]

    @tf.function(input_signature=[tf.TensorSpec([n]) for n in (3, None, None, 5, 1, 20_000)])
    def summed(*tensors: tf.Tensor) -> list[tf.Tensor]:
        return list(tfddl.grouped_allreduce(tensors, "sum"))

    factor = tfddl.size() * (tfddl.size() + 1) / 2
    return [
        float(tf.reduce_max(tf.abs(total - factor * tf.range(n, dtype=tf.float32))))
        for total, n in zip(summed(*mine), lengths, strict=True)
    ]
