"""All hosts of a job: connected, asked for ports, and checked before anything is started."""

from __future__ import annotations

import contextlib
import ipaddress
import selectors
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tfddl import __version__
from tfddl._src.launcher.display import Sink
from tfddl._src.launcher.frames import Message
from tfddl._src.launcher.hosts import HostSlots, ranks_of
from tfddl._src.launcher.interfaces import is_this_host
from tfddl._src.launcher.link import Link, RemoteWorker
from tfddl._src.launcher.plan import Place, ProcessPlan, this_machine
from tfddl._src.launcher.signals import Interrupted, Signals
from tfddl._src.launcher.ssh import SshOptions
from tfddl.errors import LaunchError

CONNECT_S = 30.0
"""How long hosts have to answer, where the user says nothing (`--start-timeout`)."""


@dataclass(frozen=True)
class FleetOptions:
    """Which hosts, and how they are reached.

    Attributes:
        hosts: with the number of workers that each gets.
        interfaces: the first of these that a host has is where its workers are reached; none:
            by the host's name.
        ssh: how hosts are reached.
        connect_s: seconds that they have to answer, above 0.

    Raises:
        LaunchError: no host, or no time.
    """

    hosts: tuple[HostSlots, ...]
    interfaces: tuple[str, ...] = ()
    ssh: SshOptions = SshOptions()
    connect_s: float = CONNECT_S

    def __post_init__(self) -> None:
        if not self.hosts:
            raise LaunchError("there is no host. HINT: -H hostA:2,hostB:2")
        if not self.connect_s > 0:
            raise LaunchError(f"--start-timeout is {self.connect_s}; it must be above 0 seconds")


class UnreachableError(LaunchError):
    """Hosts haven't answered.

    Attributes:
        problems: by host, what is wrong with it.
    """

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("\n".join(problems.values()))
        self.problems = dict(problems)


@dataclass(frozen=True)
class Fleet:
    """The connections to all hosts of a job.

    Attributes:
        links: one per host.
        places: the hosts' parts in the job, in the same order.
    """

    links: tuple[Link, ...]
    places: tuple[Place, ...]

    def start(self, plan: ProcessPlan, sinks: Sequence[Sink]) -> RemoteWorker:
        """Starts a worker on its host."""
        link = next(link for link in self.links if link.host == plan.host)
        return link.start(plan, sinks)

    def beat(self) -> None:
        """Says to all hosts that we are here; at least every `BEAT_S` seconds."""
        beat_all(self.links)

    def ask_for_signs(self) -> None:
        """Finds out which hosts are still there; those that don't answer soon are lost."""
        for link in self.links:
            link.ask_for_sign()

    def close(self) -> None:
        """Ends all connections, and waits for it: nothing is left on any host."""
        close_all(self.links)

    @property
    def num_oom_kills(self) -> int:
        """Processes that the hosts' kernels have ended for want of memory."""
        return sum(link.num_oom_kills for link in self.links)

    @property
    def limits(self) -> tuple[str, ...]:
        """Limits of the hosts' cgroups that were reached."""
        return tuple(f"on {link.host}, {text}" for link in self.links for text in link.limits)


@contextlib.contextmanager
def connecting(options: FleetOptions, *, signals: Signals) -> Iterator[tuple[Link, ...]]:
    """Connections to all hosts, as far as they come about; `failures` tells those that didn't.

    At the end all are closed, and nothing is left on any host.

    Raises:
        LaunchError: there is no ssh.
        Interrupted: a signal came.
    """
    links: list[Link] = []
    try:
        for host in options.hosts:
            links.append(Link(host.name, options.ssh, is_here=is_this_host(host.name)))
        wait_for(
            links, lambda link: link.greeting is not None, signals=signals, wait_s=options.connect_s
        )
        yield tuple(links)
    finally:
        close_all(links)


@contextlib.contextmanager
def prepared(options: FleetOptions, *, directory: str, signals: Signals) -> Iterator[Fleet]:
    """A fleet whose workers can be started.

    Args:
        options: which hosts.
        directory: the folder that the workers run in.
        signals: interrupts the waiting.

    Raises:
        UnreachableError: hosts that can't be reached; all of them named.
        LaunchError: hosts that can't take part; all of them named.
        Interrupted: a signal came.
    """
    with connecting(options, signals=signals) as links:
        ranks = ranks_of(options.hosts)
        problems = {
            link.host: f"rank {', '.join(map(str, ranks[link.host]))} can't start: {problem}"
            for link, problem in failures(links, options)
        }
        if problems:
            raise UnreachableError(problems)
        names = [host.name for host in options.hosts]
        for link, host in zip(links, options.hosts, strict=True):
            link.send(
                {
                    "do": "prepare",
                    "num_workers": host.slots,
                    "interfaces": options.interfaces,
                    "directory": directory,
                    "names": names,
                }
            )
        answers = ask(links, signals=signals, wait_s=options.connect_s)
        _refuse(
            f"on {link.host}, {answer['error']}"
            for link, answer in zip(links, answers, strict=True)
            if "error" in answer
        )
        by_host = dict(zip(names, answers, strict=True))
        if not options.interfaces:
            _refuse(find_unreachable_names(by_host))
        yield Fleet(
            links=links,
            places=tuple(_place(host, answer) for host, answer in by_host.items())
            if len(names) > 1
            else (_alone(names[0], answers[0]),),
        )


def ask(links: Sequence[Link], *, signals: Signals, wait_s: float) -> list[Message]:
    """The answers of all hosts to what each has just been asked.

    Raises:
        UnreachableError: hosts that haven't answered in time, or are lost; all of them named.
        Interrupted: a signal came.
    """
    answers = answers_of(links, signals=signals, wait_s=wait_s)
    if missing := [link for link in links if link not in answers]:
        silence = f"hasn't answered within {wait_s:g} s"
        raise UnreachableError(
            {link.host: link.lost or f"{link.host} {silence}" for link in missing}
        )
    return [answers[link] for link in links]


def answers_of(links: Sequence[Link], *, signals: Signals, wait_s: float) -> dict[Link, Message]:
    """The answers of the hosts that do answer to what each has just been asked.

    Raises:
        Interrupted: a signal came.
    """
    answers: dict[Link, Message] = {}

    def has_answered(link: Link) -> bool:
        if link not in answers and (answer := link.take_answer()) is not None:
            answers[link] = answer
        return link in answers

    wait_for(links, has_answered, signals=signals, wait_s=wait_s)
    return answers


def wait_for(
    links: Sequence[Link], is_done: Callable[[Link], bool], *, signals: Signals, wait_s: float
) -> None:
    """Waits until all that are not lost are done, or the time is over.

    Raises:
        Interrupted: a signal came.
    """
    deadline = time.monotonic() + wait_s
    with selectors.DefaultSelector() as selector:
        selector.register(signals, selectors.EVENT_READ)
        for link in links:
            selector.register(link, selectors.EVENT_READ)
        while not all(is_done(link) or link.lost is not None for link in links):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return
            for key, _ in selector.select(min(left_s, 1.0)):
                if isinstance(key.fileobj, Link) and not key.fileobj.pump():
                    selector.unregister(key.fileobj)
            beat_all(link for link in links if link.greeting is not None)
            signals.read()
            if signals.have_ended_job:
                raise Interrupted


def close_all(links: Sequence[Link]) -> None:
    """Ends connections, all at once, and waits for their ends."""
    for link in links:
        link.hang_up()
    for link in links:
        link.close()


def beat_all(links: Iterable[Link]) -> None:
    """Says to these hosts that we are here."""
    for link in links:
        link.beat()


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
                    f"{name} is {addresses[0]} on {asked}, which leads nowhere but to {asked} "
                    "itself. HINT: a name or an address by which the others reach it, or "
                    "--network-interface"
                )
    return problems


def _place(host: str, answer: Message) -> Place:
    return Place(
        host=host,
        address=answer["address"] or host,
        ports=tuple(answer["ports"]),
        interface=answer["interface"],
    )


def _alone(host: str, answer: Message) -> Place:
    """The place of a host whose workers need to find nobody but each other."""
    loopback = this_machine(answer["ports"])
    return Place(
        host=host,
        address=answer["address"] or loopback.address,
        ports=loopback.ports,
        interface=answer["interface"],
    )


def failures(links: Iterable[Link], options: FleetOptions) -> Iterator[tuple[Link, str]]:
    """The connections that haven't come about, and why."""
    for link in links:
        if link.lost is not None:
            yield link, link.lost
        elif link.greeting is None:
            yield link, f"{link.why_silent()} within {options.connect_s:g} s (--start-timeout)"
        elif link.greeting["version"] != __version__:
            yield (
                link,
                f"{link.host} has tfddl {link.greeting['version']}, but this host {__version__}. "
                "HINT: install the same on all hosts",
            )


def _refuse(problems: Iterable[str]) -> None:
    if found := list(problems):
        raise LaunchError("\n".join(found))
