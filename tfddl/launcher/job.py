"""A job from beginning to end: ports, workers, another start if a port was taken, the report."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM

from tfddl.cluster import rendezvous
from tfddl.errors import LaunchError
from tfddl.launcher.memory import Memory
from tfddl.launcher.output import Console
from tfddl.launcher.plan import plan_processes
from tfddl.launcher.ports import free_ports, is_free
from tfddl.launcher.recovery import Recovery
from tfddl.launcher.report import Outcome, describe_place, failure_report
from tfddl.launcher.restarts import RestartOptions
from tfddl.launcher.signals import Signals
from tfddl.launcher.supervise import Care, supervise
from tfddl.progress import Ability

# The only signs, on a worker's stderr, that a server's port was taken: our words and TensorFlow's.
_PORT_TAKEN = (rendezvous.PORT_TAKEN, "Could not start gRPC server")
_PORT_RESTARTS = 3
_START_S = 60.0
_MOST_WORKERS = 1024
_HERE = "this machine"


@dataclass(frozen=True)
class JobOptions:
    """What to run.

    Attributes:
        num_workers: number of processes, 1..1024.
        command: what each of them runs.
        grace_s: seconds that workers get to save at SIGTERM, at least 0.
        stall_timeout_s: seconds without progress after which a worker is killed; 0 is never.
        restarts: whether the job starts again when it has failed.
        logs: a folder for every worker's whole output, or None.
        as_horovod: whether `import horovod` finds tfddl in the workers.
        verbose: also tell ports and restarts of what goes well.

    Raises:
        LaunchError: a value is out of its range, or there is no command.
    """

    num_workers: int
    command: tuple[str, ...]
    grace_s: float = 30.0
    stall_timeout_s: float = 0.0
    restarts: RestartOptions = field(default_factory=RestartOptions)
    logs: Path | None = None
    as_horovod: bool = False
    verbose: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.num_workers <= _MOST_WORKERS:
            raise LaunchError(
                f"the number of workers (-np) is {self.num_workers}; it must be 1..{_MOST_WORKERS}"
            )
        if not self.grace_s >= 0:
            raise LaunchError(f"the grace period is {self.grace_s}; it must be 0 or more seconds")
        if not 0 <= self.stall_timeout_s < math.inf:
            raise LaunchError(
                f"--stall-timeout is {self.stall_timeout_s}; it must be 0 (never) or more seconds"
            )
        if (self.restarts.min_workers or 0) > self.num_workers:
            raise LaunchError(
                f"--min-np is {self.restarts.min_workers}, more than the {self.num_workers} "
                "workers of -np"
            )
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
    recovery = Recovery(options.restarts, hosts={_HERE: options.num_workers})
    with Signals() as signals, Memory(options.num_workers) as memory:
        means = _Means(Console(signals), signals, memory)
        while True:
            outcome = _start(options, recovery, means=means, environment=environment)
            _report(outcome, means.console)
            again = recovery.start_again(outcome, host=_HERE, now_s=time.monotonic())
            if not again:
                return outcome.status
            means.console.say(again)


@dataclass(frozen=True)
class _Means:
    """What all starts of a job share."""

    console: Console
    signals: Signals
    memory: Memory


def _start(
    options: JobOptions, recovery: Recovery, *, means: _Means, environment: Mapping[str, str]
) -> Outcome:
    """Starts the workers, again where a port was taken, and looks after them to their end."""
    num_workers = recovery.workers[_HERE]
    environment = {**environment, **recovery.variables}
    for restarts in range(_PORT_RESTARTS + 1):
        ports = free_ports(num_workers)
        if options.verbose:
            means.console.say(f"{num_workers} workers on ports {', '.join(map(str, ports))}")
        plans = plan_processes(
            options.command, ports=ports, environment=environment, as_horovod=options.as_horovod
        )
        care = Care(
            grace_s=options.grace_s,
            stall_timeout_s=options.stall_timeout_s,
            logs=options.logs,
            appends_logs=recovery.num_restarts + restarts > 0,
        )
        plans = means.memory.shared_with(plans)
        outcome = supervise(plans, console=means.console, signals=means.signals, care=care)
        taken = find_taken_port(outcome, ports)
        if taken is None or restarts == _PORT_RESTARTS:
            break
        means.console.say(
            f"port {taken} was taken by another process meanwhile; starting again on other "
            f"ports ({restarts + 1} of {_PORT_RESTARTS})"
        )
    return outcome


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
    if outcome.has_saved:
        console.say(
            "ended by SIGTERM, after the training was saved at "
            f"{describe_place(outcome.exits[0].reading)}; the same command goes on from there"
        )
    elif outcome.root is not None:
        console.say(failure_report(outcome))
    elif outcome.interrupted_by is not None:
        why = f" ({console.broken.strerror})" if console.broken is not None else ""
        console.say(f"ended by {outcome.interrupted_by.name}{why}, and all workers with it")
        late = [end for end in outcome.exits if Ability.SAVES in end.reading.abilities]
        if outcome.interrupted_by == SIGTERM and late:
            console.say(
                "the workers did not come to save in time; HINT: --grace-period says how long that "
                "may take"
            )
