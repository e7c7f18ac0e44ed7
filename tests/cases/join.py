"""Cases of `tests/test_join.py`, run by every worker."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfddl
import tfddl.horovod.tensorflow as hvd
from tfddl._src.runtime import current


def steps(number: int, *, in_graph: bool, length: int) -> dict[str, list[float]]:
    """Rank r takes part in 1 + r times so many steps, and then joins.

    Returns:
        What each step gave, by kind: first elements, counts, or weights; "last" is what joining
        returned.
    """
    rank = tfddl.rank()
    compiled: Any = tf.function if in_graph else lambda function: function
    weights = {name: tf.Variable([0.0], name=name) for name in ("horovod", "tfddl")}
    optimizers = {
        "horovod": hvd.DistributedOptimizer(keras.optimizers.SGD(1.0)),
        "tfddl": tfddl.DistributedOptimizer(keras.optimizers.SGD(1.0)),
    }

    def gradient(name: str) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = -(rank + 1.0) * weights[name][0]
        if name == "horovod":
            return hvd.DistributedGradientTape(tape).gradient(loss, weights[name])
        return tfddl.DistributedGradientTape(tape).gradient(loss, weights[name], count=rank + 1)

    @compiled
    def step() -> dict[str, tf.Tensor]:
        mine = tf.fill([length], rank + 1.0)
        for name, optimizer in optimizers.items():
            with tfddl.loss_count(rank + 1) if name == "tfddl" else tf.name_scope(name):
                optimizer.apply([tf.fill([1], -(rank + 1.0))], [weights[name]])
        return {
            "average": tfddl.allreduce(mine)[-1],
            "sum": tfddl.allreduce(mine, "sum", name="named")[-1],
            "max": tfddl.allreduce(-mine, "max")[-1],
            "horovod gradient": -gradient("horovod")[0],
            "tfddl gradient": -gradient("tfddl")[0],
        }

    found: dict[str, list[float]] = {"horovod": [], "tfddl": [], "refused": []}
    for _ in range((rank + 1) * number):
        for kind, value in step().items():
            found.setdefault(kind, []).append(float(value))
        for name, weight in weights.items():
            found[name].append(float(weight[0]))
            weight.assign([0.0])
        tfddl.barrier()
    last = compiled(tfddl.join)()
    found["last"] = [int(last)]
    # And everything works again, for all.
    found["after"] = [float(x) for x in tfddl.allgather([float(rank)])]
    return found


def others() -> dict[str, str]:
    """What rank 0 is told of other operations while the others have joined, and a late one."""
    told = {}
    x = tf.fill([2 * tfddl.size()], 1.0)
    slices = tf.IndexedSlices(x, tf.range(2 * tfddl.size()), [100])
    operations: dict[str, Any] = {
        "allgather": lambda: tfddl.allgather(x),
        "broadcast": lambda: tfddl.broadcast(x, 0, name="b"),
        "alltoall": lambda: tfddl.alltoall(x),
        "reducescatter": lambda: tf.function(tfddl.reducescatter)(x),
        "slices": lambda: tfddl.allreduce(slices),
    }
    if tfddl.rank() == 0:
        for name, operation in operations.items():
            try:
                operation()
            except (tf.errors.FailedPreconditionError, tf.errors.InvalidArgumentError) as error:
                told[name] = error.message
            told[f"after {name}"] = str(float(tfddl.allreduce(3.0, "sum")))
    told["last"] = str(int(hvd.join()))
    return told


def of_a_set() -> list[Any]:
    """Ranks 0 and 2 join in their set, in which rank 2 goes on; rank 1 isn't in it."""
    pair = tfddl.ProcessSet([0, 2])
    found: list[Any] = []
    if tfddl.rank() == 2:
        found += [float(tfddl.allreduce(4.0, process_set=pair)) for _ in range(2)]
    if pair.included():
        found.append(int(tfddl.join(process_set=pair)))
    found.append(float(tfddl.allreduce(1.0, "sum")))
    return found


def counts() -> tuple[int, int]:
    """How many operations have begun and ended, by each rank's count, after all have joined."""
    for _ in range(3 * tfddl.rank()):
        tfddl.allreduce(np.ones(3))
    tfddl.join()
    return current().instrumentation.counts()


def refused() -> str:
    """What this rank is told where not all process groups can go on without it."""
    try:
        tfddl.join()
    except ValueError as error:
        return str(error)
    return "no error"
