"""Tapes and optimizer with the signatures of `horovod.tensorflow`."""

from typing import Any

import tensorflow as tf

from tfddl._src.horovod.compression import Compression
from tfddl._src.horovod.optimizers import (
    WrapperOptions,
    wrap_optimizer,
    wrap_tape,
    wrap_tf1_optimizer,
)
from tfddl._src.horovod.process_sets import global_process_set
from tfddl._src.horovod.reductions import Average


def DistributedGradientTape(  # noqa: PLR0913 - Horovod's signature
    gradtape: Any,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    sparse_as_dense: bool = False,
    op: Any = Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: Any = None,
    process_set: Any = global_process_set,
    scale_local_gradients: bool = True,
) -> Any:
    """A `tf.GradientTape` whose gradients are averaged; see `tfddl.DistributedGradientTape`.

    Args:
        gradtape: The tape.
        device_dense: Has no effect.
        device_sparse: Has no effect.
        compression: `Compression.none`, `Compression.fp16`, or a class of one's own with static
            methods ``compress`` and ``decompress``.
        sparse_as_dense: Converts sparse gradients to dense ones before they are reduced.
        op: `Average`, with equal weights of all ranks; `Sum`; or `Adasum`, of 2, 4, 8, … ranks.
        gradient_predivide_factor: Gradients are divided by it before the sum, and by the rest of
            the number of ranks after it.
        num_groups: The deprecated name of ``groups``.
        groups: The number of fusion groups, or the variables of each.
        process_set: The ranks that take part.
        scale_local_gradients: Whether gradients that stay a rank's own (`register_local_source`)
            are divided by the number of ranks.
    """
    return PartialDistributedGradientTape(
        gradtape,
        device_dense,
        device_sparse,
        compression,
        sparse_as_dense,
        op,
        gradient_predivide_factor,
        num_groups,
        groups,
        process_set,
        scale_local_gradients=scale_local_gradients,
    )


def PartialDistributedGradientTape(  # noqa: PLR0913 - Horovod's signature
    gradtape: Any,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    sparse_as_dense: bool = False,
    op: Any = Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: Any = None,
    process_set: Any = global_process_set,
    local_layers: Any = None,
    scale_local_gradients: bool = True,
) -> Any:
    """A `DistributedGradientTape` that excludes some layers: their gradients stay each rank's.

    Args:
        gradtape: The tape.
        device_dense: Has no effect.
        device_sparse: Has no effect.
        compression: As for `DistributedGradientTape`.
        sparse_as_dense: As for `DistributedGradientTape`.
        op: As for `DistributedGradientTape`.
        gradient_predivide_factor: As for `DistributedGradientTape`.
        num_groups: As for `DistributedGradientTape`.
        groups: As for `DistributedGradientTape`.
        process_set: As for `DistributedGradientTape`.
        local_layers: A layer, or several, which are built.
        scale_local_gradients: As for `DistributedGradientTape`.
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
    return wrap_tape(gradtape, options)


def DistributedOptimizer(  # noqa: PLR0913 - Horovod's signature
    optimizer: Any,
    name: str | None = None,
    use_locking: bool = False,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    sparse_as_dense: bool = False,
    backward_passes_per_step: int = 1,
    op: Any = Average,
    gradient_predivide_factor: float = 1.0,
    average_aggregated_gradients: bool = False,
    num_groups: int = 0,
    groups: Any = None,
    process_set: Any = global_process_set,
    scale_local_gradients: bool = True,
) -> Any:
    """An optimizer whose gradients are averaged: one of Keras is the same object.

    `tfddl.DistributedOptimizer` weights ranks by their numbers of examples; this one weights them
    equally, as Horovod does. `evaluate` and `predict` of a model that is compiled with it are each
    rank's own: any rank may call them, for the results of its own data.

    Args:
        optimizer: A Keras 3 optimizer; or one of `tf.compat.v1.train`, which is wrapped: its
            `compute_gradients` averages, eagerly or in a `tf.Graph` for a session.
        name: Of a wrapper; has no effect on Keras' optimizers.
        use_locking: Has no effect.
        device_dense: Has no effect.
        device_sparse: Has no effect.
        compression: As for `DistributedGradientTape`.
        sparse_as_dense: As for `DistributedGradientTape`.
        backward_passes_per_step: Over how many steps gradients are accumulated.
        op: As for `DistributedGradientTape`.
        gradient_predivide_factor: As for `DistributedGradientTape`.
        average_aggregated_gradients: Whether accumulated gradients are averaged rather than
            summed.
        num_groups: As for `DistributedGradientTape`.
        groups: As for `DistributedGradientTape`.
        process_set: As for `DistributedGradientTape`.
        scale_local_gradients: As for `DistributedGradientTape`.
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
    )
    if isinstance(optimizer, tf.compat.v1.train.Optimizer):
        return wrap_tf1_optimizer(
            optimizer,
            options,
            name=name,
            backward_passes_per_step=backward_passes_per_step,
            average_aggregated_gradients=average_aggregated_gradients,
        )
    return wrap_optimizer(
        optimizer,
        options,
        backward_passes_per_step=backward_passes_per_step,
        average_aggregated_gradients=average_aggregated_gradients,
    )
