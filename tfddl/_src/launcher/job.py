"""A job from its first start to its last: ports, workers, restarts, the report."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tfddl._src import commits, rendezvous, startup_logs
from tfddl._src.cluster import SECRET, START_TIMEOUT
from tfddl._src.cluster.ports import free_ports, is_free
from tfddl._src.launcher.commit_relay import CommitRelay
from tfddl._src.launcher.elastic_recovery import ElasticRecovery
from tfddl._src.launcher.environment import (
    RESTARTS,
    exported,
    forwarded,
    given_secret,
    inherited,
)
from tfddl._src.launcher.exposure import TRUSTED_NETWORK
from tfddl._src.launcher.fleet import Fleet, FleetOptions, UnreachableError, local_fleet, prepared
from tfddl._src.launcher.guard import guarded
from tfddl._src.launcher.host_store import HostStore
from tfddl._src.launcher.hosts import HostSlots, ranks_of
from tfddl._src.launcher.job_options import JobOptions
from tfddl._src.launcher.multi_node import join_nodes
from tfddl._src.launcher.output import Console
from tfddl._src.launcher.plan import HostAllocation, ProcessPlan, local_allocation, plan_processes
from tfddl._src.launcher.recovery import Recovery
from tfddl._src.launcher.regroup_planner import RegroupPlanner, goes_on
from tfddl._src.launcher.report import Outcome, WorkerExit, outcome_report
from tfddl._src.launcher.signals import Interrupted, Signals
from tfddl._src.launcher.supervisor import SupervisorOptions, supervise
from tfddl._src.launcher.system import require_files, working_directory
from tfddl._src.launcher.worker_handle import LOST
from tfddl.errors import LaunchError

# The only signs, on a worker's stderr, that a server's port was taken: our words and TensorFlow's.
_PORT_TAKEN = (rendezvous.PORT_TAKEN, "Could not start gRPC server")
_PORT_RESTARTS = 3
_START_S = 60.0
_HERE = ""


def run_job(options: JobOptions, *, environment: Mapping[str, str]) -> int:
    """Runs a job and reports how it ended, on stderr.

    It takes a second process, see `guard`: nothing is left behind, even where one of the two is
    killed. The calling process must have no other children and no threads.

    Args:
        options: what to run.
        environment: what the workers inherit.

    Returns:
        The exit status: the failed worker's (128 + n for signal n), 128 + n if signal n ended
        the job, 0 if all went well.

    Raises:
        LaunchError: the job can't be started.
    """
    return guarded(
        lambda signals: _run_job(options, signals, environment=environment), program="tfddlrun"
    )


def _run_job(options: JobOptions, signals: Signals, *, environment: Mapping[str, str]) -> int:
    fleet = options.fleet
    hosts = {_HERE: options.num_workers}
    if fleet is not None:
        hosts = {host.name: host.slots for host in fleet.hosts}
    with contextlib.ExitStack() as stack:
        console = Console(signals, has_colours="NO_COLOR" not in environment)
        recovery = Recovery(options.restarts, hosts=hosts)
        if options.elastic is not None:
            recovery = ElasticRecovery(options.elastic, options.restarts, say=console.say)
        store = stack.enter_context(contextlib.closing(HostStore()))
        relay = None
        if fleet is not None and recovery.starts_again:
            relay = stack.enter_context(contextlib.closing(CommitRelay()))
        resources = _JobResources(
            console, signals, store, relay, secret=given_secret(environment, options.exports)
        )
        while True:
            # Outside of what may leave hosts out: that there are too few ends the job.
            if not recovery.wait_to_start(signals):
                outcome = _interrupted(signals)
                console.say(outcome_report(outcome, broken=console.broken))
                return outcome.status
            try:
                outcome = _start(options, recovery, resources=resources, environment=environment)
            except LaunchError as error:
                if not (text := recovery.leave_out(error, now_s=time.monotonic())):
                    raise
                console.say(text)
                continue
            again = outcome.goes_on
            if again is None:
                again = goes_on(recovery, outcome, console)
            if not again:
                return outcome.status


def requested_variables(options: JobOptions, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that all workers get by flags of the command line.

    Raises:
        LaunchError: one is to be taken from the environment, and isn't there.
    """
    own = {TRUSTED_NETWORK: "1"} if options.trusts_network else {}
    level = {startup_logs.LOG_LEVEL: startup_logs.INFORMATION} if options.verbose else {}
    if options.start_timeout_s is not None:
        own[START_TIMEOUT] = f"{options.start_timeout_s:g}"
    return {**level, **exported(environment, options.exports), **own}


@dataclass(frozen=True)
class _JobResources:
    """What all starts of a job share."""

    console: Console
    signals: Signals
    store: HostStore
    """What workers on this machine have committed."""

    relay: CommitRelay | None
    """What workers on other hosts have committed, where the job may start again."""

    secret: str | None
    """The secret that the user has chosen; None where each start of the job has a new one."""


def _start(
    options: JobOptions,
    recovery: Recovery,
    *,
    resources: _JobResources,
    environment: Mapping[str, str],
) -> Outcome:
    """Starts the workers and supervises them; starts again where a port was taken meanwhile."""
    options = _with_workers(options, recovery.workers)
    # Ports are chosen before the servers of workers bind them, so that another program can be
    # faster. Not restarts of the job: these count failures.
    for restarts in range(_PORT_RESTARTS + 1):
        supervisor = SupervisorOptions(
            grace_s=options.grace_s,
            stall_timeout_s=options.stall_timeout_s,
            logs=options.logs,
            appends_logs=recovery.num_restarts + restarts > 0,
            host_changes=recovery.host_changes,
        )
        try:
            outcome, ports = _run_once(
                options,
                supervisor,
                resources=resources,
                environment=environment,
                recovery=recovery,
            )
        except UnreachableError as error:
            if options.fleet is None or options.elastic or not recovery.num_restarts:
                raise
            return _unreachable(error, options.fleet)
        except Interrupted:
            return _interrupted(resources.signals)
        taken = find_taken_port(outcome, ports)
        if taken is None or restarts == _PORT_RESTARTS or options.is_part_of_job:
            break
        resources.console.say(
            f"port {taken} was taken by another process meanwhile; starting again on other "
            f"ports ({restarts + 1} of {_PORT_RESTARTS})"
        )
    return outcome


def _interrupted(signals: Signals) -> Outcome:
    """How a job ends that a signal ends while no worker runs."""
    # Not those that are still to be taken: it may have come while the last workers ended.
    return Outcome(exits=(), root=None, interrupted_by=signals.ended_by, num_oom_kills=0)


def _with_workers(options: JobOptions, workers: Mapping[str, int]) -> JobOptions:
    """The job with so many workers of each host."""
    fleet = options.fleet
    if fleet is not None:
        hosts = tuple(HostSlots(name, count) for name, count in workers.items())
        fleet = dataclasses.replace(fleet, hosts=hosts)
    return dataclasses.replace(options, num_workers=sum(workers.values()), fleet=fleet)


def _unreachable(error: UnreachableError, fleet: FleetOptions) -> Outcome:
    """How a job ends that could not start again, for hosts that it had before."""
    ranks = ranks_of(fleet.hosts)
    exits = tuple(
        WorkerExit(
            rank=ranks[host][0],
            returncode=LOST,
            after_s=0.0,
            stderr_lines=(),
            ended_with=None,
            host=host,
            lost=problem,
        )
        for host, problem in error.problems.items()
    )
    return Outcome(exits=exits, root=exits[0], interrupted_by=None, num_oom_kills=0)


def _run_once(
    options: JobOptions,
    supervisor: SupervisorOptions,
    *,
    resources: _JobResources,
    environment: Mapping[str, str],
    recovery: Recovery,
) -> tuple[Outcome, tuple[int, ...]]:
    """Starts the workers, on whatever hosts, and waits for their end.

    Args:
        options: the job.
        supervisor: how the workers are supervised.
        resources: what all starts of the job share.
        environment: what the workers inherit.
        recovery: plans the workers anew, where some stay; whether another start may follow, which
            needs what was committed.

    Returns:
        How it went, and the port of each rank.

    Raises:
        UnreachableError: hosts can't be reached.
        LaunchError: they can't take part, or the command can't be started.
        Interrupted: a signal came before anything was started.
    """
    num_hosts = 0 if options.fleet is None else len(options.fleet.hosts)
    require_files(options.num_workers, num_hosts=num_hosts, has_logs=options.logs is not None)
    directory = None if options.fleet is None else working_directory(environment)
    with _open_fleet(options, resources, directory=directory) as (fleet, secret):
        if options.verbose:
            _announce(fleet.allocations, resources.console)

        # Results of a call are kept by the rank that a worker had at its start.
        may_stay = fleet.can_change and options.call is None and recovery.starts_again

        def plan(num_restarts: int) -> list[ProcessPlan]:
            return _plan(
                options,
                fleet,
                environment={**environment, RESTARTS: str(num_restarts)},
                secret=secret,
                directory=directory,
                may_stay=may_stay,
            )

        planner = RegroupPlanner(
            recovery, fleet, signals=resources.signals, console=resources.console, plan=plan
        )
        plans = plan(recovery.num_restarts)
        hosts = {client.host for client in fleet.clients}
        outcome = supervise(
            [plan for plan in plans if plan.host in hosts],
            fleet=fleet,
            console=resources.console,
            signals=resources.signals,
            options=dataclasses.replace(
                supervisor, num_workers=len(plans), regrouper=planner if may_stay else None
            ),
        )
        ends = not outcome.is_failure and not (options.elastic and outcome.has_saved)
        ends = ends and not outcome.goes_on
        if resources.relay is not None and recovery.starts_again and not ends:
            problem = resources.relay.fetch(fleet.clients, signals=resources.signals)
            resources.console.say(problem)
        if options.call is not None:
            problem = options.call.fetch(outcome, fleet.clients, signals=resources.signals)
            resources.console.say(problem)
    return outcome, tuple(port for host in fleet.allocations for port in host.ports)


@contextlib.contextmanager
def _open_fleet(
    options: JobOptions, resources: _JobResources, *, directory: str | None
) -> Iterator[tuple[Fleet, str]]:
    """The hosts that this `tfddlrun` starts workers on, and the job's secret.

    Args:
        options: the job.
        resources: what all starts of the job share.
        directory: where workers on other hosts start.
    """
    secret = resources.secret or secrets.token_hex(rendezvous.SECRET_BYTES)
    if options.fleet is not None:
        assert directory is not None
        with prepared(options.fleet, directory=directory, signals=resources.signals) as fleet:
            if resources.relay is not None:
                resources.relay.hand_out(fleet.clients)
            if options.call is not None:
                options.call.hand_out(fleet.clients)
            yield fleet, secret
        return
    allocations: tuple[HostAllocation, ...]
    if options.allocations:
        allocations = options.allocations
    elif options.nodes is None:
        allocations = (local_allocation(free_ports(options.num_workers)),)
    else:
        joined = join_nodes(
            options.nodes,
            num_workers=options.num_workers,
            secret=resources.secret,
            console=resources.console,
            signals=resources.signals,
        )
        allocations, secret = joined.allocations, joined.secret
    with local_fleet(
        allocations,
        signals=resources.signals,
        store=resources.store,
        call_fd=None if options.call is None else options.call.call_fd,
    ) as fleet:
        yield fleet, secret


def _plan(  # noqa: PLR0913 - what a start knows, by name
    options: JobOptions,
    fleet: Fleet,
    *,
    environment: Mapping[str, str],
    secret: str,
    directory: str | None,
    may_stay: bool,
) -> list[ProcessPlan]:
    """Plans all workers, with what they inherit from us or from their agents."""
    plans = plan_processes(
        options.command,
        allocations=fleet.allocations,
        environment=_workers_environment(options, environment, secret=secret),
        as_horovod=options.as_horovod,
        binding=options.binding,
        directory=directory,
    )
    keeps_commits = options.restarts.restarts > 0 or options.elastic is not None
    makes_call = options.call is not None
    return [
        dataclasses.replace(
            plan,
            makes_call=makes_call,
            preload=options.preload,
            keeps_commits=keeps_commits,
            may_stay=may_stay,
        )
        for plan in plans
    ]


def _announce(allocations: Sequence[HostAllocation], console: Console) -> None:
    for allocation in allocations:
        where = f"{allocation.host}: " if allocation.host else ""
        ports = ", ".join(map(str, allocation.ports))
        console.say(f"{where}{len(allocation.ports)} workers on ports {ports}")


def _workers_environment(
    options: JobOptions, environment: Mapping[str, str], *, secret: str
) -> dict[str, str]:
    if options.fleet is None:
        given = inherited(environment)
    else:
        given = forwarded(environment, without=options.fleet.starter.host_variables)
    elastic = {commits.ELASTIC: "1"} if options.elastic is not None else {}
    requested = requested_variables(options, environment)
    return {**given, **requested, **elastic, SECRET: secret}


def find_taken_port(outcome: Outcome, ports: tuple[int, ...]) -> int | None:
    """The port that the job failed for, because somebody had taken it when its server started.

    It must have failed by itself, its stderr must say so, and either the port is still taken or
    the worker had only just started: a worker that has trained is never started again for it.
    """
    root = outcome.root
    # Killed by a signal, or ended well: a server that can't listen makes its worker raise.
    if root is None or root.returncode <= 0:
        return None
    if not any(sign in line for line in root.stderr_lines for sign in _PORT_TAKEN):
        return None
    port = ports[root.rank]
    is_taken_here = not root.host and not is_free(port)
    return port if root.after_s < _START_S or is_taken_here else None
