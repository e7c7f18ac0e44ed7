"""RANK, WORLD_SIZE and MASTER_ADDR: torchrun, and launchers that set the same variables.

torchrun, `accelerate`, `deepspeed` and Azure ML start the processes of a host, and set LOCAL_RANK
for each. Engines that start one process per host (Kubeflow's PyTorchJob, Alibaba PAI) set RANK and
WORLD_SIZE without it.

References:
    torchrun, "Environment Variables": https://docs.pytorch.org/docs/stable/elastic/run.html
"""

from __future__ import annotations

from collections.abc import Mapping

from tfddl._src.cluster.cluster import Cluster, PartialCluster
from tfddl._src.cluster.environment_variables import DEFAULT_PORT, read_int
from tfddl._src.cluster.environments import kubeflow
from tfddl._src.cluster.environments.master_address import (
    ADDRESS,
    MASTER,
    PORT,
    master_port,
    read_master,
)
from tfddl._src.cluster.task import Task, build_local_cluster, build_partial_cluster
from tfddl.errors import ClusterError

RANK = "RANK"
SIZE = "WORLD_SIZE"
LOCAL_RANK = "LOCAL_RANK"
LOCAL_SIZE = "LOCAL_WORLD_SIZE"
RUN_ID = "TORCHELASTIC_RUN_ID"


def find(environ: Mapping[str, str]) -> Task | None:
    """This process as RANK and WORLD_SIZE describe it; None unless both are set.

    Raises:
        ClusterError: they aren't numbers, or contradict each other.
    """
    if not environ.get(RANK) or not environ.get(SIZE):
        return None
    names = [RANK, SIZE, *(name for name in (LOCAL_RANK, LOCAL_SIZE) if environ.get(name))]
    run_id = environ.get(RUN_ID, "")
    return Task(
        launcher="torchrun" if is_per_process(environ) else "the job",
        rank=read_int(environ, RANK),
        size=read_int(environ, SIZE),
        local_rank=read_int(environ, LOCAL_RANK) if environ.get(LOCAL_RANK) else None,
        local_size=read_int(environ, LOCAL_SIZE) if environ.get(LOCAL_SIZE) else None,
        job="" if run_id == "none" else run_id,  # torchrun's default.
        source=", ".join(names),
    )


def is_per_process(environ: Mapping[str, str]) -> bool:
    """Whether RANK is the rank of this process, not of its node or pod."""
    return bool(environ.get(LOCAL_RANK) or environ.get(RUN_ID))


def build_cluster(task: Task, environ: Mapping[str, str]) -> Cluster | PartialCluster:
    """The cluster of a task of several processes that `find` has returned.

    Where all are on this host, ports begin at TFDDL_PORT, or else MASTER_PORT, or else 12345.

    Raises:
        ClusterError: the address of rank 0 isn't known; or this is the only process of a host that
            should have several (PET_NPROC_PER_NODE).
    """
    if not is_per_process(environ):
        kubeflow.refuse_several_workers(environ)
    if task.is_on_one_host:
        first = master_port(environ) if environ.get(PORT) else DEFAULT_PORT
        return build_local_cluster(task, environ, first_port=first)
    found = read_master(environ)
    if found is None:
        raise ClusterError(
            f"by {task.source} there are {task.size} workers, but no address of rank 0 is set; "
            f"expected {ADDRESS} and {PORT}, or {MASTER}. HINT: {MASTER}=hostA in every process"
        )
    return build_partial_cluster(task, found[0], said_by=found[1])
