"""Measures collectives by size, and the sum in memory that they are compared with."""

import statistics
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

import tfddl
from tfddl.bench.config import FLOAT_BYTES, Operation
from tfddl.bench.interleave import Run, differences, flat, interleave
from tfddl.bench.results import STRATEGY, Labels, Row
from tfddl.bench.session import Session, wait_for_devices

PART_OF_ROUND = 0.1
"""Calls of one kind take such a part of the seconds that a round of training takes."""

_CHAIN, _LONGEST_CHAINED = 4, 2**20
"""More collectives in a graph take a good while to trace."""

_SUM = "sum in memory", "eager"

Collective = Callable[[Operation, tf.Tensor], tf.Tensor]
"""Runs a collective on a tensor of shape (n,), float32, eagerly or while a graph is made."""


def measure_collectives(session: Session) -> list[Row]:
    """Measures all operations and sizes. All ranks must call it together."""
    rows = []
    for operation in session.config.operations:
        for num_bytes in session.config.sizes:
            rows += _measure(session, operation, num_bytes)
    return rows


def _measure(session: Session, operation: Operation, num_bytes: int) -> list[Row]:
    collectives: dict[str, Collective] = {session.by: _with_tfddl}
    if session.compares:
        collectives[STRATEGY] = _with_strategy
    a, b, total = (np.ones(num_bytes // FLOAT_BYTES, np.float32) for _ in range(3))
    cases = {_SUM: _timed(lambda: np.add(a, b, out=total), 1)}
    for by, collective in collectives.items():
        for mode in ("graph", "eager"):
            cases[by, mode] = _made_ready(collective, operation, mode, num_bytes)
    seconds = session.config.round_seconds * PART_OF_ROUND
    taken = interleave(session, f"{operation} of {num_bytes} bytes", cases, seconds=seconds)
    sum_s = statistics.median(flat(taken.pop(_SUM)))
    size = session.cluster.size
    what: Labels = {"operation": str(operation), "workers": size, "bytes": num_bytes}
    rows = []
    for (by, mode), rounds in taken.items():
        call_s = statistics.median(flat(rounds))
        values = {
            "ms": 1e3 * call_s,
            "p95_ms": 1e3 * float(np.percentile(flat(rounds), 95)),
            "gb_per_s": num_bytes / call_s / 1e9,
            "ratio": sum_s / call_s,
        }
        rows.append(Row("collectives", {**what, "by": by, "mode": mode}, values))
    return rows


def _made_ready(collective: Collective, operation: Operation, mode: str, num_bytes: int) -> Run:
    """A collective on ones, run once to see that it does what it should.

    A graph with a small tensor has a chain of them, each of what the one before made, so that
    entering the graph from Python, which takes as long, isn't what is measured.
    """
    length = num_bytes // FLOAT_BYTES
    number = _CHAIN if mode == "graph" and num_bytes <= _LONGEST_CHAINED else 1
    ones = tf.ones([length])

    def chain(tensor: tf.Tensor) -> tf.Tensor:
        for _ in range(number):
            tensor = collective(operation, tensor)[:length]
        return tensor

    call = tf.function(chain, autograph=False) if mode == "graph" else chain
    ends = call(ones).numpy()[[0, length - 1]]
    right = float(tfddl.size()) ** number if operation is Operation.ALLREDUCE else 1.0
    assert np.allclose(ends, right, rtol=1e-5), f"{operation} made {ends} of ones, not {right}"
    return _timed(lambda: call(ones), number)


def _timed(call: Callable[[], object], number: int) -> Run:
    """Times calls, of which each does a thing so many times."""

    def run(repetitions: int) -> list[float]:
        ends = [time.perf_counter()]
        for _ in range(repetitions):
            call()
            wait_for_devices()
            ends.append(time.perf_counter())
        return [s / number for s in differences(ends)]

    return run


def _with_tfddl(operation: Operation, tensor: tf.Tensor) -> tf.Tensor:
    if operation is Operation.ALLREDUCE:
        return tfddl.allreduce(tensor, "sum")
    if operation is Operation.ALLGATHER:
        return tfddl.allgather(tensor)
    return tfddl.broadcast(tensor, 0)


def _with_strategy(operation: Operation, tensor: tf.Tensor) -> tf.Tensor:
    def of_replica(value: tf.Tensor) -> tf.Tensor:
        replica = tf.distribute.get_replica_context()
        if operation is Operation.ALLGATHER:
            return replica.all_gather(value, axis=0)
        if operation is Operation.BROADCAST and tfddl.rank():
            value = tf.zeros_like(value)  # It has no broadcast for tensors.
        return replica.all_reduce(tf.distribute.ReduceOp.SUM, value)

    strategy = tfddl.strategy()
    with tf.device(strategy.extended.worker_devices[0]):
        placed = tf.identity(tensor)
    return strategy.run(of_replica, args=(placed,))
