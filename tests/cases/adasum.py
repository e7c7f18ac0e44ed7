"""Cases of `tests/test_adasum.py`, run by every worker."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

import tfddl
import tfddl.horovod.tensorflow as hvd


def everywhere() -> dict[str, Any]:
    """The Adasum of [rank + 1, 2, -rank] by all ways that lead to it, and what is refused."""
    rank, size = tfddl.rank(), tfddl.size()
    mine = tf.constant([rank + 1.0, 2.0, -float(rank)])
    pair = tfddl.ProcessSet(sorted({0, size - 1}))
    slices = tf.IndexedSlices(mine, [0, 1, 2], [9])

    def gradient(allreduce: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(mine)
            loss = tf.reduce_sum(allreduce(mine)) * (rank + 1.0)
        return tape.gradient(loss, mine)

    def of_tape(variable: tf.Variable, loss: Callable[[], tf.Tensor], **options: Any) -> tf.Tensor:
        with tf.GradientTape() as tape:
            total = loss()
        return hvd.DistributedGradientTape(tape, op=hvd.Adasum, **options).gradient(total, variable)

    w = tf.Variable(tf.zeros([3]))
    weights = keras.Variable(tf.zeros([3]))
    tfddl.DistributedOptimizer(keras.optimizers.SGD(1.0), op="adasum").apply([-mine], [weights])
    found: dict[str, Any] = {
        "eager": tfddl.allreduce(mine, "adasum"),
        "graph": tf.function(lambda: tfddl.grouped_allreduce([mine, mine[:1]], "adasum"))()[0],
        "horovod": hvd.allreduce(mine, op=hvd.Adasum),
        "tape": of_tape(w, lambda: tf.reduce_sum(w * mine)),
        "optimizer": weights,
        "compressed": of_tape(w, lambda: tf.reduce_sum(w * mine), compression=hvd.Compression.fp16),
        "factors": tfddl.allreduce(mine, "adasum", prescale_factor=0.5, postscale_factor=3.0),
        "gradient": gradient(lambda x: hvd.allreduce(x, op=hvd.Adasum)),
    }
    if pair.included():
        found["set"] = tfddl.allreduce(mine, "adasum", process_set=pair)
    found = {name: tf.convert_to_tensor(value).numpy() for name, value in found.items()}
    calls: dict[str, Callable[[], Any]] = {
        "integers": lambda: tfddl.allreduce(tf.constant([1]), "adasum"),
        "slices": lambda: hvd.allreduce(slices, op=hvd.Adasum),
        "sparse": lambda: of_tape(w, lambda: tf.reduce_sum(tf.gather(w, [rank % 3]))),
        "own gradient": lambda: gradient(lambda x: tfddl.allreduce(x, "adasum")),
        "reducescatter": lambda: tfddl.reducescatter(mine, "adasum"),
    }
    for name, call in calls.items():
        try:
            found[name] = str(call())
        except ValueError as error:
            found[name] = str(error)
    return found


def refused() -> str:
    """As what it is caught where there is none."""
    try:
        tfddl.allreduce([1.0], "adasum")
    except NotImplementedError:
        return "NotImplementedError"
    return "no error"
