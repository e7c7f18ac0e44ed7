"""Operations that all workers run together, eagerly and inside `tf.function`.

Usage:
    mean = allreduce(x)                              # every rank gets the average
    rows = allgather(x)                              # joined on the first dimension
    first = broadcast(x, root_rank=0)
    parts = alltoall(x)                              # a part of mine to each, one of each to me
    part = reducescatter(x)                          # my rows of the average
    config = broadcast_object({"lr": 0.1})           # any Python object
    half = allreduce(x, process_set=ProcessSet([0, 1]))  # between some ranks

Every rank must call the same operations in the same order, with tensors that agree in dtype and
shape (`allgather`, `alltoall`: but for the first dimension). Eagerly that is checked before every
operation: where ranks differ, each of them raises a `RanksDisagreeError` (a `DisagreementError`,
and a `tf.errors.FailedPreconditionError`, which Horovod raises) that says what each has, and the
next operation works. Inside a graph it is checked when a kind of operation (name, dtype, shape) is first
run, and at every run where the graph doesn't know the shapes; there it is a
`tf.errors.InvalidArgumentError` with the same facts.

What a rank refuses before it asks the others (an op that isn't there, a process set that it isn't
in), the others don't hear of; called alike, all refuse alike. Ranks that name different
process sets don't meet: they wait for each other as for a rank that doesn't come.
"""

from tfddl.collectives.agreement import (
    NoDimensionError,
    RanksDisagreeError,
    WrongArgumentError,
)
from tfddl.collectives.broadcasting import broadcast, grouped_broadcast
from tfddl.collectives.dense import ReduceOp
from tfddl.collectives.exchanging import alltoall
from tfddl.collectives.gathering import allgather, grouped_allgather, stack
from tfddl.collectives.meeting import barrier
from tfddl.collectives.objects import allgather_object, broadcast_object
from tfddl.collectives.process_sets import ProcessSet, global_process_set
from tfddl.collectives.reducing import allreduce, grouped_allreduce, sum_narrow
from tfddl.collectives.scattering import grouped_reducescatter, reducescatter
from tfddl.collectives.timeline import start_timeline, stop_timeline
from tfddl.collectives.together import on_all_ranks
from tfddl.collectives.variables import broadcast_variables

__all__ = [
    "NoDimensionError",
    "ProcessSet",
    "RanksDisagreeError",
    "ReduceOp",
    "WrongArgumentError",
    "allgather",
    "allgather_object",
    "allreduce",
    "alltoall",
    "barrier",
    "broadcast",
    "broadcast_object",
    "broadcast_variables",
    "global_process_set",
    "grouped_allgather",
    "grouped_allreduce",
    "grouped_broadcast",
    "grouped_reducescatter",
    "on_all_ranks",
    "reducescatter",
    "stack",
    "start_timeline",
    "stop_timeline",
    "sum_narrow",
]
