"""A job from beginning to end: ports, workers, another start if a port was taken, the report."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tfddl.cluster import START_TIMEOUT, rendezvous
from tfddl.errors import LaunchError
from tfddl.launcher.cores import Binding
from tfddl.launcher.environment import Export, exported, travelling
from tfddl.launcher.exposure import Interfaces, exposure_warning
from tfddl.launcher.fleet import FleetOptions, Interrupted, prepared
from tfddl.launcher.hosts import MOST_WORKERS
from tfddl.launcher.interfaces import reachable_texts
from tfddl.launcher.output import Console
from tfddl.launcher.plan import Place, plan_processes, this_machine
from tfddl.launcher.ports import free_ports, is_free
from tfddl.launcher.report import Outcome, failure_report
from tfddl.launcher.signals import Signals
from tfddl.launcher.supervise import supervise

# The only signs, on a worker's stderr, that a server's port was taken: our words and TensorFlow's.
_PORT_TAKEN = (rendezvous.PORT_TAKEN, "Could not start gRPC server")
_PORT_RESTARTS = 3
_START_S = 60.0


@dataclass(frozen=True)
class JobOptions:
    """What to run.

    Attributes:
        num_workers: number of processes, 1..1024.
        command: what each of them runs.
        grace_s: seconds from SIGTERM to SIGKILL, at least 0.
        logs: a folder for every worker's whole output, or None.
        verbose: also tell ports and restarts of what goes well.
        fleet: the hosts that the workers run on; None for this machine.
        binding: which cores a worker may use.
        exports: variables that all workers get, on whatever host.
        start_timeout_s: how long workers wait for each other in `tfddl.init()`; None leaves that
            to them.
        trusts_network: don't warn of ports that others can reach.

    Raises:
        LaunchError: a value is out of its range, or there is no command.
    """

    num_workers: int
    command: tuple[str, ...]
    grace_s: float = 3.0
    logs: Path | None = None
    verbose: bool = False
    fleet: FleetOptions | None = None
    binding: Binding = Binding.CORES
    exports: tuple[Export, ...] = ()
    start_timeout_s: float | None = None
    trusts_network: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.num_workers <= MOST_WORKERS:
            raise LaunchError(
                f"the number of workers (-np) is {self.num_workers}; it must be 1..{MOST_WORKERS}"
            )
        if not self.grace_s >= 0:
            raise LaunchError(f"the grace period is {self.grace_s}; it must be 0 or more seconds")
        if not self.command:
            raise LaunchError("there is no command to run. HINT: tfddlrun -np 2 python train.py")
        if self.start_timeout_s is not None and not self.start_timeout_s > 0:
            raise LaunchError(
                f"--start-timeout is {self.start_timeout_s}; it must be above 0 seconds"
            )


def run_job(options: JobOptions, *, environment: Mapping[str, str]) -> int:
    """Runs a job and reports how it ended, on stderr.

    Args:
        options: what to run.
        environment: what the workers inherit.

    Returns:
        The exit status: the failed worker's (128 + n for signal n), 128 + n if signal n ended
        the job, 0 if all went well.

    Raises:
        LaunchError: the job can't be started.
    """
    with Signals() as signals:
        console = Console(signals, has_colours="NO_COLOR" not in environment)
        for restarts in range(_PORT_RESTARTS + 1):
            outcome, ports = _run_once(
                options, environment=environment, console=console, signals=signals
            )
            taken = find_taken_port(outcome, ports)
            if taken is None or restarts == _PORT_RESTARTS:
                break
            console.say(
                f"port {taken} was taken by another process meanwhile; starting again on other "
                f"ports ({restarts + 1} of {_PORT_RESTARTS})"
            )
        _report(outcome, console)
    return outcome.status


def working_folder(environment: Mapping[str, str]) -> str:
    """Where we are, by the name that the user knows it by: other hosts may have other links."""
    known = environment.get("PWD", "")
    if os.path.isabs(known) and os.path.isdir(known) and os.path.samefile(known, "."):
        return known
    return os.getcwd()


def _run_once(
    options: JobOptions, *, environment: Mapping[str, str], console: Console, signals: Signals
) -> tuple[Outcome, tuple[int, ...]]:
    """Starts the workers, on whatever hosts, and waits for their end.

    Returns:
        How it went, and the port of each rank.
    """
    directory = None if options.fleet is None else working_folder(environment)
    with contextlib.ExitStack() as stack:
        fleet = None
        if options.fleet is None or directory is None:
            places: tuple[Place, ...] = (this_machine(free_ports(options.num_workers)),)
            reachable: Mapping[str, Interfaces] = {"": reachable_texts()}
        else:
            try:
                fleet = stack.enter_context(
                    prepared(options.fleet, directory=directory, signals=signals)
                )
            except Interrupted:
                (number, *_) = signals.take_ending()
                return Outcome(exits=(), root=None, interrupted_by=number, num_oom_kills=0), ()
            places, reachable = fleet.places, fleet.reachable
        _announce(options, places=places, reachable=reachable, console=console)
        plans = plan_processes(
            options.command,
            places=places,
            environment=_workers_environment(options, environment),
            binding=options.binding,
            directory=directory,
        )
        outcome = supervise(
            plans,
            console=console,
            signals=signals,
            grace_s=options.grace_s,
            logs=options.logs,
            fleet=fleet,
        )
    return outcome, tuple(port for place in places for port in place.ports)


def _announce(
    options: JobOptions,
    *,
    places: Sequence[Place],
    reachable: Mapping[str, Interfaces],
    console: Console,
) -> None:
    if options.verbose:
        for place in places:
            where = f"{place.host}: " if place.host else ""
            ports = ", ".join(map(str, place.ports))
            console.say(f"{where}{len(place.ports)} workers on ports {ports}")
    warning = None if options.trusts_network else exposure_warning(places, reachable)
    if warning is not None:
        console.say(warning)


def _workers_environment(options: JobOptions, environment: Mapping[str, str]) -> dict[str, str]:
    own = {} if options.start_timeout_s is None else {START_TIMEOUT: f"{options.start_timeout_s:g}"}
    inherited = environment if options.fleet is None else travelling(environment)
    return {**inherited, **exported(environment, options.exports), **own}


def find_taken_port(outcome: Outcome, ports: tuple[int, ...]) -> int | None:
    """The port that the job failed for, because somebody had taken it when its server started.

    It must have failed by itself, its stderr must say so, and either the port is still taken or
    the worker had only just started: a worker that has trained is never started again for it.
    """
    root = outcome.root
    if root is None or root.returncode <= 0:
        return None
    if not any(sign in line for line in root.stderr_lines for sign in _PORT_TAKEN):
        return None
    port = ports[root.rank]
    is_taken_here = not root.host and not is_free(port)
    return port if root.after_s < _START_S or is_taken_here else None


def _report(outcome: Outcome, console: Console) -> None:
    if outcome.root is not None:
        console.say(failure_report(outcome))
    elif outcome.interrupted_by is not None:
        why = f" ({console.broken.strerror})" if console.broken is not None else ""
        console.say(f"ended by {outcome.interrupted_by.name}{why}, and all workers with it")
