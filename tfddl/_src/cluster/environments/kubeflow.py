"""PET_NNODES and similar ones: set for torchrun by Kubeflow Trainer and PyTorchJob, in each pod.

They are torchrun's flags as variables, and say which of the job's nodes a pod is. What runs in the
pod has to start its workers.

References:
    PyTorch Elastic, `torch.distributed.run` ("PET_" before a flag's name); Kubeflow Trainer,
    https://www.kubeflow.org/docs/components/trainer/user-guides/pytorch/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tfddl._src.cluster.cluster import PartialCluster, check_address, join_address
from tfddl._src.cluster.environment_variables import read_int
from tfddl._src.cluster.parsing import MAX_PORT, parse_int, quote
from tfddl.errors import ClusterError

NODES = "PET_NNODES"
NODE_RANK = "PET_NODE_RANK"
_ADDRESS = "PET_MASTER_ADDR"
_PORT = "PET_MASTER_PORT"
_WORKERS = "PET_NPROC_PER_NODE"
_RUN_ID = "PET_RDZV_ID"

# What torchrun's `--nproc-per-node` accepts besides a number; all leave it to the node.
_WORDS = ("", "auto", "cpu", "gpu")


@dataclass(frozen=True)
class Pod:
    """This pod as the PET_ variables describe it.

    Attributes:
        node_rank: this pod, in [0, num_nodes).
        num_nodes: number of pods.
        master: "host:port" of the first pod; None if not set.
        workers_per_node: number of workers in each pod; None for "auto" and similar words.
        job: see `tfddl._src.cluster.Cluster`.
        source: the variables that this was read from, for errors.
    """

    node_rank: int
    num_nodes: int
    master: str | None
    workers_per_node: int | None
    job: str
    source: str


def find(environ: Mapping[str, str]) -> Pod | None:
    """Reads the PET_ variables; None where PET_NNODES isn't set.

    Raises:
        ClusterError: they aren't numbers, contradict each other, or give a range of numbers of
            nodes.
    """
    if not environ.get(NODES):
        return None
    num_nodes = _number_of_nodes(environ[NODES])
    node_rank = 0
    if num_nodes > 1 or environ.get(NODE_RANK):
        node_rank = read_int(environ, NODE_RANK)
    if node_rank >= num_nodes:
        raise ClusterError(
            f"{NODE_RANK} is {node_rank}, and {NODES} {num_nodes}; it must be 0..{num_nodes - 1}"
        )
    run_id = environ.get(_RUN_ID, "")
    return Pod(
        node_rank=node_rank,
        num_nodes=num_nodes,
        master=_master(environ),
        workers_per_node=_workers_per_node(environ),
        job="" if run_id == "none" else run_id,  # torchrun's default.
        source=f"{NODES}, {NODE_RANK}",
    )


def build_cluster(pod: Pod) -> PartialCluster:
    """The cluster of a script that runs once in each of several pods.

    Raises:
        ClusterError: a pod should have several workers, or the first pod's address isn't known.
    """
    _refuse_several(pod.workers_per_node)
    if pod.master is None:
        raise ClusterError(
            f"{NODES} is {pod.num_nodes}, but the address of the first of them isn't set; expected "
            f"{_ADDRESS} and {_PORT}"
        )
    return PartialCluster(
        rank=pod.node_rank,
        size=pod.num_nodes,
        master=pod.master,
        local_rank=0,
        local_size=1,
        job=pod.job,
        source=f"{pod.source}, {_ADDRESS}, {_PORT}",
    )


def refuse_several_workers(environ: Mapping[str, str]) -> None:
    """Refuses a script that is the only process of a pod which should have several workers.

    PyTorchJob's WORLD_SIZE then counts workers, while its RANK counts pods.

    Raises:
        ClusterError: PET_NPROC_PER_NODE is above 1, or is no number of workers.
    """
    _refuse_several(_workers_per_node(environ))


def _refuse_several(workers: int | None) -> None:
    if workers is not None and workers > 1:
        raise ClusterError(
            f"{_WORKERS} asks for {workers} workers in this pod, but this is a single process, "
            "which no launcher has started. HINT: run `tfddlrun python train.py` in the pod, or "
            "ask for one worker per node"
        )


def _number_of_nodes(text: str) -> int:
    # torchrun's elastic jobs: "MIN:MAX" nodes.
    first, colon, last = text.partition(":")
    if colon and first != last:
        raise ClusterError(
            f"{NODES} is {quote(text)}, a number that changes while the job runs; expected one "
            "number. HINT: give the job as many nodes at least as at most"
        )
    return parse_int(first, what=NODES, low=1)


def _workers_per_node(environ: Mapping[str, str]) -> int | None:
    text = environ.get(_WORKERS, "")
    return None if text in _WORDS else parse_int(text, what=_WORKERS, low=1)


def _master(environ: Mapping[str, str]) -> str | None:
    if not environ.get(_ADDRESS):
        return None
    # torchrun's own default, which its documentation gives for `--master-port`.
    port = read_int(environ, _PORT, low=1, high=MAX_PORT) if environ.get(_PORT) else 29500
    address = join_address(environ[_ADDRESS].strip("[]"), port)
    check_address(address, f"{_ADDRESS} with {_PORT}")
    return address
