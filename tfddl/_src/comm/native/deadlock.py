"""Ranks that wait for each other in a circle, so that none of them can go on: a deadlock.

A rank that has waited for some seconds sends a *probe* to each of those it waits for: it says in
what the rank waits. Whoever gets one, waits itself, and hasn't come to what the probe says, knows
for certain that the sender's wait can't end before its own does, as long as no other thread of its
process comes to it. It adds itself to the probe, and sends it on to those that it waits for. A
probe that comes back to a wait that it has been through has found a circle.

What a probe says stays true, however old it is: "this wait can't end before that one". So no moment
is needed at which all ranks are looked at together, and a rank that is merely late is never taken
for one that can't come: it adds nothing to any probe.

References:
    "Distributed Deadlock Detection", Chandy, Misra, Haas, 1983, https://doi.org/10.1145/357360.357365
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from tfddl._src.comm.native.messages import MAX_PAYLOAD_BYTES, Tag

PROBE_AFTER_S = 2.0
"""How long to wait in an operation before others are asked."""

_LONGEST_TEXT = 600


class Waiter(NamedTuple):
    """A rank that waits in an operation."""

    rank: int
    """As the mesh numbers it."""

    number: int
    """Of its wait; each wait of a rank has another one."""

    who: str
    """It, and who waits there with it, for people: "ranks 0, 2..3"."""

    text: str
    """In what it waits, and where, for people."""

    is_sole_caller: bool
    """Whether no other thread of its process could begin an operation meanwhile."""

    @property
    def wait(self) -> tuple[int, int]:
        """Tells its wait from all others."""
        return self.rank, self.number


class Probe(NamedTuple):
    """What goes from rank to rank."""

    round: int
    """How many probes the first rank has sent before."""

    tag: Tag
    """What the last of the path hasn't got from whoever the probe is sent to."""

    path: tuple[Waiter, ...]
    """Whose wait can't end before whose."""

    def pack(self) -> bytes:
        """As it travels."""
        path = [waiter._replace(text=waiter.text[:_LONGEST_TEXT]) for waiter in self.path]
        return json.dumps([self.round, self.tag, path]).encode()

    @classmethod
    def unpack(cls, data: bytes) -> Probe:
        """What `pack` has made."""
        number, tag, path = json.loads(data)
        return cls(number, Tag(*tag), tuple(Waiter(*waiter) for waiter in path))


class DeadlockDetector:
    """One rank's part in finding circles. Not for several threads at once, but for `hear`."""

    def __init__(self, has_sent: Callable[[Tag], bool]) -> None:
        """Begins.

        Args:
            has_sent: whether this rank has sent what others wait for.
        """
        self._has_sent = has_sent
        self._heard: dict[int, Probe] = {}
        self._passed_on: set[tuple[tuple[int, int], int]] = set()
        self._own_wait: tuple[int, int] | None = None
        self._rounds = 0

    @property
    def has_news(self) -> bool:
        """Whether there are probes to look at."""
        return bool(self._heard)

    def hear(self, data: bytes) -> None:
        """Keeps a probe until this rank waits itself; the newest of each rank."""
        probe = Probe.unpack(data)
        self._heard[probe.path[0].rank] = probe

    def begin(self, own: Waiter, tag: Tag) -> bytes:
        """A probe of this rank's own, for those it waits for.

        Args:
            own: its wait.
            tag: what it hasn't got from them.
        """
        self._rounds += 1
        return Probe(self._rounds, tag, (own,)).pack()

    def look(self, own: Waiter, tag: Tag) -> tuple[list[bytes], tuple[Waiter, ...]]:
        """Looks at the probes that have come, as this rank waits.

        Args:
            own: its wait.
            tag: what it hasn't got from those it waits for.

        Returns:
            What to send on to these; and a circle, if one was found.
        """
        if own.wait != self._own_wait:
            self._own_wait = own.wait
            self._passed_on.clear()
        onwards: list[bytes] = []
        for first in list(self._heard):
            probe = self._heard.pop(first)
            if self._has_sent(probe.tag):
                continue  # It is on its way: the other one isn't waiting for us.
            waits = [waiter.wait for waiter in probe.path]
            if own.wait in waits:
                return onwards, (*probe.path[waits.index(own.wait) + 1 :], own)
            key = (probe.path[0].wait, probe.round)
            data = Probe(probe.round, tag, (*probe.path, own)).pack()
            is_known = own.rank in (waiter.rank for waiter in probe.path)
            if not is_known and key not in self._passed_on and len(data) <= MAX_PAYLOAD_BYTES // 2:
                self._passed_on.add(key)
                onwards.append(data)
        return onwards, ()


def describe_waits(circle: Sequence[Waiter]) -> dict[str, str]:
    """In what each of them waits, by rank; once for those who wait together."""
    return {one.who: one.text for one in sorted(circle, key=lambda one: one.rank)}


def describe_deadlock(places: Mapping[str, str], *, waited_s: float | None = None) -> str:
    """What to tell of a circle.

    Args:
        places: in what ranks wait, by their names for people.
        waited_s: how long they have; None where it is certain that they would wait for ever.
    """
    first = "The ranks wait for each other in different operations, and none can go on:"
    if waited_s is not None:
        first = f"For {waited_s:.0f} s, ranks have waited for each other in different operations:"
    return "\n".join(
        [
            first,
            *(f"  {who}: {text}" for who, text in places.items()),
            "All ranks must call the same operations, equally often: batches, steps or branches "
            "that differ by rank are the usual reason.",
        ]
    )
