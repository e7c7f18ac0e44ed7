"""Horovod's operations without an average or a compression, of which its own are made."""

from collections.abc import Sequence
from typing import Any

from tfddl._src.horovod import mpi_ops
from tfddl._src.horovod.process_sets import ProcessSet, global_process_set
from tfddl._src.horovod.reductions import Sum


def allreduce(  # noqa: PLR0913 - Horovod's signature
    tensor: Any,
    name: str | None = None,
    op: Any = Sum,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    ignore_name_scope: bool = False,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """`mpi_ops.allreduce`, where ``op`` defaults to `Sum`."""
    return mpi_ops.allreduce(
        tensor,
        name=name,
        op=op,
        prescale_factor=prescale_factor,
        postscale_factor=postscale_factor,
        process_set=process_set,
    )


def grouped_allreduce(  # noqa: PLR0913 - Horovod's signature
    tensors: Sequence[Any],
    name: str | None = None,
    op: Any = Sum,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    ignore_name_scope: bool = False,
    process_set: ProcessSet = global_process_set,
) -> list[Any]:
    """`mpi_ops.grouped_allreduce`, where ``op`` defaults to `Sum`."""
    return mpi_ops.grouped_allreduce(
        tensors,
        name=name,
        op=op,
        prescale_factor=prescale_factor,
        postscale_factor=postscale_factor,
        process_set=process_set,
    )


def reducescatter(  # noqa: PLR0913 - Horovod's signature
    tensor: Any,
    name: str | None = None,
    op: Any = Sum,
    ignore_name_scope: bool = False,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> Any:
    """`mpi_ops.reducescatter`, where ``op`` defaults to `Sum`."""
    return mpi_ops.reducescatter(
        tensor,
        name=name,
        op=op,
        process_set=process_set,
        prescale_factor=prescale_factor,
        postscale_factor=postscale_factor,
    )
