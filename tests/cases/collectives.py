"""Cases of `tests/test_collectives.py`, run by every worker."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf

import tfddl
from tfddl.runtime import current


def exact_bits() -> list[bytes]:
    """Bits that a sum of floats would change: -0.0, NaN with a payload, the smallest numbers."""
    rank = tfddl.rank()
    bits = np.array([0x80000000, 0x7FC01234, 0x00000001, 0x7F7FFFFF], np.uint32)
    mine = bits.view(np.float32) if rank == 0 else np.ones(4, np.float32)
    return [tfddl.broadcast(tf.constant(mine)).numpy().tobytes()]


def objects() -> tuple[Any, Any]:
    rank = tfddl.rank()
    gathered = tfddl.allgather_object({"rank": rank, "text": "x" * (1000 * rank)})
    return tfddl.broadcast_object(["from", rank], root_rank=1), [
        (item["rank"], len(item["text"])) for item in gathered
    ]


def loops(steps: int) -> float:
    """Collectives in a loop of a graph, which `strategy.run` can't do."""

    @tf.function
    def many(x: tf.Tensor) -> tf.Tensor:
        for _ in tf.range(steps):
            x = tfddl.allreduce(x, "average") + tfddl.allreduce(x * 0.0 + 1.0, "sum")
        return x

    return float(many(tf.constant(float(tfddl.rank()))))


def grouped() -> list[Any]:
    """Mixed dtypes and sizes; one tensor larger than a pack."""
    rank = tfddl.rank()
    big = tf.fill([5_000_000], float(rank + 1))
    tensors = [tf.constant([1, 2]) + rank, big, tf.constant(0.5, tf.float64), tf.ones([2, 2])]
    outputs = tfddl.grouped_allreduce(tensors, "sum")
    assert [(o.dtype, o.shape) for o in outputs] == [(t.dtype, t.shape) for t in tensors]
    assert tfddl.grouped_allreduce([]) == []
    return [outputs[0].numpy().tolist(), float(outputs[1][-1]), float(outputs[2])]


def topology() -> tuple[int, ...]:
    tfddl.init()  # A second call does no harm.
    tfddl.barrier()
    return (
        tfddl.rank(),
        tfddl.size(),
        tfddl.local_rank(),
        tfddl.local_size(),
        tfddl.cross_rank(),
        tfddl.cross_size(),
        tf.config.threading.get_intra_op_parallelism_threads(),
        tfddl.strategy().num_replicas_in_sync,
    )


def strategy_still_works() -> float:
    """TensorFlow's own collectives, beside ours."""
    strategy = tfddl.strategy()

    @tf.function
    def total() -> tf.Tensor:
        context = tf.distribute.get_replica_context
        return strategy.run(lambda: context().all_reduce("SUM", tf.constant(1.0)))

    return float(total())


def absent_rank() -> str:
    """The last rank doesn't come."""
    if tfddl.rank() == tfddl.size() - 1:
        return "absent"
    try:
        tfddl.allreduce(tf.constant(1.0))
    except tf.errors.DeadlineExceededError as error:
        return str(error)
    return "no error"


def threads() -> int:
    """How many threads 100 operations leave behind."""

    def count() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    add = tf.function(lambda x: tfddl.allreduce(x))
    add(tf.ones([7]))
    before = count()
    for _ in range(50):
        add(tf.ones([7]))
        tfddl.allreduce(tf.ones([5]))
    return count() - before


def transport() -> str:
    return current().transport.name


def sent(n: int) -> int:
    """How many numbers this rank has given to TensorFlow's collectives, for a sum of n."""
    with mock.patch.object(tf.raw_ops, "CollectiveReduceV2", wraps=tf.raw_ops.CollectiveReduceV2):
        tfddl.allreduce(tf.ones([n]), "sum")
        calls = tf.raw_ops.CollectiveReduceV2.call_args_list
        return sum(int(tf.size(call.kwargs["input"])) for call in calls)
