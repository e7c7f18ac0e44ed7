"""Operations that all workers run together, eagerly and inside `tf.function`.

Usage:
    mean = allreduce(x)                              # every rank gets the average
    rows = allgather(x)                              # joined on the first dimension
    first = broadcast(x, root_rank=0)
    config = broadcast_object({"lr": 0.1})           # any Python object

Every rank must call the same operations in the same order, with tensors that agree in dtype and
shape (`allgather`: but for the first dimension). Eagerly that is checked before every operation:
where ranks differ, each of them raises a `DisagreementError` that says what each has, and the next
operation works. Inside a graph it is checked when a kind of operation (name, dtype, shape) is
first run; there it is a `tf.errors.InvalidArgumentError`.
"""

from tfddl.collectives.objects import allgather_object, broadcast_object
from tfddl.collectives.operations import (
    ReduceOp,
    allgather,
    allreduce,
    barrier,
    broadcast,
    grouped_allreduce,
    grouped_broadcast,
    stack,
)
from tfddl.collectives.together import on_all_ranks
from tfddl.collectives.variables import broadcast_variables

__all__ = [
    "ReduceOp",
    "allgather",
    "allgather_object",
    "allreduce",
    "barrier",
    "broadcast",
    "broadcast_object",
    "broadcast_variables",
    "grouped_allreduce",
    "grouped_broadcast",
    "on_all_ranks",
    "stack",
]
