"""What `--dry-run` prints: what would be started, as lines that a shell understands. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence

from tfddl._src.cluster import SECRET
from tfddl._src.cluster.environments import tf_config
from tfddl._src.launcher.fleet import FleetOptions
from tfddl._src.launcher.job_options import JobOptions
from tfddl._src.launcher.plan import (
    DEFAULTS,
    LOOPBACK,
    HostAllocation,
    ProcessPlan,
    local_allocation,
    plan_processes,
)

_FIRST_PORT = 12345


def describe(options: JobOptions, *, directory: str, environment: Mapping[str, str]) -> str:
    """Says which command line reaches each host, and which line runs each rank there.

    Ports stand for those that each host will find free.

    Args:
        options: the job.
        directory: where the workers start.
        environment: variables that all workers get and that are shown.
    """
    lines = ["# Ports are examples: each host chooses free ones at the start."]
    plans = plan_processes(
        options.command,
        allocations=_places(options),
        environment=environment,
        as_horovod=options.as_horovod,
    )
    if options.nodes is not None:
        node = options.nodes.node
        lines.append(
            f"# node {node.node_rank} of {node.num_nodes} ({node.source}). Rendezvous at "
            f"{node.master}; then each worker gets its rank and the TF_CONFIG of all."
        )
        lines += [
            _line(plan, directory, environment, name=f"local rank {plan.local_rank}")
            for plan in plans
        ]
    elif options.fleet is None:
        lines.append("# this machine")
        lines += [_line(plan, directory, environment) for plan in plans]
    else:
        lines += _fleet_lines(options.fleet, plans, directory, environment)
    return "\n".join(lines)


def _fleet_lines(
    fleet: FleetOptions,
    plans: Sequence[ProcessPlan],
    directory: str,
    environment: Mapping[str, str],
) -> Iterator[str]:
    if fleet.interfaces:
        yield (
            "# Instead of the hosts' names their addresses on "
            f"{' or '.join(fleet.interfaces)} will be used."
        )
    for host in fleet.hosts:
        yield f"# {host.name}, reached by (nothing, if it is this machine):"
        yield shlex.join(fleet.starter.argv(host.name))
        for plan in plans:
            if plan.host == host.name:
                yield _line(plan, directory, environment)


def _places(options: JobOptions) -> list[HostAllocation]:
    if options.fleet is None:
        return [local_allocation(_ports(options.num_workers))]
    hosts = options.fleet.hosts
    if len(hosts) == 1:
        return [HostAllocation(hosts[0].name, LOOPBACK, _ports(hosts[0].slots))]
    return [HostAllocation(host=h.name, address=h.name, ports=_ports(h.slots)) for h in hosts]


def _ports(count: int) -> tuple[int, ...]:
    return tuple(range(_FIRST_PORT, _FIRST_PORT + count))


def _line(
    plan: ProcessPlan, directory: str, environment: Mapping[str, str], *, name: str = ""
) -> str:
    """The line of a worker; with a name in place of its rank, without what the rank decides."""
    hidden = (SECRET, tf_config.VARIABLE) if name else (SECRET,)
    prefixes = ("HOROVOD_",) if name else ()
    settings = " ".join(
        f"{variable}={shlex.quote(value)}"
        for variable, value in plan.environment.items()
        if variable not in hidden
        and not variable.startswith(prefixes)
        and (variable in environment or variable not in DEFAULTS)
    )
    title = f"# {name or f'rank {plan.rank}'}"
    return f"{title}\ncd {shlex.quote(directory)} && {settings} {shlex.join(plan.argv)}"
