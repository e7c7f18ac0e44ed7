"""`horovod.tensorflow`: what scripts with loops of their own import.

Usage::

    import tfddl.horovod.tensorflow as hvd

    hvd.init()
    tape = hvd.DistributedGradientTape(tape)
"""

from typing import Any

from tfddl._src.horovod.basics import ccl_built as ccl_built
from tfddl._src.horovod.basics import cross_rank as cross_rank
from tfddl._src.horovod.basics import cross_size as cross_size
from tfddl._src.horovod.basics import cuda_built as cuda_built
from tfddl._src.horovod.basics import ddl_built as ddl_built
from tfddl._src.horovod.basics import gloo_built as gloo_built
from tfddl._src.horovod.basics import gloo_enabled as gloo_enabled
from tfddl._src.horovod.basics import init as init
from tfddl._src.horovod.basics import is_homogeneous as is_homogeneous
from tfddl._src.horovod.basics import is_initialized as is_initialized
from tfddl._src.horovod.basics import local_rank as local_rank
from tfddl._src.horovod.basics import local_rank_op as local_rank_op
from tfddl._src.horovod.basics import local_size as local_size
from tfddl._src.horovod.basics import local_size_op as local_size_op
from tfddl._src.horovod.basics import mpi_built as mpi_built
from tfddl._src.horovod.basics import mpi_enabled as mpi_enabled
from tfddl._src.horovod.basics import mpi_threads_supported as mpi_threads_supported
from tfddl._src.horovod.basics import nccl_built as nccl_built
from tfddl._src.horovod.basics import process_set_included_op as process_set_included_op
from tfddl._src.horovod.basics import rank as rank
from tfddl._src.horovod.basics import rank_op as rank_op
from tfddl._src.horovod.basics import rocm_built as rocm_built
from tfddl._src.horovod.basics import shutdown as shutdown
from tfddl._src.horovod.basics import size as size
from tfddl._src.horovod.basics import size_op as size_op
from tfddl._src.horovod.mpi_ops import BroadcastGlobalVariablesHook as BroadcastGlobalVariablesHook
from tfddl._src.horovod.mpi_ops import allgather as allgather
from tfddl._src.horovod.mpi_ops import allgather_object as allgather_object
from tfddl._src.horovod.mpi_ops import allreduce as allreduce
from tfddl._src.horovod.mpi_ops import alltoall as alltoall
from tfddl._src.horovod.mpi_ops import barrier as barrier
from tfddl._src.horovod.mpi_ops import broadcast as broadcast
from tfddl._src.horovod.mpi_ops import broadcast_ as broadcast_
from tfddl._src.horovod.mpi_ops import broadcast_global_variables as broadcast_global_variables
from tfddl._src.horovod.mpi_ops import broadcast_object as broadcast_object
from tfddl._src.horovod.mpi_ops import broadcast_object_fn as broadcast_object_fn
from tfddl._src.horovod.mpi_ops import broadcast_variables as broadcast_variables
from tfddl._src.horovod.mpi_ops import grouped_allgather as grouped_allgather
from tfddl._src.horovod.mpi_ops import grouped_allreduce as grouped_allreduce
from tfddl._src.horovod.mpi_ops import grouped_reducescatter as grouped_reducescatter
from tfddl._src.horovod.mpi_ops import join as join
from tfddl._src.horovod.mpi_ops import reducescatter as reducescatter
from tfddl._src.horovod.optimizers import WrapperOptions, wrap_optimizer, wrap_tape
from tfddl._src.horovod.process_sets import ProcessSet as ProcessSet
from tfddl._src.horovod.process_sets import add_process_set as add_process_set
from tfddl._src.horovod.process_sets import global_process_set as global_process_set
from tfddl._src.horovod.process_sets import remove_process_set as remove_process_set
from tfddl._src.horovod.reductions import ADASUM_HINT
from tfddl._src.horovod.reductions import Average as Average
from tfddl._src.horovod.reductions import Compression as Compression
from tfddl._src.horovod.reductions import Max as Max
from tfddl._src.horovod.reductions import Min as Min
from tfddl._src.horovod.reductions import Product as Product
from tfddl._src.horovod.reductions import Sum as Sum
from tfddl._src.horovod.sync_batch_norm import SyncBatchNormalization as SyncBatchNormalization
from tfddl._src.horovod.timeline import start_timeline as start_timeline
from tfddl._src.horovod.timeline import stop_timeline as stop_timeline
from tfddl.errors import UnsupportedError
from tfddl.horovod import __version__ as __version__
from tfddl.horovod.tensorflow import elastic as elastic
from tfddl.horovod.tensorflow import util as util


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
    """Wraps a `tf.GradientTape`: its gradients are averaged. See `tfddl.DistributedGradientTape`.

    Args:
        gradtape: The tape.
        device_dense: Has no effect.
        device_sparse: Has no effect.
        compression: `Compression.none`, or `Compression.fp16`.
        sparse_as_dense: Makes sparse gradients dense before they travel.
        op: `Average`, of which every rank's part weighs the same; or `Sum`.
        gradient_predivide_factor: What gradients are divided by before they are added up; the rest
            of the division comes after.
        num_groups: ``groups``, by its older name.
        groups: In how many exchanges gradients travel, or the variables of each exchange.
        process_set: Which ranks take part.
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
    """A `DistributedGradientTape` that leaves the gradients of some layers each rank's own.

    Args:
        gradtape: The tape.
        device_dense: Has no effect.
        device_sparse: Has no effect.
        compression: As for `DistributedGradientTape`, as what follows.
        sparse_as_dense: Likewise.
        op: Likewise.
        gradient_predivide_factor: Likewise.
        num_groups: Likewise.
        groups: Likewise.
        process_set: Likewise.
        local_layers: The layers, built; one or several.
        scale_local_gradients: Likewise.
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
    """A Keras optimizer whose gradients are averaged: the same object.

    See `tfddl.DistributedOptimizer`, which unlike this one weighs ranks by their numbers of
    examples. `evaluate` and `predict` of a model that is compiled with this one are each rank's
    own: any ranks may call them, and get the results of the data that they give.

    Args:
        optimizer: A Keras 3 optimizer.
        name: Has no effect.
        use_locking: Has no effect.
        device_dense: Has no effect.
        device_sparse: Has no effect.
        compression: As for `DistributedGradientTape`.
        sparse_as_dense: As for `DistributedGradientTape`.
        backward_passes_per_step: How many steps' gradients are applied at once.
        op: As for `DistributedGradientTape`.
        gradient_predivide_factor: As for `DistributedGradientTape`.
        average_aggregated_gradients: Whether the gradients of these steps are averaged; otherwise
            they are added up.
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
    return wrap_optimizer(
        optimizer,
        options,
        backward_passes_per_step=backward_passes_per_step,
        average_aggregated_gradients=average_aggregated_gradients,
    )


def __getattr__(name: str) -> Any:
    if name == "Adasum":
        raise UnsupportedError(ADASUM_HINT)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
