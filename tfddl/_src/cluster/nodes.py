"""The node rank of `tfddlrun`, where an engine has started it once on each host of a job."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from tfddl._src.cluster.cluster import check_address
from tfddl._src.cluster.environment_variables import is_single_worker
from tfddl._src.cluster.environments import (
    indicators,
    kubeflow,
    kubernetes,
    mpi,
    sagemaker,
    slurm,
    tf_config,
    torchrun,
)
from tfddl._src.cluster.environments.master_address import address_with_default_port, read_master
from tfddl._src.cluster.parsing import MAX_CLUSTER_SIZE, parse_int
from tfddl._src.cluster.task import Task
from tfddl.errors import ClusterError

_NODE = "NODE_RANK"
_WORKERS = "NPROC_PER_NODE"  # Alibaba PAI's, beside RANK and WORLD_SIZE of nodes.


@dataclass(frozen=True)
class NodeRank:
    """This host among those on which `tfddlrun` was started.

    Attributes:
        node_rank: this host, in [0, num_nodes). Node 0 has the first ranks.
        num_nodes: number of hosts; 1 where the engine started nothing but this.
        master: "host:port" at which the others reach node 0, as the engine says; nothing listens
            there yet. None where the engine doesn't say: then the user has to (`--master-addr`) if
            `num_nodes` is above 1.
        workers_per_node: number of workers that the engine wants on each host
            (PET_NPROC_PER_NODE, SM_NUM_GPUS), at least 1; None where it leaves that to tfddlrun.
        job: see `tfddl._src.cluster.Cluster`.
        source: the variables that this was read from, for errors: "SM_HOSTS, SM_CURRENT_HOST".

    Raises:
        ClusterError: a number is out of its range, or `master` is no address.
    """

    node_rank: int
    num_nodes: int
    master: str | None = None
    workers_per_node: int | None = None
    job: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        said = f" in {self.source}" if self.source else ""
        if not 1 <= self.num_nodes <= MAX_CLUSTER_SIZE:
            raise ClusterError(
                f"the number of nodes is {self.num_nodes}{said}; it must be 1..{MAX_CLUSTER_SIZE}"
            )
        if not 0 <= self.node_rank < self.num_nodes:
            raise ClusterError(
                f"the node rank is {self.node_rank} among {self.num_nodes} nodes{said}; it must be "
                f"0..{self.num_nodes - 1}"
            )
        if self.master is not None:
            check_address(self.master, "the address of node 0")
        if self.workers_per_node is not None and not 1 <= self.workers_per_node <= MAX_CLUSTER_SIZE:
            raise ClusterError(
                f"the number of workers of a node is {self.workers_per_node}{said}; it must be "
                f"1..{MAX_CLUSTER_SIZE}"
            )


def detect_nodes(environ: Mapping[str, str], *, num_nodes: int | None = None) -> NodeRank | None:
    """Reads the node rank from the environment.

    Args:
        environ: usually `os.environ`, which only entry points read.
        num_nodes: number of hosts given by `--nnodes`. It is needed where the environment doesn't
            have it (an Indexed Job of Kubernetes); where it does, the two must agree.

    Returns:
        None where nothing indicates other hosts: a job on this host, or on the hosts that `-H`
        names.

    Raises:
        ClusterError: there are other hosts, and something that is needed isn't known; or the
            variables are wrong, or of several processes per host. Such a host is never taken for
            the only one, or each would train by itself.
    """
    if num_nodes == 1:
        return NodeRank(0, 1, source="--nnodes")
    found = _find(environ, num_nodes)
    if found is not None and num_nodes is not None and found.num_nodes != num_nodes:
        raise ClusterError(
            f"--nnodes is {num_nodes}, but there are {found.num_nodes} by {found.source}. HINT: "
            "leave --nnodes out"
        )
    return found


def _find(environ: Mapping[str, str], num_nodes: int | None) -> NodeRank | None:
    if environ.get(tf_config.VARIABLE, "").strip():
        return _from_tf_config(environ)
    if is_single_worker(environ):
        return None
    # The precedence of `detection`, but for Kubeflow Trainer's variables, which are last there.
    for read in (
        _from_torchrun,
        _from_kubeflow,
        _from_mpi,
        _from_pods,
        _from_sagemaker,
        _from_slurm,
    ):
        found = read(environ)
        if found is not None:
            return found
    index = kubernetes.find_index(environ)
    if index is not None:
        return _from_kubernetes(environ, index, num_nodes or kubernetes.find_num_nodes(environ))
    indicators.refuse(environ)
    return None


def _from_tf_config(environ: Mapping[str, str]) -> NodeRank:
    cluster = tf_config.parse(environ[tf_config.VARIABLE])
    if len(cluster.hosts) != cluster.size:
        raise ClusterError(
            f"{tf_config.VARIABLE} names {cluster.size} workers on {len(cluster.hosts)} hosts; for "
            "tfddlrun, which starts the workers of a host, it must name each host once. HINT: "
            "run the script itself, without tfddlrun"
        )
    return NodeRank(
        cluster.rank,
        cluster.size,
        master=cluster.addresses[0] if cluster.size > 1 else None,
        source=tf_config.VARIABLE,
    )


def _from_torchrun(environ: Mapping[str, str]) -> NodeRank | None:
    task = torchrun.find(environ)
    if task is None or task.size == 1 or not torchrun.is_per_process(environ):
        return None  # A size of 1 may be left over in a shell.
    # Azure ML sets no local size, but NODE_RANK.
    if task.local_size is None and task.local_rank == 0 and environ.get(_NODE) == str(task.rank):
        task = dataclasses.replace(task, local_size=1)
    return _from_task(task, read_master(environ))


def _from_kubeflow(environ: Mapping[str, str]) -> NodeRank | None:
    pod = kubeflow.find(environ)
    if pod is None:
        return None
    return NodeRank(
        pod.node_rank,
        pod.num_nodes,
        master=pod.master,
        workers_per_node=pod.workers_per_node,
        job=pod.job,
        source=pod.source,
    )


def _from_mpi(environ: Mapping[str, str]) -> NodeRank | None:
    task = mpi.find(environ)
    if task is None or task.size == 1:
        return None
    slurm_task = slurm.find(environ)
    if mpi.is_set_by_slurm(environ) and slurm_task is not None and slurm_task.size == task.size:
        return None
    return _from_task(task, mpi.find_master(task, environ) if task.local_size == 1 else None)


def _from_pods(environ: Mapping[str, str]) -> NodeRank | None:
    """RANK and WORLD_SIZE of pods or nodes, not of processes."""
    task = torchrun.find(environ)
    if task is None or task.size == 1:
        return None
    workers = environ.get(_WORKERS)
    return NodeRank(
        task.rank,
        task.size,
        master=(read_master(environ) or (None, ""))[0],
        workers_per_node=parse_int(workers, what=_WORKERS, low=1) if workers else None,
        source=task.source,
    )


def _from_sagemaker(environ: Mapping[str, str]) -> NodeRank | None:
    container = sagemaker.find(environ)
    if container is None:
        return None
    first = address_with_default_port(environ, container.hosts[0], f"a host of {sagemaker.HOSTS}")
    return NodeRank(
        container.index,
        len(container.hosts),
        master=first if len(container.hosts) > 1 else None,
        workers_per_node=container.num_gpus or None,
        job=container.job,
        source=sagemaker.HOSTS,
    )


def _from_slurm(environ: Mapping[str, str]) -> NodeRank | None:
    cluster = slurm.parse(environ)
    # The bare script of `sbatch` is no step: tfddlrun then starts workers on the hosts of -H.
    if cluster is None:
        return None
    if len(cluster.hosts) != cluster.size:
        hosts = f"{len(cluster.hosts)} host{'s' * (len(cluster.hosts) > 1)}"
        raise ClusterError(
            f"srun started tfddlrun {cluster.size} times on {hosts}; it must "
            "run once on each, and starts the workers itself. HINT: srun --ntasks-per-node=1 "
            "tfddlrun …, or srun python train.py without tfddlrun"
        )
    return NodeRank(
        cluster.rank,
        cluster.size,
        master=cluster.addresses[0],
        job=cluster.job,
        source="SLURM_STEP_NODELIST, SLURM_PROCID",
    )


def _from_kubernetes(environ: Mapping[str, str], index: int, num_nodes: int | None) -> NodeRank:
    if num_nodes is None:
        raise ClusterError(
            f"{kubernetes.INDEX} is {index}: this is a pod of an Indexed Job, which doesn't tell "
            "how many there are. HINT: tfddlrun --nnodes N …, the completions of the Job; or "
            f"{kubernetes.NODES}=N in its manifest; or --nnodes 1, where each pod trains by itself"
        )
    found = read_master(environ)
    master = found[0] if found else None
    if master is None and (host := kubernetes.first_host(socket.getfqdn(), index)):
        master = address_with_default_port(environ, host, "the first pod")
    return NodeRank(
        index,
        num_nodes,
        master=master,
        job=kubernetes.job_name(environ, index),
        source=kubernetes.INDEX,
    )


def _from_task(task: Task, master: tuple[str, str] | None) -> NodeRank:
    """The node of a task; its launcher must have started tfddlrun once on each host."""
    if task.local_size != 1:
        here = "several" if task.local_size is None else f"{task.local_size}"
        raise ClusterError(
            f"{task.launcher} started tfddlrun {task.size} times, {here} of them on this host "
            f"({task.source}); it must run once on each, and starts the workers itself. HINT: let "
            f"{task.launcher} run the script, without tfddlrun"
        )
    return NodeRank(
        task.rank,
        task.size,
        master=master[0] if master else None,
        job=task.job,
        source=task.source,
    )
