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
shape (`allgather`, `alltoall`: but for the first dimension). Where ranks differ, each of them
raises an error that names the operation and says what each has, and the next operation works:

* Eagerly it is found before every operation. It is a `RanksDisagreeError`: a `DisagreementError`,
  and a `tf.errors.FailedPreconditionError`, which Horovod raises.
* In a graph it is found when a kind of operation (name, dtypes, shapes) is first run, and at every
  run where the graph doesn't know the shapes. It is a `tf.errors.InvalidArgumentError`.

What a rank refuses before it asks the others (an op that isn't there, a process set that it isn't
in), the others don't hear of; called alike, all refuse alike. Ranks that name different process
sets don't meet: they wait for each other, as for a rank that doesn't come. Whoever has waited for
`tfddl.init(stall_warning_s=60)` warns of those that haven't come, and says what these wait in
themselves.

Named calls of several threads meet by their names, in whatever order, where all ranks share memory.
Elsewhere there is one order for all, and threads that come in another differ.
"""

from tfddl.collectives.agreement import (
    Label,
    NoDimensionError,
    WrongArgumentError,
    described,
)
from tfddl.collectives.broadcasting import broadcast, grouped_broadcast
from tfddl.collectives.dense import ReduceOp
from tfddl.collectives.exchanging import alltoall
from tfddl.collectives.gathering import allgather, grouped_allgather, stack
from tfddl.collectives.meeting import barrier
from tfddl.collectives.objects import allgather_object, broadcast_object
from tfddl.collectives.process_sets import ProcessSet, global_process_set, group_of
from tfddl.collectives.reducing import (
    allreduce,
    grouped_allreduce,
    sum_narrow,
    sum_numbers,
    sum_scaled,
)
from tfddl.collectives.scattering import grouped_reducescatter, reducescatter
from tfddl.collectives.timeline import start_timeline, stop_timeline
from tfddl.collectives.together import on_all_ranks
from tfddl.collectives.variables import broadcast_variables
from tfddl.transport import RanksDisagreeError

__all__ = [
    "Label",
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
    "described",
    "global_process_set",
    "group_of",
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
    "sum_numbers",
    "sum_scaled",
]
