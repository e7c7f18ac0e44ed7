"""Cases of `tests/test_collectives.py`, run by every worker."""

import collections
import os
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf

import tfddl
from tfddl._src.runtime import current


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


def order() -> list[str]:
    """Calls in branches, loops and functions of a graph, each ready early on one rank, late on the
    other; none needs another's result. What is wrong."""
    nested = _Nested()
    wrong = []
    for pattern in ("call branch call", "function branch loop function", "loop call loop", "both"):
        kinds = pattern.split()
        graph = tf.function(lambda x, flag, kinds=kinds: nested.all(kinds, x, flag))
        for flag in (True, False, True):
            try:
                graph(tf.ones([256, 256]), tf.constant(flag))
            except tf.errors.OpError as error:
                wrong.append(f"{pattern}: {error.message}")
    return wrong


class _Nested:
    """Calls that differ in their shapes, so that ranks that come in another order say so."""

    def __init__(self) -> None:
        self._number = 0

    def all(self, kinds: list[str], x: tf.Tensor, flag: tf.Tensor) -> tf.Tensor:
        return tf.add_n([getattr(self, kind)(x, flag) for kind in kinds])

    def call(self, x: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
        self._number += 1
        is_late = (self._number + tfddl.rank()) % 2
        for _ in range(6 * is_late):
            x = tf.linalg.matmul(x, x) / 256.0
        return tfddl.allreduce(tf.fill([self._number], tf.reduce_mean(x)), "sum")[0]

    def branch(self, x: tf.Tensor, flag: tf.Tensor) -> tf.Tensor:
        def two() -> tf.Tensor:
            return self.call(x, flag) + self.call(x, flag)

        return tf.cond(flag, lambda: self.call(x, flag), two)

    def function(self, x: tf.Tensor, flag: tf.Tensor) -> tf.Tensor:
        return tf.function(lambda: self.call(x, flag) + self.call(x, flag))()

    def loop(self, x: tf.Tensor, flag: tf.Tensor) -> tf.Tensor:
        """The number of rounds doesn't wait for the calls."""

        def body(i: tf.Tensor) -> tuple[tf.Tensor]:
            self.call(x, flag)
            return (i + 1,)

        return tf.cast(tf.while_loop(lambda i: i < 3, body, [tf.constant(0)])[0], tf.float32)

    def both(self, x: tf.Tensor, flag: tf.Tensor) -> tf.Tensor:
        def body(i: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return i + 1, total + self.branch(x, flag == tf.equal(i % 2, 0))

        return tf.while_loop(lambda i, _: i < 3, body, [tf.constant(0), tf.constant(0.0)])[1]


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
    # A second call does no harm.
    tfddl.init(collective=os.environ.get("TFDDL_TEST_COLLECTIVE", "auto"))
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


def group_name() -> str:
    return current().process_group.name


def launched() -> int:
    """How many operations a sum takes."""
    before, _ = current().instrumentation.counts()
    tfddl.allreduce(tf.ones([3]), "sum")
    return current().instrumentation.counts()[0] - before


def sent(n: int) -> int:
    """How many numbers this rank has given to TensorFlow's collectives, for a sum of n."""
    with mock.patch.object(tf.raw_ops, "CollectiveReduceV2", wraps=tf.raw_ops.CollectiveReduceV2):
        tfddl.allreduce(tf.ones([n]), "sum")
        calls = tf.raw_ops.CollectiveReduceV2.call_args_list
        return sum(int(tf.size(call.kwargs["input"])) for call in calls)


def _sum_of_all(tensors: list[tf.Tensor]) -> tf.Tensor:
    return tf.add_n([tf.reduce_sum(tensor) for tensor in tensors])


def in_place() -> list[str]:
    """What TensorFlow's operations may do to a result that other ranks read; what is wrong.

    On rank 0, a result goes through whatever would rather write to its input than to new memory;
    the other ranks only keep theirs.
    """
    expected = float(sum(range(1, tfddl.size() + 1)))
    variable = tf.Variable(tf.zeros([100_000]))
    arrays = tf.Variable(tf.zeros([100_000]))

    @tf.function
    def arrive() -> tf.Tensor:
        return tfddl.allreduce(tf.fill([100_000], tfddl.rank() + 1.0), "sum")

    @tf.function
    def use() -> tuple[tf.Tensor, tf.Tensor]:
        total = arrive()
        if tfddl.rank() == 0:
            used = [
                tf.nn.relu(-tf.reshape(total, [1000, 100])),
                tf.clip_by_value(tf.exp(total * 0.0), 5.0, 6.0),
                tf.tensor_scatter_nd_update(total, [[0]], [-1.0]),
                tf.raw_ops.InplaceAdd(x=tf.raw_ops.DeepCopy(x=total), i=[0], v=[1.0]),
                tf.add_n([total, total, total]),
                tf.cumsum(total),
            ]
            variable.assign(total)
            variable.assign_add(tf.ones([100_000]))
            variable.scatter_nd_update([[1]], [-7.0])
            arrays.assign(total)
            arrays.assign_sub(variable)
            return total, _sum_of_all(used)
        return total, tf.constant(0.0)

    @tf.function
    def use_slices() -> tuple[list[tf.Tensor], tf.Tensor]:
        """Each is all that is left of a result: so it may be written to."""
        totals = [arrive() for _ in range(4)]
        totals.append(tfddl.broadcast(tf.fill([100_000], expected), 0))
        if tfddl.rank() > 0:
            return totals, tf.constant(0.0)
        parts = [
            totals[0][64:],
            tf.split(totals[1], [128, 100_000 - 128])[1],
            tf.unstack(tf.reshape(totals[2], [2, 50_000]))[1],
            tf.reshape(totals[3], [2, 50_000])[0],
            totals[4][64:],
        ]
        used = _sum_of_all([tf.nn.relu(-part) for part in parts])
        return [tf.fill([100_000], expected)] * len(totals), used

    kept = [use()[0] for _ in range(3)]
    for _ in range(2):
        kept += use_slices()[0]
    if tfddl.rank() == 0:  # And eagerly.
        for total in kept:
            variable.assign(total)
            variable.assign_add(total)
            array = total.numpy()
            array[:] = 0.0
    tfddl.barrier()
    return [
        f"result {i}: {set(total.numpy().tolist())}"
        for i, total in enumerate(kept)
        if set(total.numpy().tolist()) != {expected}
    ]


def named_in_threads(count: int, rounds: int) -> dict[str, int]:
    """Several threads call by names of their own, each rank in another order.

    Returns:
        How many calls were "right", "wrong" or found that ranks "differ".
    """
    rank, found = tfddl.rank(), collections.Counter[str]()
    order = np.random.default_rng(rank).permutation(count).tolist()

    def call(number: int) -> None:
        for _ in range(rounds):
            x = tf.fill([2 + number % 2], float(100 * number + rank))
            try:
                total = tfddl.allreduce(x, "sum", name=f"thread {number}").numpy()
            except tfddl.errors.DisagreementError:
                found["differ"] += 1
                continue
            expected = tfddl.size() * 100 * number + sum(range(tfddl.size()))
            found["right" if (total == expected).all() else "wrong"] += 1

    running = [threading.Thread(target=call, args=(number,)) for number in order]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    tfddl.barrier()
    return dict(found)
