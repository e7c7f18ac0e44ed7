"""Horovod's collectives for Keras: arrays and numbers in, NumPy out."""

from typing import Any

import tensorflow as tf

from tfddl._src.horovod import mpi_ops
from tfddl._src.horovod.reductions import Average, Compression


def allreduce(  # noqa: PLR0913 - Horovod's signature
    value: Any,
    name: str | None = None,
    average: bool | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    op: Any = None,
    compression: Any = Compression.none,
) -> Any:
    """See `tfddl.allreduce`."""
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
    """See `tfddl.allgather`."""
    return mpi_ops.allgather(tf.convert_to_tensor(value), name=name).numpy()


def broadcast(value: Any, root_rank: int, name: str | None = None) -> Any:
    """See `tfddl.broadcast`."""
    return mpi_ops.broadcast(tf.convert_to_tensor(value), root_rank, name=name).numpy()


def reducescatter(value: Any, name: str | None = None, op: Any = Average) -> Any:
    """See `tfddl.reducescatter`."""
    return mpi_ops.reducescatter(tf.convert_to_tensor(value), op=op, name=name).numpy()
