"""What workers say to each other, and how long they wait for it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tfddl.errors import CommunicationError

MAX_PAYLOAD_BYTES = 64 * 2**10
"""Bytes that travel within a message; more is moved by a carrier, after more words."""

_SHOWN = 3


class Tag(NamedTuple):
    """What a message belongs to."""

    name: int
    """The operation's name, stable_hash."""

    occurrence: int
    """How many operations of that name came before, as the workers of the set count them."""

    step: int
    """Which step of the operation."""


class Message(NamedTuple):
    """What one worker tells another."""

    digest: int
    """Of what has to be alike on all workers."""

    number: int
    """Bytes of the tensor, or whatever else the step needs."""

    payload: bytes


@dataclass(frozen=True)
class OpSignature:
    """What an operation is called, and what has to be alike about it on all workers.

    Attributes:
        name: calls of one name meet in their order, whatever happens under other names. "" is for
            those without a name: they meet in program order.
        text: a line that says which operation, then one for each tensor.
    """

    name: str
    text: str

    @functools.cached_property
    def digest(self) -> int:
        """64 bits that stand for the text."""
        return stable_hash(self.text)

    def __str__(self) -> str:
        kind, *tensors = self.text.split("\n")
        shown = [*tensors[:_SHOWN], "…"] if len(tensors) > _SHOWN else tensors
        return f"{kind} of {', '.join(shown)}" if shown else kind


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long to wait for the others.

    Attributes:
        warn_s: after how many seconds to log who is missing, and again each time; 0 is never.
        abort_s: after how many seconds to raise; 0 is never.
        deadlock_s: after how many seconds to raise where ranks wait for each other in different
            operations, which other threads of theirs could still come to; 0 is never. Where none
            could, they raise at once.
    """

    warn_s: float = 60.0
    abort_s: float = 600.0
    deadlock_s: float = 600.0

    @property
    def limit(self) -> str:
        """After how long an operation ends for which somebody doesn't come, for people."""
        if self.abort_s:
            return f"it ends with an error after {self.abort_s:g} s"
        return "no time is set after which it ends"


@dataclass(frozen=True, kw_only=True)
class PeerConfig:
    """Who sits where.

    Attributes:
        job: what tells the job and host of these workers from others.
        secret: what only the workers of this job know.
        rank: this worker's number among those that are connected, in [0, size): those of the host
            by memory, those of the job by TCP.
        size: how many these are.
        names: the ranks of these workers in the whole job, for messages; by default 0, 1, …
        timeout_s: how long to wait for the others to come.
        patience: how long to wait for them later.
        spins: whether to look for the first microseconds of a wait instead of sleeping at once.
    """

    job: str
    rank: int
    size: int
    names: Sequence[int] = ()
    secret: bytes = b""
    timeout_s: float = 60.0
    patience: Timeouts = field(default_factory=Timeouts)
    spins: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise CommunicationError(f"worker {self.rank} among {self.size}")


def stable_hash(text: str) -> int:
    """A number of 64 bits that is the same in all processes."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
