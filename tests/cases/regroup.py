"""Cases of `tests/test_regroup_in_process.py`."""

import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfddl
from tfddl._src.cluster import Cluster
from tfddl._src.keras_hooks.traced_functions import forget_functions
from tfddl._src.runtime import current, restart
from tfddl.errors import TfddlError


def _members() -> dict[str, Any]:
    """What this worker does, and with whom, by operations that were traced before."""
    return {"rank": tfddl.rank(), "size": tfddl.size(), "sum": float(_sum(tf.constant(2.0)))}


@tf.function
def _sum(x: tf.Tensor) -> tf.Tensor:
    # The number of workers is a constant of what is traced.
    return tfddl.allreduce(x * tfddl.size(), "sum")


def leave_and_join(clusters: list[tuple[list[int], list[str]]]) -> list[Any]:
    """What each worker finds, first among all, then in these clusters of some of them.

    Args:
        clusters: the ranks that they have at first, in their new order; their addresses.
    """
    first = tfddl.rank()
    concrete = _sum.get_concrete_function(tf.TensorSpec([], tf.float32))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile(tfddl.DistributedOptimizer(keras.optimizers.SGD(0.1)), loss="mse")
    inputs, targets = np.ones((12, 2), np.float32), np.arange(12, dtype=np.float32)

    def train() -> list[float]:
        model.set_weights([np.ones((2, 1)), np.zeros(1)])
        tfddl.broadcast_variables(model.optimizer.variables)  # One has trained less.
        data = tfddl.shard_dataset(inputs, targets, batch_size=12 // tfddl.size(), seed=1)
        return list(model.fit(data, epochs=2, verbose=0).history["loss"])

    found: list[Any] = [{**_members(), "loss": train()}]
    before = list(range(tfddl.size()))
    for members, addresses in clusters:
        assert current().can_regroup is (first in before)
        before, group = members, current().process_group
        current().close("the workers have changed")
        current().close("twice")
        stale = [_error(lambda: concrete(tf.constant(1.0)))]
        stale.append(_error(functools.partial(group.all_gather, tf.zeros([1]))))
        if first not in members:
            found.append({"stale": stale})
            continue
        restart(Cluster(tuple(addresses), members.index(first)), secret=b"")
        forget_functions()
        assert model.train_function is None
        found.append({**_members(), "loss": train(), "stale": stale})
    return found


def _error(call: Any) -> str:
    try:
        call()
    except (TfddlError, tf.errors.OpError) as error:
        return str(error)
    return "none"
