"""The collectives of `horovod.tensorflow`: Horovod's signatures and gradients, for tfddl's own.

Gradients are those that horovod/tensorflow/mpi_ops.py registers. For allgather, broadcast and
reducescatter they differ from tfddl's own by a factor of the number of ranks, for min and max in
which ranks get them; see `collectives.GradientRule` and tests/test_horovod_gradients.py.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import tensorflow as tf

import tfddl
from tfddl._src import collectives
from tfddl._src.collectives import GradientRule, Group, ScaledOp, group_of
from tfddl._src.comm.lazy_variable import call_outside_graph
from tfddl._src.comm.native import ReduceOp
from tfddl._src.comm.session_graph import is_for_session
from tfddl._src.horovod.compression import Compression, resolve_compressor
from tfddl._src.horovod.process_sets import ProcessSet, global_process_set, resolve_process_set
from tfddl._src.horovod.reductions import Average, resolve_op, warn_no_device
from tfddl.errors import UnimplementedError, UnsupportedError

_Result = TypeVar("_Result")


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
    With `Compression.fp16`, floating-point tensors are sent in 16 bits; a class of one's own
    compresses as it likes. Of `tf.IndexedSlices` there are sums and averages, without factors and
    uncompressed; an average is a division by the number of ranks, which makes floats of integers.

    Raises:
        UnimplementedError: `tf.IndexedSlices` with another op, or with factors; it is a
            `NotImplementedError`.
        TfddlError: As `tfddl.allreduce`.
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
    compressor, group = resolve_compressor(compression), _group(process_set)
    results: list[Any] = [
        t if isinstance(t, tf.IndexedSlices) else tf.convert_to_tensor(t) for t in tensors
    ]
    sparse = [i for i, t in enumerate(results) if isinstance(t, tf.IndexedSlices)]
    dense = [i for i in range(len(results)) if i not in sparse]
    if sparse and (scaled_op.prescale_factor, scaled_op.postscale_factor) != (1.0, 1.0):
        raise UnimplementedError(
            "prescale_factor and postscale_factor aren't supported for tf.IndexedSlices. HINT: "
            "multiply their values, or make a dense tensor of them: tf.convert_to_tensor(slices)."
        )
    gathered = collectives.allreduce_in(
        group, [results[i] for i in sparse], _undivided(scaled_op), name=name
    )
    for i, slices in zip(sparse, gathered, strict=True):
        results[i] = _divided(slices, scaled_op, group.size)
    compressed = [compressor.compress(results[i]) for i in dense]
    reduced = collectives.allreduce_in(
        group, [tensor for tensor, _ in compressed], scaled_op, name=name
    )
    for i, total, (_, context) in zip(dense, reduced, compressed, strict=True):
        results[i] = compressor.decompress(total, context)
    return results


def _undivided(scaled_op: ScaledOp) -> ScaledOp:
    return ScaledOp(op=ReduceOp.SUM) if scaled_op.op is ReduceOp.AVERAGE else scaled_op


def _divided(slices: tf.IndexedSlices, scaled_op: ScaledOp, size: int) -> tf.IndexedSlices:
    """The average, if that is the op: the sum divided as Horovod does, also of integers."""
    if scaled_op.op is not ReduceOp.AVERAGE:
        return slices
    values = slices.values / tf.cast(size, slices.values.dtype)
    return tf.IndexedSlices(values, slices.indices, slices.dense_shape)


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
    """`tfddl.broadcast_variables`, which here returns the variables in a list.

    In a `tf.Graph` for a session these are tensors, of their values once they have been set; with
    each that is run, its variable is set.
    """
    variables = list(variables)
    if is_for_session():
        return _assigned(variables, root_rank, process_set, name)
    tfddl.broadcast_variables(variables, root_rank, process_set=resolve_process_set(process_set))
    return variables


def _assigned(
    variables: Sequence[Any], root_rank: int, process_set: Any, name: str | None
) -> list[tf.Tensor]:
    given = [tf.convert_to_tensor(variable) for variable in variables]
    values = collectives.broadcast_in(_group(process_set), given, root_rank, name=name)
    assigned = []
    for variable, value in zip(variables, values, strict=True):
        with tf.control_dependencies([variable.assign(value, read_value=False)]):
            assigned.append(tf.identity(value))
    return assigned


def broadcast_variables(
    variables: Iterable[Any],
    root_rank: int,
    process_set: ProcessSet = global_process_set,
    inplace: bool = False,
) -> tf.Operation | None:
    """`tfddl.broadcast_variables`; ``inplace`` has no effect: it always is.

    In a `tf.Graph` for a session it returns the operation that does it.
    """
    if is_for_session():
        return tf.group(*_assigned(list(variables), root_rank, process_set, None))
    tfddl.broadcast_variables(variables, root_rank, process_set=resolve_process_set(process_set))
    return None


def broadcast_object(
    obj: Any,
    root_rank: int = 0,
    session: Any = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """`tfddl.broadcast_object`; ``session`` has no effect: it happens at once, also in a graph."""
    ranks = resolve_process_set(process_set)
    return _at_once(lambda: tfddl.broadcast_object(obj, root_rank, name=name, process_set=ranks))


def allgather_object(
    obj: Any,
    session: Any = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> list[Any]:
    """`tfddl.allgather_object`; ``session`` has no effect: it happens at once, also in a graph."""
    ranks = resolve_process_set(process_set)
    return _at_once(lambda: tfddl.allgather_object(obj, name=name, process_set=ranks))


def _at_once(function: Callable[[], _Result]) -> _Result:
    return call_outside_graph(function) if is_for_session() else function()


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
    compressor = resolve_compressor(compression)
    compressed = [compressor.compress(tf.convert_to_tensor(tensor)) for tensor in tensors]
    parts = collectives.reducescatter_in(
        _group(process_set),
        [tensor for tensor, _ in compressed],
        _reducing(resolve_op(op, None), prescale_factor, postscale_factor),
        name=name,
    )
    return [
        compressor.decompress(part, context)
        for part, (_, context) in zip(parts, compressed, strict=True)
    ]


def barrier(process_set: ProcessSet = global_process_set) -> None:
    """`tfddl.barrier`: returns when all ranks of the set have called it."""
    tfddl.barrier(process_set=resolve_process_set(process_set))


def join() -> tf.Tensor:
    """`tfddl.join`: waits until all ranks have called it; returns the last one's rank.

    Averages, also of gradients, are divided by the number of all ranks meanwhile.
    """
    return tfddl.join()


class GlobalVariablesError(UnsupportedError, RuntimeError):
    """Eagerly there are no global variables; Horovod raises a `RuntimeError`, too."""


def broadcast_global_variables(root_rank: int) -> tf.Operation:
    """In a `tf.Graph` for a session, the operation that broadcasts all its global variables.

    Raises:
        GlobalVariablesError: It is called eagerly, or in a `tf.function`; it is a `RuntimeError`.
    """
    if not is_for_session():
        raise GlobalVariablesError(_TF1.format("broadcast_global_variables"))
    return broadcast_variables(tf.compat.v1.global_variables(), root_rank)


class BroadcastGlobalVariablesHook(tf.compat.v1.train.SessionRunHook):
    """A hook of `tf.compat.v1.train.MonitoredTrainingSession` that makes all ranks start alike."""

    def __init__(self, root_rank: int, device: str = "") -> None:
        """Adds nothing yet.

        Args:
            root_rank: Whose global variables all ranks get once a session is there.
            device: Has no effect.
        """
        super().__init__()
        warn_no_device(device)
        self._root_rank = root_rank
        self._operation: tf.Operation | None = None

    def begin(self) -> None:
        """Adds the operation to the graph, which may be changed now, and not later."""
        graph = tf.compat.v1.get_default_graph()
        if self._operation is None or self._operation.graph is not graph:
            self._operation = broadcast_global_variables(self._root_rank)

    def after_create_session(self, session: Any, coord: Any) -> None:
        """Runs the operation, once variables are initialized."""
        session.run(self._operation)


def broadcast_object_fn(
    root_rank: int = 0,
    session: Any = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Callable[[Any], Any]:
    """A function that broadcasts the object it gets; see `broadcast_object`."""

    def broadcast(obj: Any) -> Any:
        return broadcast_object(obj, root_rank, session, name, process_set)

    return broadcast


_TF1 = (
    "{} is of TensorFlow 1. HINT: hvd.broadcast_variables(model.variables, root_rank=0), or "
    "hvd.callbacks.BroadcastGlobalVariablesCallback(0) in fit."
)
