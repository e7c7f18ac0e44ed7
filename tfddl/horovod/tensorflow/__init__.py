"""`horovod.tensorflow`: what scripts with loops of their own import.

Usage::

    import tfddl.horovod.tensorflow as hvd

    hvd.init()
    tape = hvd.DistributedGradientTape(tape)
"""

from typing import Any

from tfddl.errors import UnsupportedError
from tfddl.horovod import __version__ as __version__
from tfddl.horovod.normalization import SyncBatchNormalization as SyncBatchNormalization
from tfddl.horovod.reductions import ADASUM
from tfddl.horovod.reductions import Average as Average
from tfddl.horovod.reductions import Compression as Compression
from tfddl.horovod.reductions import Max as Max
from tfddl.horovod.reductions import Min as Min
from tfddl.horovod.reductions import Product as Product
from tfddl.horovod.reductions import Sum as Sum
from tfddl.horovod.sets import ProcessSet as ProcessSet
from tfddl.horovod.sets import add_process_set as add_process_set
from tfddl.horovod.sets import global_process_set as global_process_set
from tfddl.horovod.sets import remove_process_set as remove_process_set
from tfddl.horovod.tensorflow import elastic as elastic
from tfddl.horovod.tensorflow import util as util
from tfddl.horovod.tensors import BroadcastGlobalVariablesHook as BroadcastGlobalVariablesHook
from tfddl.horovod.tensors import allgather as allgather
from tfddl.horovod.tensors import allgather_object as allgather_object
from tfddl.horovod.tensors import allreduce as allreduce
from tfddl.horovod.tensors import alltoall as alltoall
from tfddl.horovod.tensors import barrier as barrier
from tfddl.horovod.tensors import broadcast as broadcast
from tfddl.horovod.tensors import broadcast_ as broadcast_
from tfddl.horovod.tensors import broadcast_global_variables as broadcast_global_variables
from tfddl.horovod.tensors import broadcast_object as broadcast_object
from tfddl.horovod.tensors import broadcast_object_fn as broadcast_object_fn
from tfddl.horovod.tensors import broadcast_variables as broadcast_variables
from tfddl.horovod.tensors import grouped_allgather as grouped_allgather
from tfddl.horovod.tensors import grouped_allreduce as grouped_allreduce
from tfddl.horovod.tensors import grouped_reducescatter as grouped_reducescatter
from tfddl.horovod.tensors import join as join
from tfddl.horovod.tensors import reducescatter as reducescatter
from tfddl.horovod.timeline import start_timeline as start_timeline
from tfddl.horovod.timeline import stop_timeline as stop_timeline
from tfddl.horovod.topology import ccl_built as ccl_built
from tfddl.horovod.topology import cross_rank as cross_rank
from tfddl.horovod.topology import cross_size as cross_size
from tfddl.horovod.topology import cuda_built as cuda_built
from tfddl.horovod.topology import ddl_built as ddl_built
from tfddl.horovod.topology import gloo_built as gloo_built
from tfddl.horovod.topology import gloo_enabled as gloo_enabled
from tfddl.horovod.topology import init as init
from tfddl.horovod.topology import is_homogeneous as is_homogeneous
from tfddl.horovod.topology import is_initialized as is_initialized
from tfddl.horovod.topology import local_rank as local_rank
from tfddl.horovod.topology import local_rank_op as local_rank_op
from tfddl.horovod.topology import local_size as local_size
from tfddl.horovod.topology import local_size_op as local_size_op
from tfddl.horovod.topology import mpi_built as mpi_built
from tfddl.horovod.topology import mpi_enabled as mpi_enabled
from tfddl.horovod.topology import mpi_threads_supported as mpi_threads_supported
from tfddl.horovod.topology import nccl_built as nccl_built
from tfddl.horovod.topology import process_set_included_op as process_set_included_op
from tfddl.horovod.topology import rank as rank
from tfddl.horovod.topology import rank_op as rank_op
from tfddl.horovod.topology import rocm_built as rocm_built
from tfddl.horovod.topology import shutdown as shutdown
from tfddl.horovod.topology import size as size
from tfddl.horovod.topology import size_op as size_op
from tfddl.horovod.training import Options, wrap_optimizer, wrap_tape


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
    options = Options(
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
    options = Options(
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
        raise UnsupportedError(ADASUM)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
