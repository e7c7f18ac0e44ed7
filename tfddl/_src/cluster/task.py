"""A process as its launcher describes it: ranks and sizes, without the others' addresses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tfddl._src.cluster.cluster import Cluster, PartialCluster, block_addresses, is_loopback
from tfddl._src.cluster.environment_variables import DEFAULT_PORT, consecutive_ports
from tfddl.errors import ClusterError

_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Task:
    """One of the processes that a launcher has started together.

    Attributes:
        launcher: its name, for errors: "Open MPI".
        rank: this process, in [0, size).
        size: number of processes, at least 1.
        local_rank: this process among those of its host, in [0, local_size); None if not known.
        local_size: number of processes on its host; None if not known.
        job: see `Cluster`.
        source: the variables that this was read from, for errors.

    Raises:
        ClusterError: the numbers contradict each other.
    """

    launcher: str
    rank: int
    size: int
    local_rank: int | None = None
    local_size: int | None = None
    job: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ClusterError(f"{self.launcher}'s variables: size is 0 ({self.source})")
        if not 0 <= self.rank < self.size:
            raise ClusterError(
                f"{self.launcher}'s variables: rank is {self.rank} among {self.size} workers; it "
                f"must be 0..{self.size - 1} ({self.source})"
            )
        local_size = self.size if self.local_size is None else self.local_size
        if local_size > self.size or not 0 <= (self.local_rank or 0) < local_size:
            raise ClusterError(
                f"{self.launcher}'s variables: local rank is {self.local_rank} among "
                f"{self.local_size} workers of a host, of {self.size} in all; they contradict each "
                f"other ({self.source})"
            )

    @property
    def is_on_one_host(self) -> bool:
        """Whether all processes are known to be on this host."""
        return self.local_size == self.size


def build_local_cluster(
    task: Task, environ: Mapping[str, str], *, first_port: int = DEFAULT_PORT
) -> Cluster:
    """The cluster of a task whose processes are all on this host.

    Args:
        task: this process.
        environ: TFDDL_PORT in it is the first of the ports.
        first_port: the first of the ports, where that isn't set.

    Raises:
        ClusterError: the ranks of the host aren't in the order of its local ranks; or there are
            too few ports above the first.
    """
    if task.local_rank is not None and task.local_rank != task.rank:
        raise ClusterError(
            f"{task.launcher}'s variables: local rank is {task.local_rank} for rank {task.rank}, "
            f"though all {task.size} workers are on this host ({task.source})"
        )
    # All workers compute the same list, without asking each other.
    ports = consecutive_ports(environ, task.size, default=first_port)
    addresses = block_addresses([_LOOPBACK], [task.size], ports)
    return Cluster(addresses=addresses, rank=task.rank, job=task.job)


def build_partial_cluster(task: Task, master: str, *, said_by: str) -> PartialCluster:
    """The cluster of a task where only the address of rank 0 is known.

    Args:
        task: this process.
        master: "host:port" of rank 0.
        said_by: the variables that have the address, for errors.

    Raises:
        ClusterError: `master` is a loopback address, though there are several hosts.
    """
    if is_loopback(master) and task.local_size is not None and not task.is_on_one_host:
        raise ClusterError(
            f"{said_by} gives {master} as the address of rank 0, which on each host means that "
            f"host, but only {task.local_size} of {task.size} workers are on this one "
            f"({task.source}). HINT: the name or IP address of rank 0's host"
        )
    return PartialCluster(
        rank=task.rank,
        size=task.size,
        master=master,
        local_rank=task.local_rank,
        local_size=task.local_size,
        job=task.job,
        source=f"{task.source}, {said_by}",
    )
