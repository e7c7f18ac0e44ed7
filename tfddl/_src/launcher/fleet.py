"""All hosts of a job: connected, asked for ports, and checked before anything is started."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import selectors
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from tfddl import __version__
from tfddl._src.cluster.ports import free_ports
from tfddl._src.launcher.agent_client import AgentClient
from tfddl._src.launcher.agent_starter import AgentStarter
from tfddl._src.launcher.frames import Message
from tfddl._src.launcher.host_store import HostStore
from tfddl._src.launcher.hosts import HostSlots, ranks_of
from tfddl._src.launcher.interfaces import is_this_host
from tfddl._src.launcher.local_client import LocalAgentClient
from tfddl._src.launcher.log_sink import LogSink
from tfddl._src.launcher.plan import LOOPBACK, HostAllocation, ProcessPlan, local_allocation
from tfddl._src.launcher.remote_client import RemoteAgentClient
from tfddl._src.launcher.signals import Interrupted, Signals
from tfddl._src.launcher.ssh import SshOptions
from tfddl._src.launcher.worker_handle import WorkerHandle
from tfddl._src.launcher.worker_process import adopt_orphans, kill_orphans
from tfddl.errors import LaunchError

_Client = TypeVar("_Client", bound=AgentClient)

CONNECT_S = 30.0
"""How long hosts have to answer, by default (`--start-timeout`)."""


@dataclass(frozen=True)
class FleetOptions:
    """Which hosts, and how they are reached.

    Attributes:
        hosts: with the number of workers that each gets; none where a host discovery says which.
        interfaces: the first of these that a host has is where its workers are reached; none:
            by the host's name.
        starter: how hosts are reached, by ssh or srun.
        connect_s: seconds that they have to answer, above 0.

    Raises:
        LaunchError: they have no time.
    """

    hosts: tuple[HostSlots, ...]
    interfaces: tuple[str, ...] = ()
    starter: AgentStarter = SshOptions()
    connect_s: float = CONNECT_S

    def __post_init__(self) -> None:
        if not self.connect_s > 0:
            raise LaunchError(f"--start-timeout is {self.connect_s}; it must be above 0 seconds")

    @property
    def is_this_host(self) -> bool:
        """Whether it is this machine alone, so that workers start without an agent process."""
        return len(self.hosts) == 1 and is_this_host(self.hosts[0].name) and not self.interfaces


class UnreachableError(LaunchError):
    """Hosts that can't be reached, or can't take part.

    Attributes:
        problems: by host, what is wrong with it.
    """

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("\n".join(problems.values()))
        self.problems = dict(problems)


class Reallocate(Protocol):
    """Gives a job other hosts, or other numbers of workers."""

    def __call__(
        self, fleet: Fleet, workers: Mapping[str, int], *, signals: Signals
    ) -> tuple[HostAllocation, ...]:
        """Connects to those that are new, whose clients it adds, and has ports chosen anew.

        Raises:
            LaunchError: hosts can't be reached, or can't take part.
            Interrupted: a signal came.
        """


class Fleet:
    """The agents of all hosts of a job, whose workers can be started.

    Attributes:
        clients: one per host; this machine alone is one, too. Those of hosts that have no more
            workers stay.
        allocations: the hosts' parts in the job, in the order of their ranks.
    """

    def __init__(
        self,
        clients: Iterable[AgentClient],
        allocations: Iterable[HostAllocation],
        *,
        reallocate: Reallocate | None = None,
    ) -> None:
        """Holds agents.

        Args:
            clients: one per host.
            allocations: the hosts' parts in the job.
            reallocate: changes these; None where they can't be changed.
        """
        self.clients, self.allocations = list(clients), tuple(allocations)
        self._reallocate = reallocate

    @property
    def can_change(self) -> bool:
        """Whether there may be other workers without a fleet of their own."""
        return self._reallocate is not None

    def change(self, workers: Mapping[str, int], *, signals: Signals) -> None:
        """Gives the job other hosts, or numbers of workers; and other ports in any case.

        Args:
            workers: how many of which host, in the order of their ranks.
            signals: interrupt the waiting for hosts.

        Raises:
            LaunchError: hosts can't be reached, or can't take part.
            Interrupted: a signal came.
        """
        assert self._reallocate is not None
        self.allocations = self._reallocate(self, workers, signals=signals)

    def client_of(self, host: str) -> AgentClient | None:
        """The agent of a host that is reached; None where there is none."""
        return next((c for c in self.clients if c.host == host and c.lost is None), None)

    def start(self, plan: ProcessPlan, sinks: Sequence[LogSink]) -> WorkerHandle:
        """Starts a worker on its host; see `AgentClient.start`."""
        # The last one: a host that was lost may have come back.
        client = next(client for client in reversed(self.clients) if client.host == plan.host)
        return client.start(plan, sinks)

    def beat(self) -> None:
        """Sends heartbeats that are due; to be called at least every `BEAT_S` seconds."""
        for client in self.clients:
            client.beat()

    def update(self) -> None:
        """Brings what is known of the workers' progress up to date, without waiting."""
        for client in self.clients:
            client.update()

    def ping(self) -> None:
        """Asks all hosts for a heartbeat; those that don't answer soon are lost."""
        for client in self.clients:
            client.ping()

    @property
    def num_oom_kills(self) -> int:
        """Processes that the hosts' kernels have killed when memory ran out."""
        return sum(client.num_oom_kills for client in self.clients)

    @property
    def limits(self) -> tuple[str, ...]:
        """Limits of the hosts' cgroups that were reached."""
        return tuple(
            f"on {client.host}, {text}" if client.host else text
            for client in self.clients
            for text in client.limits
        )


@contextlib.contextmanager
def local_fleet(
    allocations: Sequence[HostAllocation],
    *,
    signals: Signals,
    store: HostStore,
    call_fd: int | None = None,
) -> Iterator[Fleet]:
    """A fleet whose workers all run on this machine; at the end nothing is left of them.

    The calling process must have no other children and no threads.

    Args:
        allocations: the hosts' parts in the job; all but the one named "" have a `tfddlrun` of
            their own.
        signals: readable when a worker may have ended.
        store: where workers keep commits, from one start to the next.
        call_fd: the file with the function call that they make, if they do.
    """
    local = LocalAgentClient(signals=signals, store=store, call_fd=call_fd)
    with contextlib.closing(local) as client:
        # Where other tfddlruns start a part of the job, they would have to change, too.
        is_whole = [allocation.host for allocation in allocations] == [""]
        yield Fleet((client,), allocations, reallocate=_other_ports if is_whole else None)


def _other_ports(
    fleet: Fleet, workers: Mapping[str, int], *, signals: Signals
) -> tuple[HostAllocation, ...]:
    return (local_allocation(free_ports(sum(workers.values()))),)


@contextlib.contextmanager
def connecting(
    options: FleetOptions, *, signals: Signals
) -> Iterator[tuple[RemoteAgentClient, ...]]:
    """Connections to all hosts, as far as they succeed; `failures` gives the others.

    At the end all are closed, and nothing is left on any host.

    Raises:
        LaunchError: there is no ssh, or srun.
        Interrupted: a signal came.
    """
    clients: list[RemoteAgentClient] = []
    try:
        for host in options.hosts:
            clients.append(
                RemoteAgentClient(host.name, options.starter, is_here=is_this_host(host.name))
            )
        wait_for(
            clients,
            lambda client: client.greeting is not None,
            signals=signals,
            wait_s=options.connect_s,
        )
        yield tuple(clients)
    finally:
        close_all(clients)


@contextlib.contextmanager
def prepared(options: FleetOptions, *, directory: str, signals: Signals) -> Iterator[Fleet]:
    """A fleet whose workers can be started.

    Args:
        options: which hosts.
        directory: the folder that the workers run in.
        signals: interrupts the waiting.

    Raises:
        UnreachableError: hosts that can't be reached, or have no ports, memory or such a folder;
            all of them named.
        LaunchError: their names don't lead to them.
        Interrupted: a signal came.
    """
    with connecting(options, signals=signals) as clients:
        ranks = ranks_of(options.hosts)
        problems = {
            client.host: f"rank {', '.join(map(str, ranks[client.host]))} can't start: {problem}"
            for client, problem in failures(clients, options)
        }
        if problems:
            raise UnreachableError(problems)
        allocations = _allocate(clients, options, directory=directory, signals=signals)
        adopt_orphans()

        def reallocate(
            fleet: Fleet, workers: Mapping[str, int], *, signals: Signals
        ) -> tuple[HostAllocation, ...]:
            hosts = tuple(HostSlots(name, count) for name, count in workers.items())
            changed = dataclasses.replace(options, hosts=hosts)
            return _change(fleet, changed, directory=directory, signals=signals)

        fleet = Fleet(clients, allocations, reallocate=reallocate)
        try:
            yield fleet
        finally:
            # Before ssh is killed as an orphan. All are of this kind: it has made them.
            close_all([c for c in fleet.clients if isinstance(c, RemoteAgentClient)])
            kill_orphans()


def _change(
    fleet: Fleet, options: FleetOptions, *, directory: str, signals: Signals
) -> tuple[HostAllocation, ...]:
    """Connects to those of some hosts that have no agent yet, and asks all of these for ports."""
    known = {host.name: fleet.client_of(host.name) for host in options.hosts}
    new = [
        RemoteAgentClient(name, options.starter, is_here=is_this_host(name))
        for name, client in known.items()
        if client is None
    ]
    # Also those that fail: whoever closes the fleet waits for their ends.
    fleet.clients += new
    wait_for(
        fleet.clients,
        lambda client: not isinstance(client, RemoteAgentClient) or client.greeting is not None,
        signals=signals,
        wait_s=options.connect_s if new else 0.0,
    )
    if problems := dict(failures(new, options)):
        for client in problems:
            client.hang_up()
        raise UnreachableError({client.host: text for client, text in problems.items()})
    clients = [found for host in options.hosts if (found := fleet.client_of(host.name))]
    if len(clients) < len(options.hosts):
        gone = [host.name for host in options.hosts if fleet.client_of(host.name) is None]
        raise UnreachableError({host: f"{host} can't be reached any more" for host in gone})
    return _allocate(clients, options, directory=directory, signals=signals)


def _allocate(
    clients: Sequence[AgentClient], options: FleetOptions, *, directory: str, signals: Signals
) -> tuple[HostAllocation, ...]:
    """Has each host check what its workers need, and choose their ports."""
    names = [host.name for host in options.hosts]
    for client, host in zip(clients, options.hosts, strict=True):
        client.send(
            {
                "do": "prepare",
                "num_workers": host.slots,
                "interfaces": options.interfaces,
                "directory": directory,
                "names": names,
            }
        )
    answers = dict(zip(names, ask(clients, signals=signals, wait_s=options.connect_s), strict=True))
    refused = {
        host: f"on {host}, {answer['error']}"
        for host, answer in answers.items()
        if "error" in answer
    }
    if refused:
        raise UnreachableError(refused)
    if not options.interfaces:
        _refuse(find_unreachable_names(answers))
    return tuple(
        HostAllocation(
            host=host,
            # Workers of the only host need to reach nobody but each other.
            address=answer["address"] or (host if len(names) > 1 else LOOPBACK),
            ports=tuple(answer["ports"]),
            interface=answer["interface"],
        )
        for host, answer in answers.items()
    )


def ask(clients: Sequence[AgentClient], *, signals: Signals, wait_s: float) -> list[Message]:
    """The answers of all hosts to what each has just been asked.

    Raises:
        UnreachableError: hosts that haven't answered in time, or are lost; all of them named.
        Interrupted: a signal came.
    """
    answers = answers_of(clients, signals=signals, wait_s=wait_s)
    require_answers(clients, answers, wait_s=wait_s)
    return [answers[client] for client in clients]


def require_answers(
    clients: Iterable[AgentClient], answers: Mapping[AgentClient, Message], *, wait_s: float
) -> None:
    """Raises where a host hasn't answered what it was asked.

    Raises:
        UnreachableError: hosts that haven't answered in time, or are lost; all of them named.
    """
    silence = f"hasn't answered within {wait_s:g} s"
    missing = {
        client.host: client.lost or f"{client.host} {silence}"
        for client in clients
        if client not in answers
    }
    if missing:
        raise UnreachableError(missing)


def answers_of(
    clients: Sequence[AgentClient], *, signals: Signals, wait_s: float
) -> dict[AgentClient, Message]:
    """The answers of the hosts that do answer to what each has just been asked.

    Raises:
        Interrupted: a signal came.
    """
    answers: dict[AgentClient, Message] = {}

    def has_answered(client: AgentClient) -> bool:
        if client not in answers and (answer := client.take_answer()) is not None:
            answers[client] = answer
        return client in answers

    wait_for(clients, has_answered, signals=signals, wait_s=wait_s)
    return answers


def wait_for(
    clients: Sequence[_Client],
    is_done: Callable[[_Client], bool],
    *,
    signals: Signals,
    wait_s: float,
) -> None:
    """Waits until all that are not lost are done, or the time is over.

    Raises:
        Interrupted: a signal came.
    """
    deadline = time.monotonic() + wait_s
    with selectors.DefaultSelector() as selector:
        selector.register(signals, selectors.EVENT_READ)
        for client in clients:
            selector.register(client, selectors.EVENT_READ)
        while not all(is_done(client) or client.lost is not None for client in clients):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return
            # At most a second: heartbeats of hosts that are connected already are due meanwhile.
            turn(clients, selector=selector, signals=signals, wait_s=min(left_s, 1.0))
            if signals.have_ended_job:
                raise Interrupted


def turn(
    clients: Iterable[AgentClient],
    *,
    selector: selectors.BaseSelector,
    signals: Signals,
    wait_s: float | None,
) -> None:
    """Waits for something to happen, and takes what the agents have sent.

    Args:
        clients: connections to them.
        selector: where these are registered, and the signals; those that are lost are taken out.
        signals: are read.
        wait_s: for how long; None for any time.
    """
    ready = {key.fileobj for key, _ in selector.select(wait_s)}
    # First: of a child that ends after it was looked at, the signal is still to be read.
    signals.read()
    for client in clients:
        client.turn(is_readable=client in ready)
        if client.lost is not None and client in selector.get_map():
            selector.unregister(client)


def close_all(clients: Sequence[RemoteAgentClient]) -> None:
    """Ends connections, all at once, and waits for their ends."""
    for client in clients:
        client.hang_up()
    for client in clients:
        client.close()


def find_unreachable_names(answers: Mapping[str, Message]) -> list[str]:
    """What is wrong with the hosts' names, as the other hosts resolve them.

    A host's own name may well be its loopback (Debian writes so into /etc/hosts): only others
    have to find it.

    Args:
        answers: by host, what its agent answered to "prepare".
    """
    problems = []
    for asked, answer in answers.items():
        for name, addresses in answer["resolved"].items():
            other = answers[name]["identity"] != answer["identity"]
            if not addresses:
                problems.append(
                    f"{asked} can't resolve {name}. HINT: a name that all hosts know (DNS, "
                    "/etc/hosts), an address, or --network-interface"
                )
            elif other and all(ipaddress.ip_address(text).is_loopback for text in addresses):
                problems.append(
                    f"{name} is {addresses[0]} on {asked}, where it reaches only {asked} "
                    "itself. HINT: a name or an address by which the others reach it, or "
                    "--network-interface"
                )
    return problems


def failures(
    clients: Iterable[RemoteAgentClient], options: FleetOptions
) -> Iterator[tuple[RemoteAgentClient, str]]:
    """The connections that have failed, and why."""
    for client in clients:
        if client.lost is not None:
            yield client, client.lost
        elif client.greeting is None:
            why = client.why_silent()
            yield client, f"{why} within {options.connect_s:g} s (--start-timeout)"
        elif (version := client.greeting["version"]) != __version__:
            yield (
                client,
                f"{client.host} has tfddl {version}, but this host {__version__}. HINT: install "
                "the same on all hosts",
            )


def _refuse(problems: Iterable[str]) -> None:
    if found := list(problems):
        raise LaunchError("\n".join(found))
