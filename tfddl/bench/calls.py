"""Collectives made ready to be timed, and a sum in memory to compare them with."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfddl.bench.devices import wait_for_devices
from tfddl.bench.orders import Call, Mode, Operation

_CHAIN = 4
"""Each more takes a good while to trace."""

_LONGEST_CHAINED = 2**20
_FLOAT_BYTES = 4

Collective = Callable[[Operation, tf.Tensor], tf.Tensor]
"""Runs a collective on a tensor of shape (n,), eagerly or while a graph is made."""


@dataclasses.dataclass(frozen=True)
class Ready:
    """What can be timed."""

    run: Callable[[], object]
    number: int
    """How many collectives, or sums, one run has."""


def prepare_sum(order: Call) -> Ready:
    """Two arrays are added into a third one, which is kept."""
    length = order.num_bytes // _FLOAT_BYTES
    a, b, total = (np.ones(length, np.float32) for _ in range(3))
    return Ready(lambda: np.add(a, b, out=total), 1)


def prepare_collective(order: Call, collective: Collective, *, size: int) -> Ready:
    """A collective on ones, run once to see that it does what it should.

    A graph with a small tensor has a chain of them, each of what the one before made, so that to
    enter the graph from Python, which takes as long, isn't what is measured. All ranks must call
    this together.

    Args:
        order: What is to be run.
        collective: How.
        size: The number of ranks.

    Raises:
        AssertionError: What came out is wrong.
    """
    length = order.num_bytes // _FLOAT_BYTES
    chained = order.mode is Mode.GRAPH and order.num_bytes <= _LONGEST_CHAINED
    number = _CHAIN if chained else 1
    ones = tf.ones([length])

    def chain(tensor: tf.Tensor) -> tf.Tensor:
        for _ in range(number):
            tensor = collective(order.operation, tensor)[:length]
        return tensor

    def run() -> tf.Tensor:
        result = call(ones)
        wait_for_devices()
        return result

    call = tf.function(chain, autograph=False) if order.mode is Mode.GRAPH else chain
    ends = run().numpy()[[0, length - 1]]
    right = float(size) ** number if order.operation is Operation.ALLREDUCE else 1.0
    if not np.allclose(ends, right, rtol=1e-5):
        raise AssertionError(f"{order} made {ends} of ones, instead of {right}")
    return Ready(run, number)
