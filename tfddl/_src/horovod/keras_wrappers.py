"""Optimizers with the signatures of `horovod.keras`."""

from typing import Any

from tfddl._src.horovod.compression import Compression
from tfddl._src.horovod.optimizers import WrapperOptions, wrap_optimizer
from tfddl._src.horovod.process_sets import global_process_set
from tfddl._src.horovod.reductions import Average


def DistributedOptimizer(  # noqa: PLR0913 - Horovod's signature
    optimizer: Any,
    name: str | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    sparse_as_dense: bool = False,
    gradient_predivide_factor: float = 1.0,
    op: Any = Average,
    num_groups: int = 0,
    groups: Any = None,
    backward_passes_per_step: int = 1,
    average_aggregated_gradients: bool = False,
    process_set: Any = global_process_set,
    scale_local_gradients: bool = True,
) -> Any:
    """`tfddl.horovod.tensorflow.DistributedOptimizer`, in the order of Keras' arguments."""
    return PartialDistributedOptimizer(
        optimizer,
        name,
        device_dense,
        device_sparse,
        compression,
        sparse_as_dense,
        gradient_predivide_factor,
        op,
        num_groups,
        groups,
        backward_passes_per_step,
        average_aggregated_gradients,
        process_set,
        scale_local_gradients=scale_local_gradients,
    )


def PartialDistributedOptimizer(  # noqa: PLR0913 - Horovod's signature
    optimizer: Any,
    name: str | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    sparse_as_dense: bool = False,
    gradient_predivide_factor: float = 1.0,
    op: Any = Average,
    num_groups: int = 0,
    groups: Any = None,
    backward_passes_per_step: int = 1,
    average_aggregated_gradients: bool = False,
    process_set: Any = global_process_set,
    local_layers: Any = None,
    scale_local_gradients: bool = True,
) -> Any:
    """A `DistributedOptimizer` that excludes some layers.

    Their gradients aren't averaged, and `fit` doesn't broadcast their weights at its start.
    ``local_layers`` are one or several layers, built; the other arguments are those of
    `tfddl.horovod.tensorflow.DistributedOptimizer`.
    """
    options = WrapperOptions(
        compression=compression,
        sparse_as_dense=sparse_as_dense,
        op=op,
        gradient_predivide_factor=gradient_predivide_factor,
        num_groups=num_groups,
        groups=groups,
        process_set=process_set,
        scale_local_gradients=scale_local_gradients,
        device_dense=device_dense,
        device_sparse=device_sparse,
        local_layers=local_layers,
    )
    return wrap_optimizer(
        optimizer,
        options,
        backward_passes_per_step=backward_passes_per_step,
        average_aggregated_gradients=average_aggregated_gradients,
    )
