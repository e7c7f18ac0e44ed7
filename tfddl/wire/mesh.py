"""Short messages between the workers of a host, found by what they belong to.

Every worker holds a socket to every other. A message carries a *tag*: which operation it belongs
to, and which step of it. So operations may be under way in several threads, in an order of their
own on each worker. Whoever waits first reads for all: what arrives for another thread is put where
that one will find it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import select
import socket
import struct
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple

from tfddl.errors import PeerLostError, StalledError, WireError
from tfddl.wire.memory import PeerMemory, SharedMemory
from tfddl.wire.telling import rank_names

LONGEST_PAYLOAD = 32 * 2**10
"""Bytes that travel within a message; more goes through shared memory."""

_HEADER = struct.Struct("<QIIQQ")
_SPIN_S = 50e-6
_LOOK_S = 1.0
_SHOWN = 3
_LOG = logging.getLogger("tfddl")


class Tag(NamedTuple):
    """What a message belongs to."""

    name: int
    """The operation's name, hashed."""

    occurrence: int
    """How many operations of that name came before, as the workers of the set count them."""

    step: int
    """Which step of the operation."""


_STALL = Tag(0, 0, 0)
"""What a worker waits for, told to those it waits for."""


class Message(NamedTuple):
    """What one worker tells another."""

    digest: int
    """Of what has to be alike on all workers."""

    number: int
    """Bytes of the tensor, or whatever else the step needs."""

    payload: bytes


@dataclass(frozen=True)
class Call:
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
        return hashed(self.text)

    def __str__(self) -> str:
        kind, *tensors = self.text.split("\n")
        shown = [*tensors[:_SHOWN], "…"] if len(tensors) > _SHOWN else tensors
        return f"{kind} of {', '.join(shown)}" if shown else kind


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for the others.

    Attributes:
        warn_s: after how many seconds to log who is missing, and again each time; 0 is never.
        give_up_s: after how many seconds to raise; 0 is never.
    """

    warn_s: float = 60.0
    give_up_s: float = 600.0


@dataclass(frozen=True, kw_only=True)
class Seat:
    """Who sits where.

    Attributes:
        job: what only the workers of this job have in common.
        rank: this worker's number within the host, in [0, size).
        size: number of workers on the host.
        names: the ranks of these workers in the whole job, for messages; by default 0, 1, …
        timeout_s: how long to wait for the others to come.
        patience: how long to wait for them later.
        spins: whether to look for the first microseconds of a wait instead of sleeping at once.
    """

    job: str
    rank: int
    size: int
    names: Sequence[int] = ()
    timeout_s: float = 60.0
    patience: Patience = field(default_factory=Patience)
    spins: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise WireError(f"local rank {self.rank} among {self.size} workers")


def hashed(text: str) -> int:
    """A number of 64 bits that is the same in all processes."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class Mesh:
    """The sockets of one worker to all others of its host, and the mail that has arrived."""

    def __init__(
        self,
        seat: Seat,
        sockets: Mapping[int, socket.socket],
        memory: SharedMemory,
        peers: Mapping[int, PeerMemory],
    ) -> None:
        """Takes over connected sockets (SOCK_SEQPACKET).

        Args:
            seat: who this worker is.
            sockets: one to each other worker of the host.
            memory: what this worker shows the others.
            peers: what each other one shows.
        """
        self.rank, self.size = seat.rank, seat.size
        self.names = tuple(seat.names) or tuple(range(seat.size))
        self.memory = memory
        self.peers = dict(peers)
        self.waited_s = 0.0
        self._sockets = dict(sockets)
        self._patience = seat.patience
        self._spin_s = _SPIN_S if seat.spins else 0.0
        self._mail: dict[Tag, dict[int, Message]] = {}
        self._told: dict[int, str] = {}
        self._waits: dict[Tag, Call] = {}
        self._lost: set[int] = set()
        self._changed = threading.Condition()
        self._is_read = False
        self._buffer = bytearray(_HEADER.size + LONGEST_PAYLOAD)
        self._poll = select.poll()
        self._peer_of = {s.fileno(): peer for peer, s in self._sockets.items()}
        for connected in self._sockets.values():
            connected.setblocking(False)
            self._poll.register(connected, select.POLLIN)
        _close_in_children(self)

    def send(self, peers: Iterable[int], tag: Tag, message: Message) -> None:
        """Tells others something. One that has ended is noticed by who waits for it.

        Not here: what it said before it ended may still have to be read.
        """
        header = _HEADER.pack(*tag, message.digest, message.number)
        data = header + message.payload if message.payload else header
        for peer in peers:
            if not self._is_sent(peer, data):
                self._send_slowly(peer, data)

    def collect(self, tag: Tag, peers: Sequence[int], call: Call) -> dict[int, Message]:
        """Waits for the messages of others.

        Args:
            tag: what they belong to; nobody else waits for it.
            peers: who sends one.
            call: what they belong to, for people.

        Returns:
            The message of each.

        Raises:
            PeerLostError: one of them has ended without it.
            StalledError: they haven't all come in time.
        """
        begin = time.monotonic()
        waiting = _Waiting(self._patience, begin)
        self._waits[tag] = call
        try:
            while True:
                with self._changed:
                    box = self._mail.get(tag, {})
                    missing = [peer for peer in peers if peer not in box]
                    if not missing:
                        found = self._mail.pop(tag, {})
                        break
                    self._refuse_lost(missing, call)
                    reads = not self._is_read
                    if reads:
                        self._is_read = True
                    else:
                        self._changed.wait(_LOOK_S)
                if reads:
                    self._read(_LOOK_S)
                self._check(waiting, missing, call)
        finally:
            del self._waits[tag]
            self.waited_s += time.monotonic() - begin
        if waiting.has_told:
            self._tell_waits()
        return found

    def close(self) -> None:
        """Closes the sockets; the others notice."""
        for connected in self._sockets.values():
            connected.close()

    def __enter__(self) -> Mesh:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self, timeout_s: float) -> None:
        """Takes what has arrived, or waits for something; the caller has set `_is_read`."""
        arrived: list[tuple[int, bytes]] = []
        try:
            end = time.perf_counter() + self._spin_s
            while not arrived and self._spin_s:
                for peer in self._peer_of.values():
                    self._receive(peer, arrived)
                if time.perf_counter() > end:
                    break
            if not arrived:
                for number, _ in self._poll.poll(timeout_s * 1000):
                    self._receive(self._peer_of[number], arrived)
        finally:
            with self._changed:
                self._is_read = False
                self._deliver(arrived)
                self._changed.notify_all()

    def _receive(self, peer: int, arrived: list[tuple[int, bytes]]) -> None:
        if peer in self._lost:
            return
        try:
            count = self._sockets[peer].recv_into(self._buffer)
        except (BlockingIOError, ConnectionResetError):
            # Reset: it has ended without reading all of ours. What it said comes next, then an end.
            return
        except OSError:
            count = 0
        arrived.append((peer, bytes(memoryview(self._buffer)[:count])))

    def _deliver(self, arrived: list[tuple[int, bytes]]) -> None:
        for peer, data in arrived:
            if not data:
                self._lost.add(peer)
                with contextlib.suppress(KeyError):
                    self._poll.unregister(self._sockets[peer])
                continue
            name, occurrence, step, digest, number = _HEADER.unpack_from(data)
            tag, payload = Tag(name, occurrence, step), data[_HEADER.size :]
            if tag == _STALL:
                self._told[peer] = payload.decode(errors="replace")
            else:
                self._mail.setdefault(tag, {})[peer] = Message(digest, number, payload)

    def _send_slowly(self, peer: int, data: bytes) -> None:
        """The other one's mailbox is full: it may be that it waits for us to read ours."""
        begin = time.monotonic()
        while peer not in self._lost:
            with self._changed:
                reads = not self._is_read
                self._is_read = True
            if reads:
                self._read(0.001)
            else:
                time.sleep(0.001)  # Another thread reads.
            if self._is_sent(peer, data):
                return
            give_up_s = self._patience.give_up_s
            if give_up_s and time.monotonic() - begin > give_up_s:
                raise StalledError(f"rank {self.names[peer]} has read nothing for {give_up_s:g} s")

    def _is_sent(self, peer: int, data: bytes) -> bool:
        """Whether there was room for it, or nobody who would read it."""
        try:
            self._sockets[peer].send(data)
        except BlockingIOError:
            return False
        except ConnectionError:
            return True
        except OSError as error:
            raise WireError(f"can't speak to rank {self.names[peer]}: {error.strerror}") from error
        return True

    def _refuse_lost(self, missing: Sequence[int], call: Call) -> None:
        lost = [self.names[peer] for peer in missing if peer in self._lost]
        if lost:
            raise PeerLostError(
                f"rank {self.names[self.rank]} waits in {call}, but rank "
                f"{', '.join(map(str, lost))} has ended; its log says why"
            )

    def _check(self, waiting: _Waiting, missing: Sequence[int], call: Call) -> None:
        now = time.monotonic()
        if waiting.is_time_to_tell(now):
            self._tell_waits()
        if waiting.is_time_to_warn(now):
            _LOG.warning("%s", self._describe(missing, call, now - waiting.begin_s))
        if waiting.is_over(now):
            raise StalledError(self._describe(missing, call, now - waiting.begin_s))

    def _tell_waits(self) -> None:
        """Says to all others in what this worker waits now; one whose mailbox is full can wait."""
        calls = [str(call) for call in list(self._waits.values())]
        said = " and in ".join(dict.fromkeys(calls)).encode()[: LONGEST_PAYLOAD // 2]
        for peer in self._sockets:
            self._is_sent(peer, _HEADER.pack(*_STALL, 0, 0) + said)

    def _describe(self, missing: Sequence[int], call: Call, seconds: float) -> str:
        told = dict(self._told)  # Another thread may read.
        others = [
            f"rank {self.names[peer]} waits in {told[peer]} itself"
            for peer in missing
            if told.get(peer)
        ]
        names = rank_names([self.names[peer] for peer in missing])
        return "; ".join(
            [
                f"rank {self.names[self.rank]} has waited for {seconds:.0f} s in {call}: {names} "
                f"{'has' if len(missing) == 1 else 'have'}n't come to it",
                *others,
                "all ranks must call the same operations",
            ]
        )


def _close_in_children(mesh: Mesh) -> None:
    """A forked child would keep the sockets open after this process has ended."""
    reference = weakref.ref(mesh)

    def close() -> None:
        inherited = reference()
        if inherited is not None:
            inherited.close()

    os.register_at_fork(after_in_child=close)


class _Waiting:
    """When to speak of a wait, and when to end it."""

    def __init__(self, patience: Patience, begin_s: float) -> None:
        self.begin_s = begin_s
        self._patience = patience
        self.has_told = False
        # Told first, so that all know of each other when they warn.
        self._tell_s = begin_s + 0.9 * min(
            (s for s in (patience.warn_s, patience.give_up_s) if s > 0), default=float("inf")
        )
        self._warn_s = begin_s + (patience.warn_s or float("inf"))
        self._end_s = begin_s + (patience.give_up_s or float("inf"))

    def is_time_to_tell(self, now_s: float) -> bool:
        if self.has_told or now_s < self._tell_s:
            return False
        self.has_told = True
        return True

    def is_time_to_warn(self, now_s: float) -> bool:
        if now_s < self._warn_s:
            return False
        self._warn_s = now_s + self._patience.warn_s
        return True

    def is_over(self, now_s: float) -> bool:
        return now_s >= self._end_s
