"""What each worker process is started with: command, environment, host. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tfddl._src import startup_logs
from tfddl._src.cluster import Cluster, join_address
from tfddl._src.cluster.environments import tf_config
from tfddl._src.launcher import horovod_environment
from tfddl._src.launcher.cores import Binding
from tfddl._src.launcher.environment import RESTARTS

NCCL_INTERFACE = "NCCL_SOCKET_IFNAME"

LOOPBACK = "127.0.0.1"

DEFAULTS = MappingProxyType(
    {
        # Lines must come as they are printed, not by the 8 KiB, through a pipe.
        "PYTHONUNBUFFERED": "1",
        # TensorFlow logs a screen of information at the start of each worker.
        startup_logs.LOG_LEVEL: startup_logs.WARNINGS,
    }
)


# Who takes part, for a worker; all others of its variables stay the same from start to start.
_MEMBERSHIP = (tf_config.VARIABLE, RESTARTS, *horovod_environment.MEMBERSHIP)


@dataclass(frozen=True)
class ProcessPlan:
    """One process to be started.

    Attributes:
        rank: its rank.
        argv: the command and its arguments.
        environment: the whole environment it gets; on another host, what is added to that host's.
        host: where it runs; "" for this machine.
        local_rank: its number among the workers of that host.
        local_size: how many those are.
        binding: which of the host's cores it may use.
        directory: where it is started; None for the folder of who starts it.
        keeps_commits: whether the first worker of a host gets memory for what is to outlive it.
        makes_call: whether it gets the files of a function call, see `CallFiles`.
        worker: its number in what agents and we say of it: its own, whatever its rank becomes.
        may_stay: whether it gets a file in which it is told its new rank, where it keeps its
            process while others come and go.
        preload: modules that are imported before it is forked; empty: it is started as usual.
    """

    rank: int
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    host: str = ""
    local_rank: int = 0
    local_size: int = 1
    binding: Binding = Binding.NONE
    directory: str | None = None
    keeps_commits: bool = False
    makes_call: bool = False
    worker: int = 0
    may_stay: bool = False
    preload: tuple[str, ...] = ()

    @property
    def membership(self) -> dict[str, str]:
        """Those of its variables that say who takes part."""
        return {name: self.environment[name] for name in _MEMBERSHIP if name in self.environment}


@dataclass(frozen=True)
class HostAllocation:
    """A host's part in a job.

    Attributes:
        host: its name; "" for this machine.
        address: what all workers reach it by.
        ports: one for each of its workers.
        interface: the network interface that its workers are to use; "" leaves it to them.
    """

    host: str
    address: str
    ports: tuple[int, ...]
    interface: str = ""


def local_allocation(ports: Sequence[int]) -> HostAllocation:
    """The allocation of a job that no other host takes part in."""
    return HostAllocation(host="", address=LOOPBACK, ports=tuple(ports))


def plan_processes(  # noqa: PLR0913
    command: Sequence[str],
    *,
    allocations: Sequence[HostAllocation],
    environment: Mapping[str, str],
    as_horovod: bool = False,
    binding: Binding = Binding.NONE,
    directory: str | None = None,
) -> tuple[ProcessPlan, ...]:
    """Plans the workers of a job.

    Args:
        command: what every worker runs, with its arguments; not touched.
        allocations: the hosts, in the order of their ranks.
        environment: what the workers inherit. TF_CONFIG is replaced; what else a worker wants is
            added only where the user has set nothing.
        as_horovod: whether `import horovod` finds tfddl there.
        binding: which cores a worker may use.
        directory: where the workers start; None for where they are started from.

    Returns:
        One plan per port, in rank order.

    Raises:
        ClusterError: the ports are no ports, or repeat.
    """
    addresses = tuple(join_address(p.address, port) for p in allocations for port in p.ports)
    plans: list[ProcessPlan] = []
    for allocation in allocations:
        for local_rank in range(len(allocation.ports)):
            cluster = Cluster(addresses, rank=len(plans))
            as_horovods = horovod_environment.variables(cluster, environment) if as_horovod else {}
            # What comes later wins: the user's own settings, but for TF_CONFIG and Horovod's ranks.
            variables = {
                **DEFAULTS,
                **_nccl_variables(allocation),
                **environment,
                **as_horovods,
                tf_config.VARIABLE: tf_config.render(cluster),
            }
            plans.append(
                ProcessPlan(
                    rank=cluster.rank,
                    worker=cluster.rank,
                    argv=tuple(command),
                    environment=MappingProxyType(variables),
                    host=allocation.host,
                    local_rank=local_rank,
                    local_size=len(allocation.ports),
                    binding=binding,
                    directory=directory,
                )
            )
    return tuple(plans)


def _nccl_variables(allocation: HostAllocation) -> dict[str, str]:
    """Keeps NCCL to an allocation's interface; "=" is that one, not all whose names begin so."""
    return {NCCL_INTERFACE: f"={allocation.interface}"} if allocation.interface else {}
