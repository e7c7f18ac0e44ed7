"""Finds out who takes part, from whatever started this process.

The order, and what is done where several speak at once:

1. TFDDL_ALONE=1: this process trains alone. A TF_CONFIG of several workers beside it is an error.
2. TF_CONFIG, since a user or `tfddlrun` sets it for this very process. One of a single worker is
   an error beside a launcher that started several processes here.
3. RANK, WORLD_SIZE and LOCAL_RANK: torchrun starts its processes last, inside of what mpirun, srun
   or a pod gives it.
4. Open MPI, MVAPICH2, MPICH, Intel MPI, Cray PALS, Flux. `mpirun` may run in a Slurm allocation,
   and starts its own helpers by srun, whose variables its processes then inherit. PMI's variables
   of Slurm itself (`srun --mpi=pmi2`) count as Slurm's, which tells more.
5. RANK and WORLD_SIZE without LOCAL_RANK: one process per pod or node, or set by hand. Beside an
   MPI launcher or a Slurm step that says something else they are an error.
6. SageMaker. 7. Slurm. 8. PET_NNODES (Kubeflow Trainer), one process per pod.

A launcher of one process never overrules one of several: WORLD_SIZE=1 stays behind in shells, and
`mpirun -np 1` may well be within a step of four tasks. With none of them, and no sign of others
(see `indicators`), the process is alone.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from tfddl._src.cluster.cluster import Cluster, PartialCluster
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
from tfddl._src.cluster.variables import ALONE, is_single_worker
from tfddl.errors import ClusterError


class Source(enum.Enum):
    """What tells this process who takes part."""

    TF_CONFIG = "TF_CONFIG"
    TORCHRUN = "RANK and WORLD_SIZE"
    MPI = "MPI"
    SAGEMAKER = "SageMaker"
    SLURM = "Slurm"
    KUBEFLOW = "PET_NNODES"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Detected:
    """Whose variables count.

    Attributes:
        source: whose.
        task: what they say of this process, where it is a launcher's.
    """

    source: Source
    task: Task | None = None


def detect(environ: Mapping[str, str]) -> Cluster | PartialCluster:
    """Reads the cluster from the environment; see above for the order.

    Args:
        environ: usually `os.environ`, which only entry points read. It is never changed.

    Returns:
        A `PartialCluster` where only rank, size and the address of rank 0 are known, for
        `rendezvous.join`. An MPI job of several hosts may have to ask MPI for that address: then
        all processes must call this together.

    Raises:
        ClusterError: what was found is wrong, contradicts itself, or speaks of others without
            saying where they are. It is never taken for "alone", or every process would train by
            itself.
    """
    choice = choose(environ)
    task = choice.task
    if choice.source is Source.TF_CONFIG:
        return tf_config.parse(environ[tf_config.VARIABLE])
    if choice.source is Source.TORCHRUN and task is not None:
        return torchrun.complete(task, environ)
    if choice.source is Source.MPI and task is not None:
        return mpi.complete(task, environ)
    if choice.source is Source.SAGEMAKER and (container := sagemaker.find(environ)):
        return sagemaker.complete(container, environ)
    if choice.source is Source.SLURM and (cluster := slurm.parse(environ)):
        return cluster
    if choice.source is Source.KUBEFLOW and (pod := kubeflow.find(environ)):
        return kubeflow.complete(pod)
    return Cluster.single_worker()


def choose(environ: Mapping[str, str]) -> Detected:
    """Decides whose variables count, without asking anybody; see above.

    Raises:
        ClusterError: as `detect`.
    """
    if environ.get(tf_config.VARIABLE, "").strip():
        return _choose_tf_config(environ)
    if is_single_worker(environ):
        return Detected(Source.NOTHING)
    choice = _choose_launcher(environ)
    if choice.source in (Source.TORCHRUN, Source.MPI):
        _refuse_islands(environ, choice)
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
    others = _several(torchrun.find(environ)) if torchrun.is_per_process(environ) else None
    others = others or _several(mpi.find(environ))
    if size == 1 and others is not None:
        raise ClusterError(
            f"{tf_config.VARIABLE} names this worker alone, but {others.launcher} started "
            f"{others.size} ({others.source}). HINT: unset {tf_config.VARIABLE} to train together, "
            f"or set {ALONE}=1 to train alone"
        )
    return Detected(Source.TF_CONFIG)


def _choose_launcher(environ: Mapping[str, str]) -> Detected:
    torch_task = _several(torchrun.find(environ))
    if torch_task and torchrun.is_per_process(environ):
        return Detected(Source.TORCHRUN, torch_task)
    slurm_task = _several(slurm.find(environ))
    mpi_task = _several(mpi.find(environ))
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


def _several(task: Task | None) -> Task | None:
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


def _refuse_islands(environ: Mapping[str, str], choice: Detected) -> None:
    """Refuses jobs of one host each where an engine has started this on several.

    `torchrun --standalone` or `mpirun -np 8` on each of two hosts would be two jobs, each of
    which believes to be the only one.
    """
    task = choice.task
    if task is None or not task.is_on_one_host:
        return
    container, pod = sagemaker.find(environ), kubeflow.find(environ)
    outer = {
        sagemaker.HOSTS: len(container.hosts) if container else 1,
        kubeflow.NODES: pod.num_nodes if pod else 1,
    }
    step = _several(slurm.find(environ))
    # mpirun's helpers on other hosts are a Slurm step of their own.
    if step and choice.source is Source.TORCHRUN and not _are_alike(step, task):
        outer[step.source] = step.size
    for name, number in outer.items():
        if number > 1:
            raise ClusterError(
                f"{task.launcher} started all of its {task.size} workers on this host "
                f"({task.source}), but {name} speak of {number} on which this was started. Each of "
                f"them would train by itself. HINT: one job over all hosts, as by tfddlrun on each "
                f"of them; or unset {name}, where they are to train apart"
            )
