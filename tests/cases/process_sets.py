"""Cases of `tests/test_process_sets.py`, run by every worker."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

import tfddl


def disjoint(ranks: list[list[int]]) -> list[Any]:
    """Every operation in the rank's own set, while the other sets do as they please."""
    sets = [tfddl.ProcessSet(members) for members in ranks]
    mine = next(process_set for process_set in sets if process_set.included())
    rank = float(tfddl.rank())
    root = mine.ranks[-1]
    for _ in range(5 * mine.ranks[0]):  # Sets don't keep step with each other.
        tfddl.barrier(process_set=mine)

    def run() -> list[tf.Tensor]:
        both = tf.constant([rank, -rank])
        return [
            tfddl.allreduce(rank, process_set=mine),
            tfddl.allreduce(rank, "sum", process_set=tfddl.global_process_set),
            tfddl.allgather([rank], process_set=mine),
            tfddl.broadcast(rank, root, process_set=mine),
            tfddl.alltoall(tf.repeat(rank, mine.size()), process_set=mine),
            tfddl.reducescatter(tf.repeat(rank, mine.size()), "sum", process_set=mine),
            *tfddl.grouped_allreduce([rank, both[0]], "max", process_set=mine),
            *tfddl.grouped_allgather([both], process_set=mine),
        ]

    eager = [result.numpy().tolist() for result in run()]
    assert eager == [result.numpy().tolist() for result in tf.function(run)()]
    variable = tf.Variable(rank)
    tfddl.broadcast_variables([variable], root, process_set=mine)
    return [
        *eager,
        float(variable),
        tfddl.broadcast_object(("from", rank), root, process_set=mine),
        tfddl.allgather_object({"rank": rank}, process_set=mine),
        (mine.rank(), mine.size()),
    ]


def overlapping() -> list[Any]:
    """Sets that share ranks, in one program order, within a loop of a graph."""
    rank = tfddl.rank()
    sets = [tfddl.ProcessSet(ranks) for ranks in ([0, 1], [1, 2], [2, 0], [0, 1, 2])]

    def run(x: tf.Tensor) -> tf.Tensor:
        for process_set in sets:
            if process_set.included():
                x += tfddl.allreduce(x, "sum", process_set=process_set)
        return x

    @tf.function
    def loop(x: tf.Tensor) -> tf.Tensor:
        for _ in tf.range(3):
            x = run(x)
        return x

    start = tf.constant(float(rank + 1))
    eager = start
    for _ in range(3):
        eager = run(eager)
    return [float(eager), float(loop(start))]


def gradients() -> list[float]:
    """Only the members' losses count."""
    found = []
    process_set = tfddl.ProcessSet([0, 2])
    if process_set.included():
        x = tf.constant(tfddl.rank() + 1.0)
        operations: tuple[Callable[[tf.Tensor], tf.Tensor], ...] = (
            lambda x: tfddl.allreduce(x, process_set=process_set),
            lambda x: tfddl.broadcast(x, 2, process_set=process_set),
            lambda x: tfddl.allgather(x[tf.newaxis], process_set=process_set)[1],
        )
        for operation in operations:
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = operation(x) * (tfddl.rank() + 1.0)
            found.append(float(tape.gradient(loss, x)))
    return found


def refusals() -> list[str]:
    outside = tfddl.ProcessSet([(tfddl.rank() + 1) % tfddl.size()])
    attempts: tuple[Any, ...] = (
        lambda: tfddl.allreduce(1.0, process_set=outside),
        lambda: tf.function(lambda: tfddl.allreduce(1.0, process_set=outside))(),
        outside.rank,
        lambda: tfddl.barrier(process_set=tfddl.ProcessSet([0, 7])),
        lambda: tfddl.ProcessSet([]),
        lambda: tfddl.ProcessSet([0, 0]),
        lambda: tfddl.ProcessSet([-1]),
        lambda: tfddl.ProcessSet(3),  # type: ignore[arg-type]
        lambda: tfddl.broadcast(1.0, 1, process_set=tfddl.ProcessSet([tfddl.rank()])),
    )
    messages = []
    for wrong in attempts:
        try:
            wrong()
        except ValueError as error:
            messages.append(str(error).strip().splitlines()[-1].strip())
        else:
            messages.append("no error")
    return messages


def the_same() -> bool:
    """Sets are their ranks."""
    one, other = tfddl.ProcessSet([1, 0]), tfddl.ProcessSet(np.arange(2))
    assert one == other
    assert hash(one) == hash(other)
    assert str(one) == "ProcessSet([0, 1])"
    assert tfddl.global_process_set.ranks == tuple(range(tfddl.size()))
    assert tfddl.global_process_set.rank() == tfddl.rank()
    assert tfddl.global_process_set.included()
    return one.included()
