"""Where TensorFlow would run the operations of a graph if there were a GPU: read from its kernels.

The wheel for Linux is built for GPUs, so that its registry tells, on any machine, which operations
have a kernel for them, and which of its arguments such a kernel wants in the host's memory.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import kernels

_ON_GPUS = ("GPU", "DEFAULT")


@functools.cache
def _kernels(kind: str) -> tuple[Any, ...]:
    return tuple(k for k in kernels.get_registered_kernels_for_op(kind).kernel)


def gpu_kernel(kind: str, types: dict[str, int]) -> Any | None:
    """The kernel that runs an operation on a GPU.

    Args:
        kind: Of the operation: "AddV2".
        types: Its attributes that are types, as numbers of `tf.DType.as_datatype_enum`.
    """
    for device in _ON_GPUS:
        for kernel in _kernels(kind):
            fits = all(
                types.get(c.name) in c.allowed_values.list.type
                for c in kernel.constraint
                if c.allowed_values.list.type
            )
            if kernel.device_type == device and fits:
                return kernel
    return None


def _kernel_of(op: tf.Operation) -> Any | None:
    types = {n: v.type for n, v in op.node_def.attr.items() if v.WhichOneof("value") == "type"}
    return gpu_kernel(op.type, types)


def runs_on_cpu(op: tf.Operation) -> bool:
    """Whether an operation was put on the CPU, or has no kernel for GPUs."""
    return "CPU" in op.device or (op.type != "Placeholder" and _kernel_of(op) is None)


def _names(op: tf.Operation, arguments: Iterable[Any]) -> list[str]:
    """For each tensor, the name of the argument that it is part of."""
    found: list[str] = []
    for argument in arguments:
        count = 1
        if argument.number_attr:
            count = op.node_def.attr[argument.number_attr].i
        elif argument.type_list_attr:
            count = len(op.node_def.attr[argument.type_list_attr].list.type)
        found += [argument.name] * count
    return found


def _in_host_memory(op: tf.Operation, name: str) -> bool:
    if runs_on_cpu(op):
        return True
    kernel = _kernel_of(op)
    return kernel is not None and name in kernel.host_memory_arg


def copies(ops: Iterable[tf.Operation]) -> Iterator[str]:
    """Between which operations a tensor is copied from host to GPU, or back.

    Args:
        ops: Whose inputs. Constants and arguments of the graph don't count: they wait for nothing.
    """
    for op in ops:
        names = _names(op, op.op_def.input_arg)
        for tensor, name in zip(op.inputs, names, strict=True):
            source = tensor.op
            if source.type in ("Const", "Placeholder") or tensor.dtype in (tf.resource, tf.string):
                continue
            output = _names(source, source.op_def.output_arg)[tensor.value_index]
            before, after = _in_host_memory(source, output), _in_host_memory(op, name)
            if before != after:
                way = "host to GPU" if before else "GPU to host"
                yield f"{way}: {source.type} {source.name} -> {op.type} {op.name}"


def between(first: Iterable[tf.Tensor], last: Iterable[tf.Tensor]) -> list[tf.Operation]:
    """The operations on a way from some tensors to others, by data or by control."""
    start, end = {t.op for t in first}, {t.op for t in last}
    graph = next(iter(end)).graph
    users: dict[tf.Operation, list[tf.Operation]] = {}
    for op in graph.get_operations():
        for source in sources(op):
            users.setdefault(source, []).append(op)
    after = _closure(start, lambda op: users.get(op, []))
    before = ancestors(last)
    return [op for op in graph.get_operations() if op in after and op in before]


def ancestors(tensors: Iterable[tf.Tensor]) -> set[tf.Operation]:
    """All that some tensors wait for."""
    return _closure({t.op for t in tensors}, sources)


def sources(op: tf.Operation) -> list[tf.Operation]:
    """What an operation waits for."""
    return [t.op for t in op.inputs] + list(op.control_inputs)


def _closure(start: set[tf.Operation], following: Any) -> set[tf.Operation]:
    found, todo = set(start), list(start)
    while todo:
        for op in following(todo.pop()):
            if op not in found:
                found.add(op)
                todo.append(op)
    return found
