"""Detects which launcher started this process, and reads its cluster.

The order of precedence, and what happens where several launchers have set variables:

1. TFDDL_ALONE=1: a single worker. A TF_CONFIG of several workers beside it is an error.
2. TF_CONFIG, since a user or `tfddlrun` sets it for this very process. One of a single worker is
   an error beside a launcher that started several processes here.
3. RANK, WORLD_SIZE and LOCAL_RANK: torchrun is the innermost launcher, inside of mpirun, srun or a
   pod.
4. Open MPI, MVAPICH2, MPICH, Intel MPI, Cray PALS, Flux. `mpirun` may run in a Slurm allocation,
   and starts its own helpers by srun, whose variables its processes then inherit. PMI's variables
   of Slurm itself (`srun --mpi=pmi2`) count as Slurm's, which has the addresses, too.
5. RANK and WORLD_SIZE without LOCAL_RANK: one process per pod or node, or set by hand. Beside an
   MPI launcher or a Slurm step with another rank or size they are an error.
6. SageMaker. 7. Slurm. 8. PET_NNODES (Kubeflow Trainer), one process per pod.

A launcher of one process never overrules one of several: WORLD_SIZE=1 stays behind in shells, and
`mpirun -np 1` may well be within a step of four tasks. With none of them, and no indicator of
other processes (see `indicators`), the process is a single worker.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from tfddl._src.cluster.cluster import Cluster, PartialCluster
from tfddl._src.cluster.environment_variables import ALONE, is_single_worker
from tfddl._src.cluster.environments import (
    indicators,
    kubeflow,
    mpi,
    sagemaker,
    slurm,
    tf_config,
    torchrun,
)
from tfddl._src.cluster.task import Task
from tfddl.errors import ClusterError

_LOG = logging.getLogger("tfddl")


class Source(enum.Enum):
    """The variables that describe the cluster."""

    TF_CONFIG = "TF_CONFIG"
    TORCHRUN = "RANK and WORLD_SIZE"
    MPI = "MPI"
    SAGEMAKER = "SageMaker"
    SLURM = "Slurm"
    KUBEFLOW = "PET_NNODES"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Detected:
    """The variables that take precedence.

    Attributes:
        source: which.
        task: this process as they describe it, where they are a launcher's.
    """

    source: Source
    task: Task | None = None


def detect(environ: Mapping[str, str]) -> Cluster | PartialCluster:
    """Reads the cluster from the environment; the module says in which order.

    Args:
        environ: usually `os.environ`, which only entry points read. It is never changed.

    Returns:
        A `PartialCluster`, for `rendezvous.join`, where only rank, size and the address of rank 0
        are known. For an MPI job of several hosts MPI may have to be asked for that address: all
        processes must call this together.

    Raises:
        ClusterError: the variables are wrong, contradict each other, or indicate other processes
            without their addresses. Such a process is never taken for a single worker, or each of
            them would train by itself.
    """
    choice = detect_source(environ)
    task = choice.task
    if choice.source is Source.TF_CONFIG:
        return tf_config.parse(environ[tf_config.VARIABLE])
    if choice.source is Source.TORCHRUN and task is not None:
        return torchrun.build_cluster(task, environ)
    if choice.source is Source.MPI and task is not None:
        return mpi.build_cluster(task, environ)
    if choice.source is Source.SAGEMAKER and (container := sagemaker.find(environ)):
        return sagemaker.build_cluster(container, environ)
    if choice.source is Source.SLURM and (cluster := slurm.parse(environ)):
        return cluster
    if choice.source is Source.KUBEFLOW and (pod := kubeflow.find(environ)):
        return kubeflow.build_cluster(pod)
    if choice.source is Source.NOTHING and not is_single_worker(environ):
        # Not refused: an allocation of several tasks, and one process in it, is nothing wrong.
        if text := slurm.describe_idle_tasks(environ):
            _LOG.warning("%s", text)
    return Cluster.single_worker()


def detect_source(environ: Mapping[str, str]) -> Detected:
    """Decides which variables take precedence; communicates with nobody.

    Raises:
        ClusterError: as `detect`.
    """
    if environ.get(tf_config.VARIABLE, "").strip():
        return _choose_tf_config(environ)
    if is_single_worker(environ):
        return Detected(Source.NOTHING)
    choice = _choose_launcher(environ)
    if choice.source in (Source.TORCHRUN, Source.MPI):
        _refuse_separate_jobs(environ, choice)
    if choice.source is Source.NOTHING:
        indicators.refuse(environ)
    return choice


def _choose_tf_config(environ: Mapping[str, str]) -> Detected:
    size = tf_config.parse(environ[tf_config.VARIABLE]).size
    if is_single_worker(environ):
        if size > 1:
            raise ClusterError(
                f"{ALONE} is 1, but {tf_config.VARIABLE} names {size} workers. HINT: unset one of "
                "them"
            )
        return Detected(Source.NOTHING)
    others = _if_several(torchrun.find(environ)) if torchrun.is_per_process(environ) else None
    others = others or _if_several(mpi.find(environ))
    if size == 1 and others is not None:
        raise ClusterError(
            f"{tf_config.VARIABLE} names this worker alone, but {others.launcher} started "
            f"{others.size} ({others.source}). HINT: unset {tf_config.VARIABLE} to train together, "
            f"or set {ALONE}=1 to train alone"
        )
    return Detected(Source.TF_CONFIG)


def _choose_launcher(environ: Mapping[str, str]) -> Detected:
    torch_task = _if_several(torchrun.find(environ))
    if torch_task and torchrun.is_per_process(environ):
        return Detected(Source.TORCHRUN, torch_task)
    slurm_task = _if_several(slurm.find(environ))
    mpi_task = _if_several(mpi.find(environ))
    # Before Slurm: mpirun may run in a Slurm allocation.
    if mpi_task:
        _refuse_contradiction(torch_task, mpi_task)
        if slurm_task and mpi.is_set_by_slurm(environ) and _are_alike(mpi_task, slurm_task):
            return Detected(Source.SLURM, slurm_task)
        return Detected(Source.MPI, mpi_task)
    if torch_task:
        _refuse_contradiction(torch_task, slurm_task)
        return (
            Detected(Source.SLURM, slurm_task)
            if slurm_task
            else Detected(Source.TORCHRUN, torch_task)
        )
    container = sagemaker.find(environ)
    if container and len(container.hosts) > 1:
        return Detected(Source.SAGEMAKER)
    if slurm_task:
        return Detected(Source.SLURM, slurm_task)
    pod = kubeflow.find(environ)
    if pod and pod.num_nodes > 1:
        return Detected(Source.KUBEFLOW)
    return Detected(Source.NOTHING)


# A size of 1 may be left over in a shell, and never overrules several processes.
def _if_several(task: Task | None) -> Task | None:
    return task if task is not None and task.size > 1 else None


def _are_alike(one: Task, other: Task) -> bool:
    return (one.rank, one.size) == (other.rank, other.size)


def _refuse_contradiction(by_hand: Task | None, launched: Task | None) -> None:
    if by_hand and launched and not _are_alike(by_hand, launched):
        raise ClusterError(
            f"{by_hand.source} say rank {by_hand.rank} of {by_hand.size}, but {launched.launcher} "
            f"started this process as rank {launched.rank} of {launched.size} ({launched.source}). "
            f"HINT: unset {by_hand.source}, if they are left from something else"
        )


def _refuse_separate_jobs(environ: Mapping[str, str], choice: Detected) -> None:
    """Refuses a job of one host where an engine has started this process on several hosts.

    `torchrun --standalone` or `mpirun -np 8` on each of two hosts are two jobs that don't know of
    each other.
    """
    task = choice.task
    if task is None or not task.is_on_one_host:
        return
    container, pod = sagemaker.find(environ), kubeflow.find(environ)
    outer = {
        sagemaker.HOSTS: len(container.hosts) if container else 1,
        kubeflow.NODES: pod.num_nodes if pod else 1,
    }
    step = _if_several(slurm.find(environ))
    # Not for MPI: mpirun's helpers on other hosts are a Slurm step of their own.
    if step and choice.source is Source.TORCHRUN and not _are_alike(step, task):
        outer[step.source] = step.size
    for name, number in outer.items():
        if number > 1:
            raise ClusterError(
                f"{task.launcher} started all of its {task.size} workers on this host "
                f"({task.source}), but was itself started {number} times, by {name}. Each group "
                "would train by itself. HINT: one job over all hosts, as by tfddlrun on each of "
                f"them; or unset {name}, to train separately"
            )
