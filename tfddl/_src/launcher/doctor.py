"""`tfddl-doctor`, which is `tfddlrun --check`: finds what would keep a job from running."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterator, Sequence

from tfddl._src.launcher.doctor_checks import (
    Finding,
    Level,
    check_clock,
    check_facts,
    check_reach,
    check_speed,
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
from tfddl._src.launcher.remote_client import RemoteAgentClient
from tfddl._src.launcher.signals import Interrupted, Signals
from tfddl._src.launcher.system import require_files
from tfddl.errors import LaunchError

_PIECES = 32
_ANSWER_S = 20.0


def check_hosts(options: FleetOptions, *, directory: str) -> int:
    """Checks hosts, and writes a line for each finding to stdout.

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
            for finding in doctor.check():
                sys.stdout.write(f"{finding}\n")
                sys.stdout.flush()
                findings.append(finding)
        except Interrupted:
            return 128 + signals.take_ending()[0]
    return int(worst(findings) is Level.PROBLEM)


class _Doctor:
    """One check of some hosts."""

    def __init__(self, options: FleetOptions, *, directory: str, signals: Signals) -> None:
        self._options, self._directory, self._signals = options, directory, signals
        self._workers = {host.name: host.slots for host in options.hosts}

    def check(self) -> Iterator[Finding]:
        """All findings, as they are made."""
        with connecting(self._options, signals=self._signals) as clients:
            for client, problem in failures(clients, self._options):
                yield Finding(Level.PROBLEM, client.host, problem)
            able = [
                client for client in clients if client.lost is None and client.greeting is not None
            ]
            if not able:
                return
            try:
                yield from self._check(able)
            except LaunchError as error:  # one was lost meanwhile
                yield Finding(Level.PROBLEM, ", ".join(client.host for client in able), str(error))

    def _check(self, clients: Sequence[RemoteAgentClient]) -> Iterator[Finding]:
        clocks = []
        facts = {}
        for client in clients:
            begin = time.time()
            facts[client.host] = self._ask(
                client, {"question": "facts", "directory": self._directory}
            )
            end = time.time()
            offset_s = facts[client.host]["time"] - (begin + end) / 2
            clocks.append(
                check_clock(client.host, offset_s=offset_s, uncertain_s=(end - begin) / 2)
            )
        yield from check_facts(facts, self._workers)
        yield from clocks
        if len(clients) < 2:
            return
        addresses = yield from self._find_addresses(clients, facts)
        yield from self._try_network(clients, addresses)

    def _find_addresses(
        self, clients: Sequence[RemoteAgentClient], facts: dict[str, Message]
    ) -> Generator[Finding, None, dict[str, str]]:
        """Checks the hosts' names; returns the address of each host."""
        names = [client.host for client in clients]
        if not self._options.interfaces:
            for client in clients:
                facts[client.host] |= self._ask(client, {"question": "resolve", "names": names})
            for problem in find_unreachable_names(facts):
                yield Finding(Level.PROBLEM, "names", problem)
            return dict(zip(names, names, strict=True))
        return {
            client.host: self._ask(
                client, {"question": "address", "interfaces": self._options.interfaces}
            )["address"]
            for client in clients
        }

    def _try_network(
        self, clients: Sequence[RemoteAgentClient], addresses: dict[str, str]
    ) -> Iterator[Finding]:
        """Every host tries every other's ports; each sends to the next, as in a ring."""
        ports = {}
        for client in clients:
            question = {"question": "listen", "count": self._workers[client.host]}
            ports[client.host] = self._ask(client, question)["ports"]
        for client in clients:
            for other in (other.host for other in clients if other is not client):
                question = {"question": "reach", "host": addresses[other], "ports": ports[other]}
                answer = self._ask(client, question)
                yield check_reach(client.host, other, answer, len(ports[other]))
        for client, following in zip(clients, [*clients[1:], clients[0]], strict=True):
            question = {
                "question": "speed",
                "host": addresses[following.host],
                "port": ports[following.host][0],
                "num_pieces": _PIECES,
            }
            yield check_speed(client.host, following.host, self._ask(client, question))

    def _ask(self, client: RemoteAgentClient, question: Message) -> Message:
        client.send({"do": "probe", **question})
        (answer,) = ask([client], signals=self._signals, wait_s=_ANSWER_S)
        if "error" in answer and question["question"] != "speed":
            raise LaunchError(f"on {client.host}, {answer['error']}")
        return answer
