"""Measures collectives by size, and the sum in memory that they are compared with."""

import statistics
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

import tfddl
from tfddl.bench.config import Mode, Operation
from tfddl.bench.devices import wait_for_devices
from tfddl.bench.interleave import Rounds, Run, differences, flat, interleave
from tfddl.bench.results import CollectiveSpeed
from tfddl.bench.session import STRATEGY, Session
from tfddl.bench.stats import Spread

_PART_OF_ROUND = 0.1
"""Calls of one kind take such a part of the seconds that a round of training takes."""

_CHAIN = 4
"""Each more takes a good while to trace."""

_LONGEST_CHAINED = 2**20
_FLOAT_BYTES = 4
_GB = 1e9

Collective = Callable[[Operation, tf.Tensor], tf.Tensor]
"""Runs a collective on a tensor of shape (n,), float32, eagerly or while a graph is made."""

_Key = tuple[str, Mode | None]
"""Who runs it, and from where; the sum in memory is ("", None)."""

_SUM: _Key = ("", None)


def measure_collectives(session: Session) -> list[CollectiveSpeed]:
    """Measures all operations and sizes. All ranks must call it together."""
    speeds = []
    for operation in session.config.operations:
        for size in session.config.sizes:
            taken = _measure(session, operation, size)
            sum_s = statistics.median(flat(taken.pop(_SUM)))
            for (transport, mode), rounds in taken.items():
                assert mode is not None
                call_s = Spread.of(flat(rounds))
                speeds.append(
                    CollectiveSpeed(
                        workers=session.cluster.size,
                        operation=operation,
                        transport=transport,
                        num_bytes=size,
                        mode=mode,
                        call_s=call_s,
                        gb_per_s=size / call_s.median / _GB,
                        of_memory_sum=sum_s / call_s.median,
                    )
                )
    return speeds


def _measure(session: Session, operation: Operation, size: int) -> dict[_Key, Rounds]:
    collectives: dict[str, Collective] = {session.label: _with_tfddl}
    if session.compares:
        collectives[STRATEGY] = _with_strategy
    cases: dict[_Key, Run] = {_SUM: _memory_sum(size)}
    for transport, collective in collectives.items():
        for mode in Mode:
            cases[transport, mode] = _timed(collective, operation, mode, size)
    with session.progress.within(f"{operation} of {size} bytes"):
        return interleave(
            cases,
            rounds=session.config.rounds,
            seconds=session.config.round_seconds * _PART_OF_ROUND,
            progress=session.progress,
            meter=session.meters["collectives"],
        )


def _memory_sum(num_bytes: int) -> Run:
    """Two arrays are added into a third one, which is kept."""
    length = num_bytes // _FLOAT_BYTES
    a, b, total = (np.ones(length, np.float32) for _ in range(3))
    return _clocked(lambda: np.add(a, b, out=total), 1)


def _timed(collective: Collective, operation: Operation, mode: Mode, num_bytes: int) -> Run:
    """A collective on ones, run once to see that it does what it should.

    A graph with a small tensor has a chain of them, each of what the one before made, so that
    entering the graph from Python, which takes as long, isn't what is measured.

    Raises:
        AssertionError: What came out is wrong.
    """
    length = num_bytes // _FLOAT_BYTES
    chained = mode is Mode.GRAPH and num_bytes <= _LONGEST_CHAINED
    number = _CHAIN if chained else 1
    ones = tf.ones([length])

    def chain(tensor: tf.Tensor) -> tf.Tensor:
        for _ in range(number):
            tensor = collective(operation, tensor)[:length]
        return tensor

    call = tf.function(chain, autograph=False) if mode is Mode.GRAPH else chain
    ends = call(ones).numpy()[[0, length - 1]]
    right = float(tfddl.size()) ** number if operation is Operation.ALLREDUCE else 1.0
    assert np.allclose(ends, right, rtol=1e-5), f"{operation} made {ends} of ones, not {right}"

    def run() -> None:
        call(ones)
        wait_for_devices()

    return _clocked(run, number)


def _clocked(run: Callable[[], object], number: int) -> Run:
    """Times each run, which does a thing so many times."""

    def repeat(repetitions: int) -> list[float]:
        ends = [time.perf_counter()]
        for _ in range(repetitions):
            run()
            ends.append(time.perf_counter())
        return [s / number for s in differences(ends)]

    return repeat


def _with_tfddl(operation: Operation, tensor: tf.Tensor) -> tf.Tensor:
    if operation is Operation.ALLREDUCE:
        return tfddl.allreduce(tensor, "sum")
    if operation is Operation.ALLGATHER:
        return tfddl.allgather(tensor)
    return tfddl.broadcast(tensor, 0)


def _with_strategy(operation: Operation, tensor: tf.Tensor) -> tf.Tensor:
    def of_replica(value: tf.Tensor) -> tf.Tensor:
        replica = tf.distribute.get_replica_context()
        if operation is Operation.ALLREDUCE:
            return replica.all_reduce(tf.distribute.ReduceOp.SUM, value)
        if operation is Operation.ALLGATHER:
            return replica.all_gather(value, axis=0)
        # It has no broadcast for tensors.
        mine = value if tfddl.rank() == 0 else tf.zeros_like(value)
        return replica.all_reduce(tf.distribute.ReduceOp.SUM, mine)

    strategy = tfddl.strategy()
    with tf.device(strategy.extended.worker_devices[0]):
        placed = tf.identity(tensor)
    return strategy.run(of_replica, args=(placed,))
