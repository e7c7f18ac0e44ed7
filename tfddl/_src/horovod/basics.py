"""The life of a job and who is who in it, by Horovod's names."""

import os
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

import tfddl
from tfddl._src.horovod.elastic_store import find_store
from tfddl._src.horovod.process_sets import (
    REGISTERED,
    ProcessSet,
    global_process_set,
    process_set_by_id,
)
from tfddl._src.horovod.settings import Settings
from tfddl._src.runtime import current
from tfddl.errors import UnsupportedError

_START_TIMEOUT_S = 600.0
"""How long `init` waits for the other workers, as `tfddl.init` does."""


def init(comm: Any = None, process_sets: Sequence[ProcessSet] | str | None = None) -> None:
    """Starts tfddl; see `tfddl.init`. All ranks must call it, before other TensorFlow operations.

    The environment says, as in Horovod, after how long ranks that don't come are warned of, and
    whether the operation fails then (HOROVOD_STALL_CHECK_TIME_SECONDS, 60, and
    HOROVOD_STALL_SHUTDOWN_TIME_SECONDS, 0 for never; where it isn't set, a rank that is busy is
    waited for without end, and ranks that wait for each other fail after 600 s), and where a
    timeline is written from the start on (HOROVOD_TIMELINE); where `tfddl.init` was called before,
    its settings hold.

    Args:
        comm: An MPI communicator, or ranks, in Horovod; only None here.
        process_sets: Those that have ids from now on, the same on all ranks; or "dynamic".

    Raises:
        UnsupportedError: There is a ``comm``; something that isn't a list of process sets; or one
            of them is there twice; the set of all ranks always is.
        StartError: A variable of the environment is no number of seconds.
        TfddlError: As `tfddl.init`.
    """
    if comm is not None:
        raise UnsupportedError(
            "init(comm=…) needs MPI, which tfddl has none of. Start the ranks that are to take "
            "part with tfddlrun, or use init(process_sets=[hvd.ProcessSet(ranks)])."
        )
    sets = _checked(process_sets)
    settings = Settings.of(os.environ)
    if not tfddl.is_initialized():
        tfddl.init(
            timeout_s=settings.stall_shutdown_s,
            start_timeout_s=_START_TIMEOUT_S,
            stall_warning_s=settings.stall_warning_s,
        )
    _refuse_duplicates([global_process_set, *sets])
    is_first = not REGISTERED.current().sets
    REGISTERED.current().sets = (global_process_set, *sets)
    find_store(os.environ)
    if settings.timeline is not None and is_first:
        tfddl.start_timeline(settings.timeline)


def _checked(process_sets: Any) -> list[ProcessSet]:
    if process_sets is None or process_sets == "dynamic":
        return []
    if not isinstance(process_sets, list | tuple) or not all(
        isinstance(one, ProcessSet) for one in process_sets
    ):
        raise UnsupportedError(
            f"process_sets is {process_sets!r}; it must be a list of hvd.ProcessSet, or None."
        )
    return list(process_sets)


def _refuse_duplicates(sets: Sequence[ProcessSet]) -> None:
    known: set[tuple[int, ...]] = set()
    for one in sets:
        if one.ranks in known:
            raise UnsupportedError(
                f"process_sets has {one} twice, or it is that of all ranks, which has the id 0 "
                "anyway. Leave it out; sets of the same ranks are the same set."
            )
        known.add(one.ranks)


def shutdown() -> None:
    """Ends the use of tfddl in this process; see `tfddl.shutdown`."""
    tfddl.shutdown()


def is_initialized() -> bool:
    """Whether `init` has been called, and `shutdown` not since."""
    return tfddl.is_initialized()


def size() -> int:
    """The number of workers. `ValueError` before `init`, as all that follow."""
    return tfddl.size()


def local_size() -> int:
    """The number of workers of this host."""
    return tfddl.local_size()


def cross_size() -> int:
    """The number of hosts that have a worker of this local rank."""
    return tfddl.cross_size()


def rank() -> int:
    """The number of this worker."""
    return tfddl.rank()


def local_rank() -> int:
    """The number of this worker among those of its host."""
    return tfddl.local_rank()


def cross_rank() -> int:
    """The number of this host among those that have a worker of this local rank."""
    return tfddl.cross_rank()


def is_homogeneous() -> bool:
    """Whether all hosts have the same number of workers."""
    cluster = current().cluster
    return cluster.local_size * len(cluster.hosts) == cluster.size and cluster.cross_size == len(
        cluster.hosts
    )


def rank_op(name: str | None = None) -> tf.Tensor:
    """`rank` as a tensor, int32."""
    return tf.constant(rank(), tf.int32, name=name or "rank")


def local_rank_op(name: str | None = None) -> tf.Tensor:
    """`local_rank` as a tensor, int32."""
    return tf.constant(local_rank(), tf.int32, name=name or "local_rank")


def size_op(process_set_id: int = 0, name: str | None = None) -> tf.Tensor:
    """The number of workers of a process set as a tensor, int32."""
    return tf.constant(process_set_by_id(process_set_id).size(), tf.int32, name=name or "size")


def local_size_op(name: str | None = None) -> tf.Tensor:
    """`local_size` as a tensor, int32."""
    return tf.constant(local_size(), tf.int32, name=name or "local_size")


def process_set_included_op(process_set_id: int = 0, name: str | None = None) -> tf.Tensor:
    """1 where this worker is in the process set, otherwise 0; int32."""
    included = process_set_by_id(process_set_id).included()
    return tf.constant(int(included), tf.int32, name=name or "process_set_included")


def mpi_threads_supported() -> bool:
    """False: there is no MPI."""
    return False


def mpi_enabled() -> bool:
    """False: there is no MPI."""
    return False


def mpi_built() -> bool:
    """False: there is no MPI."""
    return False


def gloo_enabled() -> bool:
    """Whether ranks meet without MPI: True, through TensorFlow's own runtime instead of Gloo."""
    return True


def gloo_built() -> bool:
    """Whether ranks can meet without MPI: True, through TensorFlow's own runtime."""
    return True


def nccl_built() -> int:
    """Whether gradients can travel by NCCL: where TensorFlow was built for GPUs."""
    return int(cuda_built())


def ddl_built() -> bool:
    """False: IBM's DDL isn't used."""
    return False


def ccl_built() -> bool:
    """False: Intel's oneCCL isn't used."""
    return False


def cuda_built() -> bool:
    """Whether TensorFlow was built for NVIDIA's GPUs."""
    return bool(tf.test.is_built_with_cuda())


def rocm_built() -> bool:
    """Whether TensorFlow was built for AMD's GPUs."""
    return bool(tf.test.is_built_with_rocm())
