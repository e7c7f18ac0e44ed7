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

* Eagerly it is found before every operation. It is a `DisagreementOpError`: a `DisagreementError`,
  and a `tf.errors.FailedPreconditionError`, which Horovod raises.
* In a graph it is found when a kind of operation (name, dtypes, shapes) is first run, and at every
  run where the graph doesn't know the shapes. It is a `tf.errors.InvalidArgumentError`.
* In a graph that a `tf.compat.v1.Session` runs it is found at every run. It is a
  `tf.errors.FailedPreconditionError`. Calls there have no order: they are matched by their names,
  or by their order in the graph.

Gradients are the derivatives of the sum of all ranks' losses, which Horovod's aren't:
`GradientRule` says what each is. Differentiating is a collective, too: all ranks do it together.

What a rank refuses before it asks the others (an op that isn't there, a process set that it isn't
in), the others don't hear of; called alike, all refuse alike. Ranks that name different process
sets don't match: they wait for each other, as for a rank that is missing. Whoever has waited for
`tfddl.init(stall_warning_s=60)` warns of those that haven't come, and says what these wait in
themselves.

Named calls of several threads are matched by their names, in whatever order, where all ranks share
memory. Elsewhere there is one order for all, and threads that call in another differ.
"""

from tfddl._src.collectives.allgather import allgather, allgather_in, grouped_allgather, stack
from tfddl._src.collectives.allreduce import (
    allreduce,
    allreduce_in,
    grouped_allreduce,
    sum_narrow,
    sum_numbers,
    sum_scaled,
    sum_weighted,
)
from tfddl._src.collectives.alltoall import alltoall, exchange_parts
from tfddl._src.collectives.barrier import barrier
from tfddl._src.collectives.broadcast import broadcast, broadcast_in, grouped_broadcast
from tfddl._src.collectives.broadcast_variables import broadcast_variables
from tfddl._src.collectives.dense import ScaledOp
from tfddl._src.collectives.fusion_limit import limit_fusion
from tfddl._src.collectives.join import join
from tfddl._src.collectives.negotiation import (
    CompiledError,
    DisplayName,
    NoDimensionError,
    WrongArgumentError,
    describe_tensor,
)
from tfddl._src.collectives.objects import allgather_object, broadcast_object
from tfddl._src.collectives.on_all_ranks import on_all_ranks
from tfddl._src.collectives.process_sets import (
    GradientRule,
    Group,
    ProcessSet,
    global_process_set,
    group_of,
)
from tfddl._src.collectives.reducescatter import (
    grouped_reducescatter,
    reducescatter,
    reducescatter_in,
)
from tfddl._src.collectives.refusal import collectives_refused
from tfddl._src.collectives.timeline import is_recording, start_timeline, stop_timeline
from tfddl._src.comm.errors import DisagreementOpError
from tfddl._src.comm.native import ReduceOp

__all__ = [
    "CompiledError",
    "GradientRule",
    "Group",
    "DisplayName",
    "NoDimensionError",
    "ProcessSet",
    "DisagreementOpError",
    "ReduceOp",
    "ScaledOp",
    "WrongArgumentError",
    "allgather",
    "allgather_in",
    "allgather_object",
    "allreduce",
    "allreduce_in",
    "alltoall",
    "barrier",
    "broadcast",
    "broadcast_in",
    "broadcast_object",
    "broadcast_variables",
    "collectives_refused",
    "describe_tensor",
    "exchange_parts",
    "global_process_set",
    "group_of",
    "grouped_allgather",
    "grouped_allreduce",
    "grouped_broadcast",
    "grouped_reducescatter",
    "is_recording",
    "join",
    "limit_fusion",
    "on_all_ranks",
    "reducescatter",
    "reducescatter_in",
    "stack",
    "start_timeline",
    "stop_timeline",
    "sum_narrow",
    "sum_numbers",
    "sum_scaled",
    "sum_weighted",
]
