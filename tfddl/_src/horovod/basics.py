"""`init`, `shutdown`, ranks and sizes, by Horovod's names (horovod/common/basics.py)."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

import tfddl
from tfddl._src.collectives import limit_fusion
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

_LOG = logging.getLogger("tfddl")

_START_TIMEOUT_S = 600.0
"""How long `init` waits for the other workers; the default of `tfddl.init`."""


def init(comm: Any = None, process_sets: Sequence[ProcessSet] | str | None = None) -> None:
    """Starts tfddl; see `tfddl.init`. All ranks must call it, before other TensorFlow operations.

    As in Horovod, the environment has options: HOROVOD_STALL_CHECK_TIME_SECONDS (60), after which
    missing ranks are logged; HOROVOD_STALL_SHUTDOWN_TIME_SECONDS, after which the operation fails
    (0 is never; unset, never for a rank that is busy, and after 600 s where ranks wait for each
    other); HOROVOD_TIMELINE, the file of a timeline from the start on; HOROVOD_FUSION_THRESHOLD,
    how many bytes travel together, the same on all ranks. Where `tfddl.init` was called before, its
    options hold.

    Args:
        comm: In Horovod an MPI communicator, or ranks; must be None.
        process_sets: Process sets that get ids, in this order, the same on all ranks; or "dynamic":
            `add_process_set` gives ids while the job runs, as it does with
            HOROVOD_DYNAMIC_PROCESS_SETS=1.

    Raises:
        UnsupportedError: There is a ``comm``; ``process_sets`` is something else; or two sets have
            the same ranks (the set of all ranks is always there).
        StartError: A variable of the environment is no number of seconds, or of bytes.
        TfddlError: As `tfddl.init`.
    """
    if comm is not None:
        raise UnsupportedError(
            "init(comm=…) needs MPI, which tfddl doesn't use. HINT: start only the ranks that take "
            "part with tfddlrun, or use init(process_sets=[hvd.ProcessSet(ranks)])."
        )
    is_dynamic = isinstance(process_sets, str) and process_sets.lower() == "dynamic"
    sets = _checked(None if is_dynamic else process_sets)
    settings = Settings.of(os.environ)
    if not tfddl.is_initialized():
        tfddl.init(
            timeout_s=settings.stall_shutdown_s,
            start_timeout_s=_START_TIMEOUT_S,
            stall_warning_s=settings.stall_warning_s,
        )
    _refuse_duplicates([global_process_set, *sets])
    known = REGISTERED.current()
    is_first = not known.is_initialized
    if is_first or sets:
        known.assign(sets)
    known.is_initialized = True
    known.is_dynamic |= is_dynamic or settings.dynamic_process_sets
    if settings.fusion_bytes is not None:
        limit_fusion(settings.fusion_bytes)
    if settings.without_effect and is_first and tfddl.rank() == 0:
        _LOG.warning(
            "without effect: %s (nothing waits for a cycle, or is tuned while the job runs)",
            ", ".join(settings.without_effect),
        )
    find_store(os.environ)
    if settings.timeline is not None and is_first:
        tfddl.start_timeline(settings.timeline)


def _checked(process_sets: Any) -> list[ProcessSet]:
    if process_sets is None:
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
                f"process_sets has ranks {list(one.ranks)} twice, or it is the set of all, which "
                "always has id 0. HINT: leave it out; sets of the same ranks are the same set."
            )
        known.add(one.ranks)


def shutdown() -> None:
    """Stops tfddl in this process; see `tfddl.shutdown`."""
    tfddl.shutdown()


def is_initialized() -> bool:
    """Whether `init` has been called, without `shutdown` since."""
    return tfddl.is_initialized()


def size() -> int:
    """The number of workers. Before `init` this, and what follows, raises a `ValueError`."""
    return tfddl.size()


def local_size() -> int:
    """The number of workers on this host."""
    return tfddl.local_size()


def cross_size() -> int:
    """The number of hosts that have a worker of this local rank."""
    return tfddl.cross_size()


def rank() -> int:
    """The rank of this worker."""
    return tfddl.rank()


def local_rank() -> int:
    """The rank of this worker among the workers of its host."""
    return tfddl.local_rank()


def cross_rank() -> int:
    """The rank of this host among the hosts that have a worker of this local rank."""
    return tfddl.cross_rank()


def is_homogeneous() -> bool:
    """Whether all hosts have the same number of workers."""
    cluster = current().cluster
    return cluster.local_size * len(cluster.hosts) == cluster.size and cluster.cross_size == len(
        cluster.hosts
    )


def rank_op(name: str | None = None) -> tf.Tensor:
    """`rank` as an int32 scalar tensor."""
    return tf.constant(rank(), tf.int32, name=name or "rank")


def local_rank_op(name: str | None = None) -> tf.Tensor:
    """`local_rank` as an int32 scalar tensor."""
    return tf.constant(local_rank(), tf.int32, name=name or "local_rank")


def size_op(process_set_id: int = 0, name: str | None = None) -> tf.Tensor:
    """The size of a process set as an int32 scalar tensor."""
    return tf.constant(process_set_by_id(process_set_id).size(), tf.int32, name=name or "size")


def local_size_op(name: str | None = None) -> tf.Tensor:
    """`local_size` as an int32 scalar tensor."""
    return tf.constant(local_size(), tf.int32, name=name or "local_size")


def process_set_included_op(process_set_id: int = 0, name: str | None = None) -> tf.Tensor:
    """1 where this worker is in the process set, otherwise 0, as an int32 scalar tensor."""
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
    """Whether collectives work without MPI: True, though they aren't Gloo's."""
    return True


def gloo_built() -> bool:
    """Whether collectives can work without MPI: True, though they aren't Gloo's."""
    return True


def nccl_built() -> int:
    """1 where TensorFlow was built for NVIDIA's GPUs, with which tfddl uses NCCL; else 0."""
    return int(cuda_built())


def ddl_built() -> bool:
    """False: there is no IBM DDL."""
    return False


def ccl_built() -> bool:
    """False: there is no Intel oneCCL."""
    return False


def cuda_built() -> bool:
    """Whether TensorFlow was built for NVIDIA's GPUs."""
    return bool(tf.test.is_built_with_cuda())


def rocm_built() -> bool:
    """Whether TensorFlow was built for AMD's GPUs."""
    return bool(tf.test.is_built_with_rocm())
