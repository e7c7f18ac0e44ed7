"""The collectives of `horovod.keras`: arrays and numbers in, NumPy out; eager only."""

from typing import Any

import tensorflow as tf

from tfddl._src.horovod import mpi_ops
from tfddl._src.horovod.compression import Compression
from tfddl._src.horovod.reductions import Average


def allreduce(  # noqa: PLR0913 - Horovod's signature
    value: Any,
    name: str | None = None,
    average: bool | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    op: Any = None,
    compression: Any = Compression.none,
) -> Any:
    """`mpi_ops.allreduce` of a value; returns a NumPy array or number of its shape."""
    reduced = mpi_ops.allreduce(
        tf.convert_to_tensor(value),
        average=average,
        op=op,
        compression=compression,
        prescale_factor=prescale_factor,
        postscale_factor=postscale_factor,
        name=name,
    )
    return reduced.numpy()


def allgather(value: Any, name: str | None = None) -> Any:
    """`mpi_ops.allgather` of an array; the ranks' rows, one behind the other."""
    return mpi_ops.allgather(tf.convert_to_tensor(value), name=name).numpy()


def broadcast(value: Any, root_rank: int, name: str | None = None) -> Any:
    """`mpi_ops.broadcast` of a value; that of the root rank."""
    return mpi_ops.broadcast(tf.convert_to_tensor(value), root_rank, name=name).numpy()


def reducescatter(value: Any, name: str | None = None, op: Any = Average) -> Any:
    """`mpi_ops.reducescatter` of an array; this rank's rows of the reduction."""
    return mpi_ops.reducescatter(tf.convert_to_tensor(value), op=op, name=name).numpy()
