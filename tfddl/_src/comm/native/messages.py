"""Messages between workers: their format, what they belong to, and who exchanges them."""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tfddl.errors import CommunicationError

MAX_PAYLOAD_BYTES = 64 * 2**10
"""Tensors of up to so many bytes travel within a message. Larger ones are moved by a `Backend`,
which takes more messages: to agree on the order, and on each chunk."""

# Tag (name_hash, occurrence, step), digest, value: 32 bytes.
_HEADER = struct.Struct("<QIIQQ")
_OPERATION = struct.Struct("<QI")
MAX_MESSAGE_BYTES = _HEADER.size + MAX_PAYLOAD_BYTES
"""What a socket between workers has to carry at once."""

_MAX_TENSORS_SHOWN = 3


class Operation(NamedTuple):
    """Identifies an operation; the first two fields of its messages' tags."""

    name_hash: int
    occurrence: int


class Tag(NamedTuple):
    """Which operation, and which step of it, a message belongs to."""

    name_hash: int
    """64-bit hash of the operation's name and its ranks; 0 for control messages."""

    occurrence: int
    """How many operations of that name these ranks have begun before, modulo 2**32."""

    step: int
    """Which step of the operation, in 32 bits."""

    @property
    def operation(self) -> Operation:
        """Which operation."""
        return Operation(self.name_hash, self.occurrence)


LAST_FIRST_STEP = 2
"""The last step of an operation up to which not all workers need have begun it."""

CONTROL = 0
"""The hash in the tags of control messages, which belong to no operation. That a name hashes to it
has a chance of 2**-64."""

STALL_REPORT = Tag(CONTROL, 0, 0)
"""What the sender waits for; sent when it has waited for long."""

DEADLOCK_PROBE = Tag(CONTROL, 0, 1)
"""A probe of `deadlock`."""

DEADLOCK_FOUND = Tag(CONTROL, 0, 2)
"""A deadlock was found: all raise the error whose text is the payload."""

EXIT = Tag(CONTROL, 0, 3)
"""The sender's interpreter is exiting; the payload says how its script ended."""

GROUP_FAILED = Tag(CONTROL, 0, 4)
"""A rank was lost in the middle of an operation; the digest is the group's key, the value the rank,
as the mesh numbers them."""

PEER_LOST = Tag(CONTROL, 0, 5)
"""A rank has ended without a word; the value is the rank, as the mesh numbers them."""

BROADCAST = Tag(CONTROL, 0, 6)
"""A message to all, see `broadcasts`; the digest is the rank that it is of, the value its number
there, the payload the message."""

CONNECTED = Tag(CONTROL, 0, 7)
"""The first message on a connection that was made later: its maker has it, too."""

MAX_CONTROL_BYTES = MAX_PAYLOAD_BYTES - _HEADER.size
"""Of the payload of a control message, which is wrapped in another one where it is for all."""


class Group(NamedTuple):
    """The workers that an operation is of."""

    key: int
    """64-bit hash, the same on all of them."""

    others: Sequence[int]
    """All but this one, as the mesh numbers them."""


class Message(NamedTuple):
    """What one worker sends another within an operation."""

    digest: int
    """64-bit hash of what has to be alike on all workers; 0 if nothing."""

    value: int
    """A number, in 64 bits: the tensor's bytes, or what the step needs."""

    payload: bytes
    """At most `MAX_PAYLOAD_BYTES`."""


def pack_message(tag: Tag, message: Message) -> bytes:
    """The bytes to send; little-endian on all machines."""
    header = _HEADER.pack(*tag, message.digest, message.value)
    return header + message.payload if message.payload else header


def unpack_message(data: bytes) -> tuple[Tag, Message]:
    """Reverses `pack_message`."""
    name_hash, occurrence, step, digest, value = _HEADER.unpack_from(data)
    return Tag(name_hash, occurrence, step), Message(digest, value, data[_HEADER.size :])


def pack_operations(operations: Iterable[Operation]) -> bytes:
    """The bytes of a list of operations; of many, only as many as a message holds with a text."""
    packed = b"".join(_OPERATION.pack(*operation) for operation in operations)
    return packed[: MAX_PAYLOAD_BYTES // 2 // _OPERATION.size * _OPERATION.size]


def unpack_operations(data: bytes) -> set[Operation]:
    """Reverses `pack_operations`."""
    return {Operation(*fields) for fields in _OPERATION.iter_unpack(data)}


@dataclass(frozen=True)
class OpSignature:
    """An operation's name, and what has to be alike about it on all workers.

    Attributes:
        name: operations of one name are matched in their order, independently of other names.
            Operations without a name ("") are matched in program order.
        text: a line for the kind of operation, then one for each tensor (dtype and shape).
    """

    name: str
    text: str

    @functools.cached_property
    def digest(self) -> int:
        """64-bit hash of the text."""
        # Sent instead of the text, which may name hundreds of tensors. Different texts have one
        # digest with a chance of 2**-64.
        return stable_hash(self.text)

    def __str__(self) -> str:
        kind, *tensors = self.text.split("\n")
        shown = tensors[:_MAX_TENSORS_SHOWN]
        if len(tensors) > _MAX_TENSORS_SHOWN:
            shown.append("…")
        return f"{kind} of {', '.join(shown)}" if shown else kind


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long to wait for other workers within an operation.

    Attributes:
        warn_s: seconds after which to log which ranks are missing, and again each time; 0 is never.
        abort_s: seconds after which to raise `StalledError`; 0 is never.
        deadlock_s: seconds after which to raise `DeadlockError` where ranks wait for each other in
            different operations, and another thread of theirs could still resolve that; 0 is
            never. Where no thread could, the error is raised at once.
    """

    warn_s: float = 60.0
    abort_s: float = 600.0
    deadlock_s: float = 600.0

    @property
    def limit(self) -> str:
        """When a stalled operation is given up, as a clause for warnings."""
        if self.abort_s:
            return f"it ends with an error after {self.abort_s:g} s"
        return "no time is set after which it ends"


@dataclass(frozen=True, kw_only=True)
class PeerConfig:
    """Identity of this worker among those that it is connected to, and how it waits for them.

    Attributes:
        job: tells the workers of this job and host from others.
        secret: known to the workers of this job only; b"" where there is none.
        rank: this worker, in [0, size): the local rank for workers of one host, the rank in the
            job for workers of several.
        size: number of these workers.
        global_ranks: the rank in the job of each of these workers, for messages; 0, 1, … if empty.
        connect_timeout_s: seconds to wait for the others while connecting.
        timeouts: how long to wait for them in operations.
        spins: whether to poll sockets for some microseconds before sleeping. That is faster, but
            takes the core from another worker where workers share cores.

    Raises:
        CommunicationError: the rank is out of range.
    """

    job: str
    rank: int
    size: int
    global_ranks: Sequence[int] = ()
    secret: bytes = b""
    connect_timeout_s: float = 60.0
    timeouts: Timeouts = field(default_factory=Timeouts)
    spins: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise CommunicationError(
                f"rank is {self.rank} among {self.size} workers; it must be 0..{self.size - 1}"
            )


def stable_hash(text: str) -> int:
    """64-bit hash, the same in all processes (`hash` of a str is salted by process)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
