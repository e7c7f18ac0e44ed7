"""The collectives of `horovod.tensorflow`: Horovod's signatures and gradients, for tfddl's own.

Gradients are those that horovod/tensorflow/mpi_ops.py registers. For allgather, broadcast and
reducescatter they differ from tfddl's own by a factor of the number of ranks, for min and max in
which ranks get them; see `collectives.GradientRule` and tests/test_horovod_gradients.py.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

import tfddl
from tfddl._src import collectives
from tfddl._src.collectives import GradientRule, Group, ScaledOp, group_of
from tfddl._src.gradients import ReductionOptions
from tfddl._src.horovod.process_sets import ProcessSet, global_process_set, resolve_process_set
from tfddl._src.horovod.reductions import (
    Average,
    Compression,
    resolve_compression,
    resolve_op,
    warn_no_device,
)
from tfddl.errors import UnsupportedError


def allreduce(  # noqa: PLR0913 - Horovod's signature
    tensor: Any,
    average: bool | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
    ignore_name_scope: bool = False,
) -> Any:
    """`tfddl.allreduce`, where ``op`` defaults to `Average`.

    Its gradient is an allreduce of the gradients with the same op and factors, whatever the op.
    With `Compression.fp16`, floating-point tensors are sent in 16 bits.
    """
    warn_no_device(device_dense, device_sparse)
    scaled_op = _reducing(resolve_op(op, average), prescale_factor, postscale_factor)
    return _allreduce([tensor], scaled_op, compression, process_set, name)[0]


def grouped_allreduce(  # noqa: PLR0913 - Horovod's signature
    tensors: Sequence[Any],
    average: bool | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
    ignore_name_scope: bool = False,
    name: str | None = None,
) -> list[Any]:
    """`tfddl.grouped_allreduce`, otherwise as `allreduce`."""
    warn_no_device(device_dense, device_sparse)
    scaled_op = _reducing(resolve_op(op, average), prescale_factor, postscale_factor)
    return _allreduce(tensors, scaled_op, compression, process_set, name)


def _group(process_set: Any) -> Group:
    return group_of(resolve_process_set(process_set), gradients=GradientRule.HOROVOD)


def _reducing(op: tfddl.ReduceOp, prescale_factor: float, postscale_factor: float) -> ScaledOp:
    return ScaledOp.of(op, prescale_factor=prescale_factor, postscale_factor=postscale_factor)


def _allreduce(
    tensors: Sequence[Any],
    scaled_op: ScaledOp,
    compression: Any,
    process_set: Any,
    name: str | None,
) -> list[Any]:
    options = ReductionOptions(compression=resolve_compression(compression))
    given = [t if isinstance(t, tf.IndexedSlices) else tf.convert_to_tensor(t) for t in tensors]
    compressed = [_compressed(tensor, options) for tensor in given]
    reduced = collectives.allreduce_in(_group(process_set), compressed, scaled_op, name=name)
    return [_as(tensor.dtype, total) for tensor, total in zip(given, reduced, strict=True)]


def _compressed(tensor: Any, options: ReductionOptions) -> Any:
    if isinstance(tensor, tf.IndexedSlices):
        values = options.compress(tensor.values)
        return tf.IndexedSlices(values, tensor.indices, tensor.dense_shape)
    return options.compress(tensor)


def _as(dtype: tf.DType, tensor: Any) -> Any:
    if isinstance(tensor, tf.IndexedSlices):
        return tf.IndexedSlices(tf.cast(tensor.values, dtype), tensor.indices, tensor.dense_shape)
    return tf.cast(tensor, dtype)


def allgather(
    tensor: Any,
    name: str | None = None,
    ignore_name_scope: bool = False,
    process_set: ProcessSet = global_process_set,
) -> tf.Tensor:
    """`tfddl.allgather`. Its gradient is the rank's own rows of the averaged gradients."""
    return collectives.allgather_in(_group(process_set), [tensor], name=name)[0]


def grouped_allgather(
    tensors: Sequence[Any],
    name: str | None = None,
    ignore_name_scope: bool = False,
    process_set: ProcessSet = global_process_set,
) -> list[tf.Tensor]:
    """`tfddl.grouped_allgather`, with the gradients of `allgather`."""
    return collectives.allgather_in(_group(process_set), list(tensors), name=name)


def broadcast(
    tensor: Any,
    root_rank: int,
    name: str | None = None,
    ignore_name_scope: bool = False,
    process_set: ProcessSet = global_process_set,
) -> tf.Tensor:
    """`tfddl.broadcast`. Its gradient is the ranks' average on the root, zeros elsewhere."""
    return collectives.broadcast_in(_group(process_set), [tensor], root_rank, name=name)[0]


def broadcast_(
    variables: Iterable[Any],
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> list[Any]:
    """`tfddl.broadcast_variables`, which here returns the variables in a list."""
    variables = list(variables)
    tfddl.broadcast_variables(variables, root_rank, process_set=resolve_process_set(process_set))
    return variables


def broadcast_variables(
    variables: Iterable[Any],
    root_rank: int,
    process_set: ProcessSet = global_process_set,
    inplace: bool = False,
) -> None:
    """`tfddl.broadcast_variables`; ``inplace`` has no effect: it always is."""
    tfddl.broadcast_variables(variables, root_rank, process_set=resolve_process_set(process_set))


def broadcast_object(
    obj: Any,
    root_rank: int = 0,
    session: Any = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """`tfddl.broadcast_object`; ``session`` must be None."""
    _refuse_session(session)
    return tfddl.broadcast_object(
        obj, root_rank, name=name, process_set=resolve_process_set(process_set)
    )


def allgather_object(
    obj: Any,
    session: Any = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> list[Any]:
    """`tfddl.allgather_object`; ``session`` must be None."""
    _refuse_session(session)
    return tfddl.allgather_object(obj, name=name, process_set=resolve_process_set(process_set))


def alltoall(
    tensor: Any,
    splits: Any = None,
    name: str | None = None,
    ignore_name_scope: bool = False,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """`tfddl.alltoall`, also in its gradient: an alltoall by the received splits."""
    return tfddl.alltoall(tensor, splits, name=name, process_set=resolve_process_set(process_set))


def reducescatter(  # noqa: PLR0913 - Horovod's signature
    tensor: Any,
    device_dense: str = "",
    compression: Any = Compression.none,
    op: Any = Average,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
    ignore_name_scope: bool = False,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> tf.Tensor:
    """`tfddl.reducescatter`.

    Its gradient is the allgather of the ranks' gradients, times both factors and, for `Sum`, times
    the number of ranks. Other ops have no gradient.
    """
    return grouped_reducescatter(
        [tensor],
        device_dense,
        compression,
        op,
        process_set,
        prescale_factor,
        postscale_factor,
        name=name,
    )[0]


def grouped_reducescatter(  # noqa: PLR0913 - Horovod's signature
    tensors: Sequence[Any],
    device_dense: str = "",
    compression: Any = Compression.none,
    op: Any = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    name: str | None = None,
) -> list[tf.Tensor]:
    """`tfddl.grouped_reducescatter`, with the gradients of `reducescatter`."""
    warn_no_device(device_dense)
    options = ReductionOptions(compression=resolve_compression(compression))
    given = [tf.convert_to_tensor(tensor) for tensor in tensors]
    parts = collectives.reducescatter_in(
        _group(process_set),
        [options.compress(tensor) for tensor in given],
        _reducing(resolve_op(op, None), prescale_factor, postscale_factor),
        name=name,
    )
    return [tf.cast(part, tensor.dtype) for part, tensor in zip(parts, given, strict=True)]


def barrier(process_set: ProcessSet = global_process_set) -> None:
    """`tfddl.barrier`: returns when all ranks of the set have called it."""
    tfddl.barrier(process_set=resolve_process_set(process_set))


def join() -> tf.Tensor:
    """`tfddl.join`: waits until all ranks have called it; returns the last one's rank.

    Averages, also of gradients, are divided by the number of all ranks meanwhile.
    """
    return tfddl.join()


def broadcast_global_variables(root_rank: int) -> None:
    """Not supported: global variables are of TensorFlow 1.

    Raises:
        UnsupportedError: Always.
    """
    raise UnsupportedError(_TF1.format("broadcast_global_variables"))


def BroadcastGlobalVariablesHook(root_rank: int, device: str = "") -> None:
    """Not supported: hooks of sessions are of TensorFlow 1.

    Raises:
        UnsupportedError: Always.
    """
    raise UnsupportedError(_TF1.format("BroadcastGlobalVariablesHook"))


def broadcast_object_fn(
    root_rank: int = 0,
    session: Any = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> None:
    """Not supported: sessions are of TensorFlow 1.

    Raises:
        UnsupportedError: Always.
    """
    raise UnsupportedError(_TF1.format("broadcast_object_fn") + " Or hvd.broadcast_object(obj).")


_TF1 = (
    "{} is of TensorFlow 1. HINT: hvd.broadcast_variables(model.variables, root_rank=0), or "
    "hvd.callbacks.BroadcastGlobalVariablesCallback(0) in fit."
)


def _refuse_session(session: Any) -> None:
    if session is not None:
        raise UnsupportedError("session is of TensorFlow 1. HINT: leave it out.")
