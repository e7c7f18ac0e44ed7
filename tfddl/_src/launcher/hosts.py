"""The hosts of a job as a user writes them, and how many workers each of them gets. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tfddl._src.cluster import join_address
from tfddl._src.cluster.parsing import parse_int, quote
from tfddl.errors import ClusterError, LaunchError

MAX_LAUNCHED_WORKERS = 1024
"""The most workers of one job of `tfddlrun`."""

_MOST_SLOTS = 10**9  # beyond it is no number of anything; HostSlots says what is too many

# A host name, or an IPv6 address, perhaps with its interface (fe80::1%eth0). No dash comes first:
# ssh would take it for an option.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|[0-9A-Fa-f]*:[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?")
_SLOTS = re.compile(r"(slots|max_slots|max-slots)=(?P<number>.*)")


@dataclass(frozen=True)
class HostSlots:
    """A host, and how many workers it takes.

    Attributes:
        name: the name that ssh and the other hosts find it by; an IPv6 address has no brackets.
        slots: number of workers, at least 1.

    Raises:
        LaunchError: the name is no host's, or the number is out of range.
    """

    name: str
    slots: int

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise LaunchError(
                f"{self.name!r} is no host name; letters, digits, '.', '-' and '_' are expected, "
                "or an IP address. HINT: another user, port or key belongs in ~/.ssh/config"
            )
        if not 1 <= self.slots <= MAX_LAUNCHED_WORKERS:
            raise LaunchError(
                f"host {self.name} has {self.slots} slots; it must be 1..{MAX_LAUNCHED_WORKERS}"
            )


def parse_hosts(text: str) -> tuple[HostSlots, ...]:
    """Reads what `-H` says: "hostA:2,hostB:4"; a host without a number has one slot.

    An IPv6 address with a number of slots stands in brackets: "[fd00::1]:2".

    Raises:
        LaunchError: the text names no hosts, or one twice.
    """
    return _each_once(_parse_entry(entry.strip()) for entry in text.split(","))


def read_hostfile(path: Path) -> tuple[HostSlots, ...]:
    """Reads a file of lines "host slots=2"; what follows "#" is a comment.

    Raises:
        LaunchError: the file can't be read, names no host, or one twice.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError(f"can't read the hostfile {path}: {error}") from error
    hosts = []
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if words:
            try:
                hosts.append(_parse_line(words))
            except LaunchError as error:
                raise LaunchError(f"{path}, line {number}: {error}") from None
    if not hosts:
        raise LaunchError(f"the hostfile {path} names no host. HINT: lines like 'hostA slots=2'")
    return _each_once(hosts)


def parse_discovered(text: str, *, default_slots: int) -> dict[str, int]:
    """Reads what a host discovery script prints, as Horovod's: lines "host:slots" or "host".

    Args:
        text: what it has printed; what follows "#" is a comment, and nothing means that there are
            no hosts.
        default_slots: of a host without a number.

    Returns:
        By host, how many workers it takes; a host with 0 slots is left out.

    Raises:
        LaunchError: a line isn't understood, or names a host again.
    """
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    hosts = _each_once(
        _parse_entry(line, default_slots=default_slots)
        for line in lines
        if line and split_host(line)[1] != "0"
    )
    return {host.name: host.slots for host in hosts}


def fill_slots(hosts: Sequence[HostSlots], num_workers: int) -> tuple[HostSlots, ...]:
    """The hosts that so many workers fill, one after the other; the last may keep free slots.

    Raises:
        LaunchError: there are more workers than slots.
    """
    _require_slots(hosts, num_workers, asked="workers (-np)")
    filled: list[HostSlots] = []
    left = num_workers
    for host in hosts:
        if left:
            filled.append(HostSlots(host.name, min(left, host.slots)))
            left -= filled[-1].slots
    return tuple(filled)


def spread_slots(hosts: Sequence[HostSlots], num_workers: int) -> tuple[HostSlots, ...]:
    """The hosts that so many workers are placed on, round-robin, one to each with a free slot.

    Args:
        hosts: those that there are.
        num_workers: at least 1. Fewer than there are hosts leave out the last of them.

    Raises:
        LaunchError: there are more workers than slots.
    """
    _require_slots(hosts, num_workers, asked="workers")
    dealt = dict.fromkeys(hosts, 0)
    left = num_workers
    while left:
        for host in (host for host in hosts if dealt[host] < host.slots):
            if left:
                dealt[host] += 1
                left -= 1
    return tuple(HostSlots(host.name, slots) for host, slots in dealt.items() if slots)


def _require_slots(hosts: Sequence[HostSlots], num_workers: int, *, asked: str) -> None:
    slots = sum(host.slots for host in hosts)
    if num_workers > slots:
        raise LaunchError(
            f"{num_workers} {asked} don't fit on {len(hosts)} hosts with {slots} slots. HINT: give "
            "a host more slots, as in -H hostA:4"
        )


def render_hosts(hosts: Sequence[HostSlots]) -> str:
    """Writes what `parse_hosts` reads."""
    return ",".join(join_address(host.name, host.slots) for host in hosts)


def ranks_of(hosts: Sequence[HostSlots]) -> dict[str, range]:
    """By host, the ranks of its workers: they fill one host after the other."""
    found, first = {}, 0
    for host in hosts:
        found[host.name] = range(first, first + host.slots)
        first += host.slots
    return found


def split_host(text: str) -> tuple[str, str | None]:
    """Host, without brackets, and number of "host", "host:number", "::1" or "[::1]:number"."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, rest.removeprefix(":") or None
    if text.count(":") == 1:
        host, _, number = text.partition(":")
        return host, number
    return text, None


def _parse_entry(entry: str, *, default_slots: int = 1) -> HostSlots:
    name, slots = split_host(entry)
    if not name:
        raise LaunchError(f"there is no host name in {entry!r}. HINT: -H hostA:2,hostB:2")
    return HostSlots(name, default_slots if slots is None else _parse_slots(name, slots))


def _parse_line(words: Sequence[str]) -> HostSlots:
    if len(words) == 1:
        return _parse_entry(words[0])
    name, *rest = words
    numbers = [match["number"] for match in map(_SLOTS.fullmatch, rest) if match]
    if len(numbers) != len(rest):
        raise LaunchError(f"{' '.join(words)!r} can't be parsed; 'hostA slots=2' is expected")
    return HostSlots(name.strip("[]"), _parse_slots(name, numbers[0]))


def _parse_slots(name: str, text: str) -> int:
    try:
        return parse_int(text, what=f"the slots of host {name}", high=_MOST_SLOTS)
    except ClusterError:
        raise LaunchError(f"host {name} has {quote(text)} slots; a number is expected") from None


def _each_once(hosts: Iterable[HostSlots]) -> tuple[HostSlots, ...]:
    found = tuple(hosts)
    names = [host.name for host in found]
    for name in names:
        if names.count(name) > 1:
            total = sum(host.slots for host in found if host.name == name)
            raise LaunchError(f"host {name} is named twice. HINT: once, as {name}:{total}")
    return found
