"""`tfddl-doctor`, which is `tfddlrun --check`: looks for what would keep a job from running."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterator, Sequence

from tfddl._src.launcher.findings import (
    Finding,
    Level,
    judge_clock,
    judge_hosts,
    judge_reach,
    judge_speed,
    worst,
)
from tfddl._src.launcher.fleet import (
    FleetOptions,
    ask,
    connecting,
    failures,
    find_unreachable_names,
)
from tfddl._src.launcher.frames import Message
from tfddl._src.launcher.link import Link
from tfddl._src.launcher.signals import Interrupted, Signals
from tfddl._src.launcher.system import require_files
from tfddl.errors import LaunchError

_PIECES = 32
_ANSWER_S = 20.0


def check_hosts(options: FleetOptions, *, directory: str) -> int:
    """Checks hosts, and says a line for each finding on stdout.

    Args:
        options: which hosts.
        directory: where workers would run.

    Returns:
        The exit status: 0 if a job can run, 1 if there is a problem, 128 + n if signal n came.

    Raises:
        LaunchError: the system doesn't allow so many open files as the connections need.
    """
    findings = []
    require_files(0, num_hosts=len(options.hosts))
    with Signals() as signals:
        doctor = _Doctor(options, directory=directory, signals=signals)
        try:
            for finding in doctor.examine():
                sys.stdout.write(f"{finding}\n")
                sys.stdout.flush()
                findings.append(finding)
        except Interrupted:
            return 128 + signals.take_ending()[0]
    return int(worst(findings) is Level.PROBLEM)


class _Doctor:
    """One examination of some hosts."""

    def __init__(self, options: FleetOptions, *, directory: str, signals: Signals) -> None:
        self._options, self._directory, self._signals = options, directory, signals
        self._workers = {host.name: host.slots for host in options.hosts}

    def examine(self) -> Iterator[Finding]:
        """All findings, as they are made."""
        with connecting(self._options, signals=self._signals) as links:
            for link, problem in failures(links, self._options):
                yield Finding(Level.PROBLEM, link.host, problem)
            able = [link for link in links if link.lost is None and link.greeting is not None]
            if not able:
                return
            try:
                yield from self._examine(able)
            except LaunchError as error:  # one was lost meanwhile
                yield Finding(Level.PROBLEM, ", ".join(link.host for link in able), str(error))

    def _examine(self, links: Sequence[Link]) -> Iterator[Finding]:
        clocks = []
        facts = {}
        for link in links:
            begin = time.time()
            facts[link.host] = self._ask(link, {"question": "facts", "directory": self._directory})
            end = time.time()
            offset_s = facts[link.host]["time"] - (begin + end) / 2
            clocks.append(judge_clock(link.host, offset_s=offset_s, uncertain_s=(end - begin) / 2))
        yield from judge_hosts(facts, self._workers)
        yield from clocks
        if len(links) < 2:
            return
        addresses = yield from self._find_addresses(links, facts)
        yield from self._try_network(links, addresses)

    def _find_addresses(
        self, links: Sequence[Link], facts: dict[str, Message]
    ) -> Generator[Finding, None, dict[str, str]]:
        """Judges the hosts' names; returns what each host is reached by."""
        names = [link.host for link in links]
        if not self._options.interfaces:
            for link in links:
                facts[link.host] |= self._ask(link, {"question": "resolve", "names": names})
            for problem in find_unreachable_names(facts):
                yield Finding(Level.PROBLEM, "names", problem)
            return dict(zip(names, names, strict=True))
        return {
            link.host: self._ask(
                link, {"question": "address", "interfaces": self._options.interfaces}
            )["address"]
            for link in links
        }

    def _try_network(self, links: Sequence[Link], addresses: dict[str, str]) -> Iterator[Finding]:
        """Every host tries every other's ports; each sends to the next, as in a ring."""
        ports = {
            link.host: self._ask(link, {"question": "listen", "count": self._workers[link.host]})[
                "ports"
            ]
            for link in links
        }
        for link in links:
            for other in (other.host for other in links if other is not link):
                question = {"question": "reach", "host": addresses[other], "ports": ports[other]}
                answer = self._ask(link, question)
                yield judge_reach(link.host, other, answer, len(ports[other]))
        for link, following in zip(links, [*links[1:], links[0]], strict=True):
            question = {
                "question": "speed",
                "host": addresses[following.host],
                "port": ports[following.host][0],
                "num_pieces": _PIECES,
            }
            yield judge_speed(link.host, following.host, self._ask(link, question))

    def _ask(self, link: Link, question: Message) -> Message:
        link.send({"do": "examine", **question})
        (answer,) = ask([link], signals=self._signals, wait_s=_ANSWER_S)
        if "error" in answer and question["question"] != "speed":
            raise LaunchError(f"on {link.host}, {answer['error']}")
        return answer
