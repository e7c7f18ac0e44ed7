"""`horovod.tensorflow`: what scripts with loops of their own import.

Usage::

    import tfddl.horovod.tensorflow as hvd

    hvd.init()
    tape = hvd.DistributedGradientTape(tape)
"""

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
from tfddl._src.horovod.common_util import split_list as split_list
from tfddl._src.horovod.compression import Compression as Compression
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
from tfddl._src.horovod.process_sets import ProcessSet as ProcessSet
from tfddl._src.horovod.process_sets import add_process_set as add_process_set
from tfddl._src.horovod.process_sets import global_process_set as global_process_set
from tfddl._src.horovod.process_sets import remove_process_set as remove_process_set
from tfddl._src.horovod.reductions import Adasum as Adasum
from tfddl._src.horovod.reductions import Average as Average
from tfddl._src.horovod.reductions import Max as Max
from tfddl._src.horovod.reductions import Min as Min
from tfddl._src.horovod.reductions import Product as Product
from tfddl._src.horovod.reductions import Sum as Sum
from tfddl._src.horovod.sync_batch_norm import SyncBatchNormalization as SyncBatchNormalization
from tfddl._src.horovod.tensorflow_wrappers import (
    DistributedGradientTape as DistributedGradientTape,
)
from tfddl._src.horovod.tensorflow_wrappers import DistributedOptimizer as DistributedOptimizer
from tfddl._src.horovod.tensorflow_wrappers import (
    PartialDistributedGradientTape as PartialDistributedGradientTape,
)
from tfddl._src.horovod.timeline import start_timeline as start_timeline
from tfddl._src.horovod.timeline import stop_timeline as stop_timeline
from tfddl.horovod import __version__ as __version__
from tfddl.horovod.tensorflow import compression as compression
from tfddl.horovod.tensorflow import elastic as elastic
from tfddl.horovod.tensorflow import functions as functions
from tfddl.horovod.tensorflow import gradient_aggregation as gradient_aggregation
from tfddl.horovod.tensorflow import keras as keras
from tfddl.horovod.tensorflow import mpi_ops as mpi_ops
from tfddl.horovod.tensorflow import sync_batch_norm as sync_batch_norm
from tfddl.horovod.tensorflow import util as util
from tfddl.horovod.tensorflow.util import _executing_eagerly as _executing_eagerly
