"""Cases of `tests/test_collectives.py`, run by every worker."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import tfddl


def _modes(function: Any) -> dict[str, Any]:
    return {"eager": function, "graph": tf.function(function)}


def reductions(dtypes: list[str], ops: list[str]) -> dict[str, Any]:
    """Rank-dependent values, eagerly and in one graph."""
    values = {d: tf.cast(tf.constant([[1, 2, 3], [4, 5, 6]]) + tfddl.rank(), d) for d in dtypes}

    def reduce_all() -> dict[str, tf.Tensor]:
        return {f"{d} {op}": tfddl.allreduce(v, op) for d, v in values.items() for op in ops}

    found = {}
    for mode, reduce in _modes(reduce_all).items():
        for name, result in reduce().items():
            assert result.dtype == name.split()[0]
            assert result.shape == (2, 3)
            found[f"{name} {mode}"] = tf.cast(result, tf.float64).numpy()
    return found


def shapes() -> list[tuple[int, ...]]:
    """Scalars, empty tensors, and shapes that a graph knows only when it runs."""
    tensors = [tf.constant(2.0), tf.zeros([0]), tf.zeros([3, 0]), tf.ones([1, 2, 3])]
    found = [tuple(tfddl.allreduce(t, "sum").shape) for t in tensors]
    dynamic = tf.function(
        lambda t: tfddl.allreduce(t, "sum"), input_signature=[tf.TensorSpec([None, 2])]
    )
    for n in (3, 0, 1):
        total = dynamic(tf.ones([n, 2]))
        assert (total.numpy() == tfddl.size()).all()
        found.append(tuple(total.shape))
    return found


def gathers(dtypes: list[str]) -> dict[str, Any]:
    """First dimensions that differ, one of them 0."""
    rank = tfddl.rank()
    mine = {d: tf.cast(tf.fill([rank * 2, 3], rank), d) for d in dtypes}

    def gather_all() -> dict[str, tf.Tensor]:
        return {d: tfddl.allgather(value) for d, value in mine.items()}

    found = {}
    for mode, gather in _modes(gather_all).items():
        for name, result in gather().items():
            assert result.dtype == name
            found[f"{name} {mode}"] = tf.cast(result, tf.float64).numpy()
    return found


def broadcasts(dtypes: list[str]) -> dict[str, Any]:
    mine = {d: tf.cast(tf.constant([[0, 1], [2, 3]]) + 10 * tfddl.rank(), d) for d in dtypes}
    roots = range(tfddl.size())

    def spread_all() -> dict[str, tf.Tensor]:
        return {f"{d} {r}": tfddl.broadcast(v, r) for d, v in mine.items() for r in roots}

    found = {}
    for mode, spread in _modes(spread_all).items():
        for name, result in spread().items():
            assert result.dtype == name.split()[0]
            found[f"{name} {mode}"] = tf.cast(result, tf.float64).numpy()
    return found


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


def gradients() -> dict[str, list[float]]:
    """d(sum over ranks of w_r * f(x)) / dx on every rank, eagerly and in a graph."""
    rank, size = tfddl.rank(), tfddl.size()
    found = {}
    cases = {
        "sum": lambda x: tfddl.allreduce(x, "sum"),
        "average": tfddl.allreduce,
        "max": lambda x: tfddl.allreduce(x, "max"),
        "allgather": tfddl.allgather,
        "broadcast": lambda x: tfddl.broadcast(x, size - 1),
    }
    for name, operation in cases.items():

        def derivative(x: tf.Tensor, operation: Any = operation) -> tf.Tensor:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = operation(x)
                weights = tf.range(1.0, tf.cast(tf.size(y), tf.float32) + 1) * (rank + 1.0)
                loss = tf.reduce_sum(weights * y)
            return tape.gradient(loss, x)

        for mode, function in _modes(derivative).items():
            x = tf.constant([1.0, 2.0]) * (rank + 1.0)
            found[f"{name} {mode}"] = function(x).numpy().tolist()
    return found


def second_order() -> list[float]:
    x = tf.constant([1.0, 2.0]) + tfddl.rank()
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            loss = tf.reduce_sum(tfddl.allreduce(x**3, "sum"))
        first = inner.gradient(loss, x)
    return outer.gradient(first, x).numpy().tolist()


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


def disagree(what: str) -> tuple[str, float]:
    """Ranks that differ, eagerly: an error on every rank, and the next operation works."""
    rank = tfddl.rank()
    odd = rank == tfddl.size() - 1
    try:
        if what == "shape":
            tfddl.allreduce(tf.zeros([3 if odd else 2]))
        elif what == "dtype":
            tfddl.allreduce(tf.zeros([2], tf.float64 if odd else tf.float32))
        elif what == "op":
            tfddl.allreduce(tf.zeros([2]), "sum" if odd else "max", name="loss")
        elif what == "root":
            tfddl.broadcast(tf.zeros([2]), root_rank=int(odd))
        elif what == "kind":
            tfddl.allgather(tf.zeros([2])) if odd else tfddl.barrier()
        elif what == "inner":
            tfddl.allgather(tf.zeros([2, 3 if odd else 4]))
    except tfddl.errors.DisagreementError as error:
        message = str(error)
    else:
        message = "no error"
    return message, float(tfddl.allreduce(tf.constant(1.0), "sum"))


def disagree_in_graph() -> tuple[str, str, float]:
    odd = tfddl.rank() == tfddl.size() - 1

    @tf.function
    def reduce(x: tf.Tensor) -> tf.Tensor:
        return tfddl.allreduce(x, "sum", name="graph")

    try:
        reduce(tf.zeros([5 if odd else 4]))
    except tf.errors.OpError as error:
        kind, message = type(error).__name__, error.message
    else:
        kind, message = "no error", ""
    return kind, message, float(tfddl.allreduce(tf.constant(1.0), "sum"))


def refusals() -> list[str]:
    messages = []
    attempts: tuple[Any, ...] = (
        lambda: tfddl.allgather(tf.constant(1.0)),
        lambda: tfddl.broadcast(tf.zeros([1]), root_rank=99),
        lambda: tfddl.allreduce(tf.constant(["a"])),
        lambda: tfddl.allreduce(tf.constant([True]), "sum"),
        lambda: tfddl.allreduce(tf.zeros([1]), "mean"),
    )
    for wrong in attempts:
        try:
            wrong()
        except ValueError as error:
            messages.append(str(error))
    return messages


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
