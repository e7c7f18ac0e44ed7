"""What a worker has in memory at once, of updates in a graph and of variables that travel."""

from unittest import mock

import keras
import tensorflow as tf

import tfddl
from tfddl._src.collectives import DisplayName, fusion
from tfddl._src.collectives.broadcast import broadcast_each
from tfddl._src.collectives.process_sets import group_of
from tfddl._src.keras_hooks import update_order
from tfddl._src.runtime import current


def ancestors(op: tf.Operation) -> set[str]:
    """Names of all operations that one waits for."""
    found: set[str] = set()
    ahead = [op]
    while ahead:
        last = ahead.pop()
        for before in [*last.control_inputs, *(tensor.op for tensor in last.inputs)]:
            if before.name not in found:
                found.add(before.name)
                ahead.append(before)
    return found


def waits(num_bytes: int, *, at_once: int, overlaps: bool) -> tuple[list[list[int]], list[float]]:
    """Which updates of four variables, of 40 bytes each, each update waits for; what comes of them.

    Args:
        num_bytes: Of the gradients of a group.
        at_once: Up to how many bytes of gradients nothing waits.
        overlaps: Whether gradients travel while others are computed.
    """
    variables = [keras.Variable([float(i)] * 10, name=f"v{i}") for i in range(4)]
    gradients = [tf.constant([float(tfddl.rank())] * 10) for _ in variables]
    optimizer = tfddl.DistributedOptimizer(keras.optimizers.SGD(1.0))
    optimizer.build(variables)

    @tf.function(autograph=False)
    def step() -> None:
        optimizer.apply(gradients, variables)

    with (
        mock.patch.object(update_order, "GROUP_BYTES", num_bytes),
        mock.patch.object(fusion, "AT_ONCE_BYTES", at_once),
        mock.patch.object(current().process_group, "overlaps", overlaps),
    ):
        graph = step.get_concrete_function().graph
    step()
    inner = {id(inside): outside for outside, inside in graph.captures}
    handles = [v.value.handle for v in variables]
    updates: dict[int, tf.Operation] = {}
    for op in graph.get_operations():
        if op.type == "AssignSubVariableOp":
            [place] = [i for i, h in enumerate(handles) if inner[id(op.inputs[0])] is h]
            updates[place] = op
    names = {op.name: i for i, op in updates.items()}
    waited = [
        sorted(names[name] for name in ancestors(updates[i]) if name in names) for i in range(4)
    ]
    return waited, [float(v[0]) for v in variables]


def read_and_written(limit: int, at_once: int) -> tuple[list[str], list[float]]:
    """In which order tensors of 16 bytes are read and written, and what was written.

    Args:
        limit: Bytes that travel together.
        at_once: The same, with one core, where these are all.
    """
    events: list[str] = []
    values: dict[int, float] = {}

    def read(i: int) -> tf.Tensor:
        events.append(f"read {i}")
        return tf.fill([4], float(10 * tfddl.rank() + i))

    def write(i: int, value: tf.Tensor) -> None:
        events.append(f"write {i}")
        values[i] = float(value[0])

    specs = [tf.TensorSpec([4], tf.float32)] * 3
    name = DisplayName("variables")
    with (
        mock.patch.object(fusion, "_FUSION_BYTES", limit),
        mock.patch.object(fusion, "_FUSION_BYTES_ONE_CORE", limit),
        mock.patch.object(fusion, "AT_ONCE_BYTES", at_once),
        mock.patch.object(current().process_group, "overlaps", False),
    ):
        broadcast_each(group_of(None), specs, 1, name=name, read=read, write=write)
    return events, [values[i] for i in sorted(values)]
