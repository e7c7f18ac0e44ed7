"""What would be started, as lines that a shell understands: pure, nothing is started here."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from tfddl.cluster import tf_config
from tfddl.launcher.fleet import FleetOptions
from tfddl.launcher.plan import Place, ProcessPlan, plan_processes, this_machine
from tfddl.launcher.ssh import agent_argv

_FIRST_PORT = 12345


def describe(
    command: Sequence[str],
    *,
    num_workers: int,
    fleet: FleetOptions | None,
    directory: str,
    exports: Mapping[str, str],
) -> str:
    """Says which command line reaches each host, and which line runs each rank there.

    Ports stand for those that each host will find free.

    Args:
        command: what every worker runs.
        num_workers: how many on this machine, where there is no fleet.
        fleet: the hosts, or None.
        directory: where the workers start.
        exports: variables that all workers get.
    """
    lines = ["# Ports are examples: each host chooses free ones at the start."]
    if fleet is None:
        plans = plan_processes(command, places=[this_machine(_ports(num_workers))], environment={})
        lines.append("# this machine")
        lines += [_line(plan, directory, exports) for plan in plans]
        return "\n".join(lines)
    places = [Place(host=h.name, address=h.name, ports=_ports(h.slots)) for h in fleet.hosts]
    if len(places) == 1:
        places = [Place(places[0].host, this_machine(()).address, places[0].ports)]
    if fleet.interfaces:
        lines.append(
            "# Instead of the hosts' names their addresses on "
            f"{' or '.join(fleet.interfaces)} will be used."
        )
    plans = plan_processes(command, places=places, environment={})
    for place in places:
        lines.append(f"# {place.host}, reached by (no ssh, if it is this machine):")
        lines.append(shlex.join(agent_argv(fleet.ssh, place.host)))
        lines += [_line(plan, directory, exports) for plan in plans if plan.host == place.host]
    return "\n".join(lines)


def _ports(count: int) -> tuple[int, ...]:
    return tuple(range(_FIRST_PORT, _FIRST_PORT + count))


def _line(plan: ProcessPlan, directory: str, exports: Mapping[str, str]) -> str:
    variables = {**exports, tf_config.VARIABLE: plan.environment[tf_config.VARIABLE]}
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    return f"# rank {plan.rank}\ncd {shlex.quote(directory)} && {settings} {shlex.join(plan.argv)}"
