"""A job from beginning to end: ports, workers, another start if a port was taken, the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tfddl.cluster import rendezvous
from tfddl.errors import LaunchError
from tfddl.launcher.output import Console
from tfddl.launcher.plan import plan_processes
from tfddl.launcher.ports import free_ports, is_free
from tfddl.launcher.report import Outcome, failure_report
from tfddl.launcher.signals import Signals
from tfddl.launcher.supervise import supervise

# The only signs, on a worker's stderr, that a server's port was taken: our words and TensorFlow's.
_PORT_TAKEN = (rendezvous.PORT_TAKEN, "Could not start gRPC server")
_PORT_RESTARTS = 3
_START_S = 60.0
_MOST_WORKERS = 1024


@dataclass(frozen=True)
class JobOptions:
    """What to run.

    Attributes:
        num_workers: number of processes, 1..1024.
        command: what each of them runs.
        grace_s: seconds from SIGTERM to SIGKILL, at least 0.
        logs: a folder for every worker's whole output, or None.
        verbose: also tell ports and restarts of what goes well.

    Raises:
        LaunchError: a value is out of its range, or there is no command.
    """

    num_workers: int
    command: tuple[str, ...]
    grace_s: float = 3.0
    logs: Path | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.num_workers <= _MOST_WORKERS:
            raise LaunchError(
                f"the number of workers (-np) is {self.num_workers}; it must be 1..{_MOST_WORKERS}"
            )
        if not self.grace_s >= 0:
            raise LaunchError(f"the grace period is {self.grace_s}; it must be 0 or more seconds")
        if not self.command:
            raise LaunchError("there is no command to run. HINT: tfddlrun -np 2 python train.py")


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
        console = Console(signals)
        for restarts in range(_PORT_RESTARTS + 1):
            ports = free_ports(options.num_workers)
            if options.verbose:
                console.say(f"{options.num_workers} workers on ports {', '.join(map(str, ports))}")
            plans = plan_processes(options.command, ports=ports, environment=environment)
            outcome = supervise(
                plans,
                console=console,
                signals=signals,
                grace_s=options.grace_s,
                logs=options.logs,
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
    return port if root.after_s < _START_S or not is_free(port) else None


def _report(outcome: Outcome, console: Console) -> None:
    if outcome.root is not None:
        console.say(failure_report(outcome))
    elif outcome.interrupted_by is not None:
        why = f" ({console.broken.strerror})" if console.broken is not None else ""
        console.say(f"ended by {outcome.interrupted_by.name}{why}, and all workers with it")
