"""Cases of `tests/test_placement.py`, each in a process of its own: the graph of a training step.

It is traced as on rank 0 of two workers with a GPU each, and never run.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import tensorflow as tf

import tfddl
from tests import placement
from tfddl._src.cluster import Cluster
from tfddl._src.comm.instrumentation import Instrumentation
from tfddl._src.comm.instrumented_group import InstrumentedGroup
from tfddl._src.comm.native import ReduceOp
from tfddl._src.comm.nccl_group import make_tensorflow_group
from tfddl._src.comm.process_group import ProcessGroup, Transport
from tfddl._src.gradients import matching, reduction
from tfddl._src.keras_hooks import optimizer as optimizers
from tfddl._src.runtime import current

_DEVICE = "/job:localhost/replica:0/task:0/device:GPU:0"


@dataclasses.dataclass
class Step:
    """What a step gave to the exchange, and got back."""

    given: list[tf.Tensor]
    got: list[tf.Tensor]


def _group(collective: Transport) -> ProcessGroup:
    made = make_tensorflow_group(0, 2, _DEVICE, collective)
    instrumentation = Instrumentation(2)
    instrumentation.keep_on(made.device, stays_there=made.stays_on_device)
    return InstrumentedGroup(made, instrumentation)


def _model(compression: str) -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input([8]),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(16, dtype="mixed_bfloat16"),
            keras.layers.Dense(1, dtype="float32"),
        ]
    )
    optimizer = tfddl.DistributedOptimizer(keras.optimizers.Adam(), compression=compression)
    model.compile(optimizer, loss="mse", jit_compile=False)
    return model


def trace(collective: Transport, batch: int | None, compression: str) -> Step:
    """Traces a training step of `fit`."""
    runtime = current()
    runtime.cluster = Cluster(("a:1", "a:2"), 0)
    runtime.process_group = _group(collective)
    model = _model(compression)
    model.optimizer.build(model.trainable_variables)
    model.make_train_function()
    step = Step([], [])

    def reduce(gradients: Any, *arguments: Any) -> Any:
        step.given += gradients
        reduced = reduction.reduce_gradients(gradients, *arguments)
        step.got += reduced
        return reduced

    def run(x: tf.Tensor, y: tf.Tensor) -> Any:
        return model.train_step((x, y))

    specs = [tf.TensorSpec([batch, 8]), tf.TensorSpec([batch, 1])]
    # The other rank, which isn't there to be asked, has gradients of the same variables.
    both = mock.patch.object(matching, "_everyone", lambda own, *_, **__: [own, own])
    with both, mock.patch.object(optimizers, "reduce_gradients", reduce):
        traced = tf.function(run, input_signature=specs).get_concrete_function()
    assert traced.graph is step.got[0].graph
    return step


def found(collective: str, batch: int | None, compression: str = "none") -> dict[str, Any]:
    """What is on the CPU between gradients and optimizer, and what is copied to or from the GPU.

    The forward and the backward pass are Keras': what they copy doesn't count.
    """
    step = trace(Transport(collective), batch, compression)
    within = placement.between(step.given, step.got)
    theirs = placement.ancestors(step.given)
    ours = [op for op in placement.ancestors(step.got) if op not in theirs]
    return {
        "operations": len(within),
        "collectives": sum(op.type.startswith("Transport") for op in within),
        "on the CPU": sorted(f"{o.type} {o.name}" for o in within if placement.runs_on_cpu(o)),
        "copied": sorted(placement.copies(ours)),
    }


def collectives() -> dict[str, Any]:
    """All collectives, each traced by itself."""
    nccl = make_tensorflow_group(0, 2, _DEVICE, Transport.NCCL)
    calls: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
        "all_reduce": lambda x: nccl.all_reduce([x], ReduceOp.SUM)[0],
        "all_gather": nccl.all_gather,
        "broadcast": lambda x: nccl.broadcast([x], 1)[0],
        "reduce_scatter": lambda x: nccl.reduce_scatter(x, [3, 4], ReduceOp.MAX),
        # Whose parts have lengths that only the tensors tell: these are read from the GPU.
        "all_to_all": lambda x: nccl.all_to_all(x, tf.constant([[3, 4], [5, 6]], tf.int64)),
    }
    traced, on_cpu, copied = 0, [], []
    for dtype in sorted(nccl.dtypes, key=str):
        for name, call in calls.items():
            for length in (7, None):
                spec = tf.TensorSpec([length], dtype)
                with tf.device(_DEVICE):
                    graph = tf.function(call, input_signature=[spec]).get_concrete_function().graph
                ops = [op for op in graph.get_operations() if op.type != "Const"]
                label = f"{name} {dtype.name} {length}"
                on_cpu += [f"{label}: {op.type}" for op in ops if placement.runs_on_cpu(op)]
                if dtype.is_floating and length and name != "all_to_all":
                    copied += [f"{label}: {copy}" for copy in placement.copies(ops)]
                traced += 1
    return {"traced": traced, "on the CPU": on_cpu, "copied": copied}


def main(result: Path, case: str, arguments: dict[str, Any]) -> None:
    """Writes what a case has found."""
    tfddl.init()
    result.write_text(json.dumps(globals()[case](**arguments)))
