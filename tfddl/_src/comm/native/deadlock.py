"""Deadlocks: ranks that wait for each other in a cycle, so that none of them can go on.

A rank that has waited for some seconds sends a *probe* to each rank that it waits for. The probe
says in what the sender waits. A rank that receives one, waits itself, and hasn't sent what the
probe's sender waits for, knows that the sender's wait can't end before its own wait does, unless
another thread of its process resolves it. It appends itself to the probe's path and forwards the
probe to those that it waits for. A probe that returns to a wait on its path has found a cycle.

What a path says ("this wait can't end before that one") stays true however old the probe is. So no
consistent snapshot of all ranks is needed, and a rank that is merely late is never part of a cycle:
it doesn't wait, and appends nothing.

References:
    "Distributed Deadlock Detection", Chandy, Misra, Haas, 1983, https://doi.org/10.1145/357360.357365
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from tfddl._src.comm.native.messages import MAX_PAYLOAD_BYTES, Tag

PROBE_AFTER_S = 2.0
"""How long to wait in an operation before the first probe."""

_MAX_TEXT_CHARS = 600


class Waiter(NamedTuple):
    """A rank that waits in an operation."""

    rank: int
    """As the mesh numbers it."""

    number: int
    """Of the wait, among those of the rank."""

    who: str
    """It, and the ranks that are known to wait there too, for people: "ranks 0, 2..3"."""

    text: str
    """In what it waits, and in which line of the program, for people."""

    is_sole_caller: bool
    """Whether no other thread of its process could begin an operation meanwhile."""

    @property
    def wait(self) -> tuple[int, int]:
        """Identifies the wait among those of all ranks."""
        return self.rank, self.number


class Probe(NamedTuple):
    """What is forwarded from rank to rank."""

    round: int
    """How many probes its first rank has started before."""

    tag: Tag
    """What the last rank of the path waits for from whoever receives the probe."""

    excuse: Tag | None
    """Of messages, each of which is as good as the one waited for."""

    path: tuple[Waiter, ...]
    """Waits, each of which can't end before the next one does."""

    def pack(self) -> bytes:
        """Encodes the probe; long texts are cut."""
        path = [waiter._replace(text=waiter.text[:_MAX_TEXT_CHARS]) for waiter in self.path]
        return json.dumps([self.round, self.tag, self.excuse, path]).encode()

    @classmethod
    def unpack(cls, data: bytes) -> Probe:
        """Decodes what `pack` has made."""
        number, tag, excuse, path = json.loads(data)
        excused = None if excuse is None else Tag(*excuse)
        return cls(number, Tag(*tag), excused, tuple(Waiter(*waiter) for waiter in path))


class DeadlockDetector:
    """One rank's part in finding cycles. Only `receive` may be called by another thread."""

    def __init__(self, has_sent: Callable[[Tag], bool]) -> None:
        """Has received nothing yet.

        Args:
            has_sent: whether this rank has sent what belongs to a tag.
        """
        self._has_sent = has_sent
        # The newest probe of each rank.
        self._received: dict[int, Probe] = {}
        # First wait and round of what was forwarded during `_own_wait`.
        self._forwarded: set[tuple[tuple[int, int], int]] = set()
        self._own_wait: tuple[int, int] | None = None
        self._rounds = 0

    @property
    def has_probes(self) -> bool:
        """Whether there are probes to examine."""
        return bool(self._received)

    def receive(self, data: bytes) -> None:
        """Keeps a probe until this rank waits; a newer one of the same rank replaces it."""
        probe = Probe.unpack(data)
        self._received[probe.path[0].rank] = probe

    def start_probe(self, own: Waiter, tag: Tag, excuse: Tag | None = None) -> bytes:
        """A new probe, to be sent to all that this rank waits for.

        Args:
            own: this rank's wait.
            tag: what it waits for.
            excuse: of messages that end the wait as well: that their sender has joined.
        """
        self._rounds += 1
        return Probe(self._rounds, tag, excuse, (own,)).pack()

    def examine(
        self, own: Waiter, tag: Tag, excuse: Tag | None = None
    ) -> tuple[list[bytes], tuple[Waiter, ...]]:
        """Examines the probes that have been received, while this rank waits.

        Args:
            own: this rank's wait.
            tag: what it waits for.
            excuse: of messages that end the wait as well: that their sender has joined.

        Returns:
            Probes to forward to all that this rank waits for; and a cycle, empty if none was found.
        """
        if own.wait != self._own_wait:
            self._own_wait = own.wait
            self._forwarded.clear()
        forward: list[bytes] = []
        for first in list(self._received):
            probe = self._received.pop(first)
            if any(tag and self._has_sent(tag) for tag in (probe.tag, probe.excuse)):
                continue  # The message is on its way: the sender doesn't wait for this rank.
            # A wait is identified by rank and number, not by rank alone: a rank that has gone on,
            # and waits again, isn't the one that the path names.
            waits = [waiter.wait for waiter in probe.path]
            if own.wait in waits:
                return forward, (*probe.path[waits.index(own.wait) + 1 :], own)
            # Forwarded once: probes would multiply where several ranks wait for several others.
            key = (probe.path[0].wait, probe.round)
            data = Probe(probe.round, tag, excuse, (*probe.path, own)).pack()
            # A path that has this rank in an earlier wait is stale: that wait has ended.
            is_stale = own.rank in (waiter.rank for waiter in probe.path)
            if not is_stale and key not in self._forwarded and len(data) <= MAX_PAYLOAD_BYTES // 2:
                self._forwarded.add(key)
                forward.append(data)
        return forward, ()


def describe_waits(cycle: Sequence[Waiter]) -> dict[str, str]:
    """In what each rank waits, in rank order; ranks that wait together have one entry."""
    return {waiter.who: waiter.text for waiter in sorted(cycle, key=lambda one: one.rank)}


def describe_deadlock(waits: Mapping[str, str], *, waited_s: float | None = None) -> str:
    """The text of a `DeadlockError`.

    Args:
        waits: in what ranks wait, by their names for people.
        waited_s: for how long; None where it is certain that the waits can't end.
    """
    first = "The ranks wait for each other in different operations, and none can go on:"
    if waited_s is not None:
        first = f"For {waited_s:.0f} s, ranks have waited for each other in different operations:"
    return "\n".join(
        [
            first,
            *(f"  {who}: {text}" for who, text in waits.items()),
            "All ranks must call the same operations, equally often: batches, steps or branches "
            "that differ by rank are the usual reason.",
        ]
    )
