"""Short messages between workers, found by what they belong to.

Every worker holds a link to every other. A message carries a *tag*: which operation it belongs
to, and which step of it. So operations may be under way in several threads, in an order of their
own on each worker. Whoever waits first reads for all: what arrives for another thread is put where
that one will find it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import select
import socket
import struct
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from tfddl._src.comm.native import deadlock
from tfddl._src.comm.native.deadlock import DeadlockDetector, Waiter
from tfddl._src.comm.native.diagnostics import describe_fork, format_ranks
from tfddl._src.comm.native.message_socket import END_OF_MESSAGES, MessageSocket
from tfddl._src.comm.native.messages import (
    MAX_PAYLOAD_BYTES,
    Message,
    OpSignature,
    PeerConfig,
    Tag,
    Timeouts,
)
from tfddl._src.comm.native.stall_timer import StallTimer
from tfddl._src.comm.native.thread_stacks import find_user_line, is_sole_caller
from tfddl._src.rendezvous.endpoint import close_after_fork
from tfddl.errors import (
    CommunicationError,
    DeadlockError,
    PeerLostError,
    StalledError,
    TfddlError,
    UnsupportedError,
)

_HEADER = struct.Struct("<QIIQQ")
MAX_MESSAGE_BYTES = _HEADER.size + MAX_PAYLOAD_BYTES
"""Bytes that a link has to carry at once."""

_SPIN_S = 50e-6
_LOOK_S = 1.0
_LOG = logging.getLogger("tfddl")

_STALL = Tag(0, 0, 0)
"""What a worker waits for, told to those it waits for."""

_PROBE, _CIRCLE = Tag(0, 0, 1), Tag(0, 0, 2)
"""A probe of `deadlock`; and that a circle was found, told to all."""

_GOODBYE = Tag(0, 0, 3)
"""What comes last from a worker whose interpreter has come to its end."""

_SOON_S, _LATER_S = 30.0, 60.0
"""For how long only the lowest rank of those that wait in an operation sends probes, as long as it
may find a circle for all; and how often, at the least, they are sent again."""


class Closes(Protocol):
    """Something that is closed in the end."""

    def close(self) -> None:
        """Closes it."""


class _Wait:
    """A thread of this worker that waits for others."""

    def __init__(self, number: int, tag: Tag, call: OpSignature, patience: Timeouts) -> None:
        """Begins now.

        Args:
            number: tells it from others of this worker.
            tag: what hasn't come.
            call: what that belongs to.
            patience: how long to wait.
        """
        self.number, self.tag, self.call = number, tag, call
        self.thread = threading.get_ident()
        self.time = StallTimer(patience, time.monotonic())
        self.missing: Sequence[int] = ()
        self.is_lowest = True
        """Whether nobody of lower rank has come to the same."""
        self.is_in_circle = False
        """Whether it waits, by way of others, for itself."""
        self.probe_s = deadlock.PROBE_AFTER_S
        """After how many seconds to send probes, again."""


class Mesh:
    """The links of one worker to others, and the mail that has arrived."""

    def __init__(self, seat: PeerConfig, links: Mapping[int, MessageSocket]) -> None:
        """Takes over links.

        Args:
            seat: who this worker is.
            links: one to each other worker that it can speak to.
        """
        self.rank, self.size = seat.rank, seat.size
        self.names = tuple(seat.names) or tuple(range(seat.size))
        self.patience = seat.patience
        self.waited_s = 0.0
        self._links = dict(links)
        self._own: list[Closes] = list(links.values())
        self._kept: list[Closes] = []
        self._is_closed = False
        self._spin_s = _SPIN_S if seat.spins else 0.0
        self._mail: dict[Tag, dict[int, Message]] = {}
        self._told: dict[int, str] = {}
        self._goodbyes: dict[int, str] = {}
        self._waits: dict[Tag, _Wait] = {}
        self._numbers = itertools.count()
        self._is_shared = False
        """Whether threads have waited here at the same time, or may."""
        self._sent: dict[int, tuple[int, int]] = {}
        """Occurrence and step of what was sent last, for each name."""
        self._circles = DeadlockDetector(self._has_sent)
        self._lost: set[int] = set()
        self._changed = threading.Condition()
        self._is_read = False
        self._end: tuple[type[TfddlError], str] | None = None
        self._poll = select.poll()
        self._peer_of = {link.fileno(): peer for peer, link in self._links.items()}
        for link in self._links.values():
            self._poll.register(link, select.POLLIN)
        close_after_fork(self)

    def keep(self, closing: Iterable[Closes]) -> None:
        """Closes other things, too, when it is closed; but not in children."""
        self._kept += closing

    def keep_sockets(self, sockets: Mapping[int, socket.socket]) -> None:
        """Closes sockets to others, too, when it is closed, and in children."""
        self._own += sockets.values()

    def send(self, peers: Iterable[int], tag: Tag, message: Message) -> None:
        """Tells others something. One that has ended is noticed by who waits for it.

        Not here: what it said before it ended may still have to be read.
        """
        self._sent[tag.name] = max(self._sent.get(tag.name, (0, -1)), tag[1:])
        header = _HEADER.pack(*tag, message.digest, message.number)
        data = header + message.payload if message.payload else header
        for peer in peers:
            is_taken = self._is_sent(peer, data)
            if not is_taken or not self._links[peer].flush():
                self._send_slowly(peer, None if is_taken else data)

    def collect(self, tag: Tag, peers: Sequence[int], call: OpSignature) -> dict[int, Message]:
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
        wait = _Wait(next(self._numbers), tag, call, self.patience)
        self._waits[tag] = wait
        self._is_shared |= len(self._waits) > 1
        try:
            while True:
                with self._changed:
                    box = self._mail.get(tag, {})
                    wait.missing = missing = [peer for peer in peers if peer not in box]
                    wait.is_lowest = all(peer > self.rank for peer in box)
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
                self._check(wait)
        finally:
            del self._waits[tag]
            self.waited_s += time.monotonic() - wait.time.begin_s
        if wait.time.has_told:
            self._tell_waits()
        return found

    def end(self, text: str, kind: type[TfddlError] = StalledError) -> None:
        """Lets whoever waits here raise an error, soon; any thread may call it.

        Args:
            text: what the error says.
            kind: of the error.
        """
        self._end = self._end or (kind, text)

    def raise_if_aborted(self) -> None:
        """Raises what `end` has ordered; who waits calls it again and again."""
        if self._end is not None:
            kind, text = self._end
            raise kind(text)

    def raise_if_unreachable(self, peers: Sequence[int], call: OpSignature) -> None:
        """For whoever waits elsewhere for others: looks whether that is in vain.

        Args:
            peers: for whom.
            call: in what.

        Raises:
            PeerLostError: one of them has ended.
            StalledError: as `end` has ordered.
        """
        self.raise_if_aborted()
        with self._changed:
            self._refuse_lost(peers, call)
            reads = not self._is_read
            self._is_read = True
        if reads:
            self._read(0)

    def close(self) -> None:
        """Closes the links; the others notice."""
        self._is_closed = True
        for kept in [*self._own, *self._kept]:
            kept.close()

    def expect_concurrent_calls(self) -> None:
        """From now on never takes a wait for the only one of this worker: see `deadlock`."""
        self._is_shared = True

    def announce_exit(self, how: str) -> None:
        """Tells the others that this worker's interpreter is coming to its end.

        Nothing where its sockets are those of another process, or closed.

        Args:
            how: what to say of it to who waits for it: "has ended".
        """
        if not self._is_closed:
            self._tell(self._links, _GOODBYE, how.encode()[: MAX_PAYLOAD_BYTES // 2])

    def forget(self) -> None:
        """For a forked child: lets go of the sockets, and refuses everything.

        The child would keep them open after this process has ended.
        """
        self._is_closed = True
        self.end(describe_fork(self.names[self.rank]), UnsupportedError)
        for inherited in self._own:
            inherited.close()

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
        if peer not in self._lost:
            arrived += [(peer, message) for message in self._links[peer].receive()]

    def _deliver(self, arrived: list[tuple[int, bytes]]) -> None:
        for peer, data in arrived:
            if data == END_OF_MESSAGES:
                self._lost.add(peer)
                with contextlib.suppress(KeyError):
                    self._poll.unregister(self._links[peer])
                continue
            name, occurrence, step, digest, number = _HEADER.unpack_from(data)
            tag, payload = Tag(name, occurrence, step), data[_HEADER.size :]
            if tag == _STALL:
                self._told[peer] = payload.decode(errors="replace")
            elif tag == _GOODBYE:
                self._goodbyes[peer] = payload.decode(errors="replace")
            elif tag == _PROBE:
                self._circles.hear(payload)
            elif tag == _CIRCLE:
                self.end(payload.decode(errors="replace"), DeadlockError)
            else:
                self._mail.setdefault(tag, {})[peer] = Message(digest, number, payload)

    def _send_slowly(self, peer: int, data: bytes | None) -> None:
        """The other one's mailbox is full: it may be that it waits for us to read ours.

        Args:
            peer: who is to get it.
            data: what; None if it has been taken, and not all of it sent.
        """
        begin = time.monotonic()
        while peer not in self._lost:
            with self._changed:
                reads = not self._is_read
                self._is_read = True
            if reads:
                self._read(0.001)
            else:
                time.sleep(0.001)  # Another thread reads.
            if data is not None and self._is_sent(peer, data):
                data = None
            if data is None and self._links[peer].flush():
                return
            self.raise_if_aborted()
            abort_s = self.patience.abort_s
            if abort_s and time.monotonic() - begin > abort_s:
                raise StalledError(f"rank {self.names[peer]} has read nothing for {abort_s:g} s")

    def _is_sent(self, peer: int, data: bytes) -> bool:
        """Whether there was room for it, or nobody who would read it."""
        try:
            return self._links[peer].offer(data)
        except OSError as error:
            raise CommunicationError(
                f"can't speak to rank {self.names[peer]}: {error.strerror}"
            ) from error

    def _refuse_lost(self, missing: Sequence[int], call: OpSignature) -> None:
        lost = [peer for peer in missing if peer in self._lost]
        if lost:
            raise self.lost(lost, call)

    def lost(self, peers: Sequence[int], call: OpSignature) -> PeerLostError:
        """What to raise where others have ended.

        Args:
            peers: who.
            call: what this worker waits in.
        """
        names = ", ".join(str(self.names[peer]) for peer in peers)
        loss = self._goodbyes.get(peers[0], self._links[peers[0]].loss)
        return PeerLostError(
            f"rank {self.names[self.rank]} waits in {call}, but rank {names} {loss}"
        )

    def _check(self, wait: _Wait) -> None:
        self.raise_if_aborted()
        now = time.monotonic()
        waited_s = now - wait.time.begin_s
        if wait.time.is_time_to_tell(now):
            self._tell_waits()
        if wait is self._oldest_wait and waited_s >= deadlock.PROBE_AFTER_S:
            self._look_for_circles(wait, waited_s)
        if wait.time.is_time_to_warn(now):
            limit = self.patience.limit
            if wait.is_in_circle and self.patience.deadlock_s:
                limit = (
                    "they wait for each other, and unless another thread comes to it, "
                    f"it ends with an error after {self.patience.deadlock_s:g} s"
                )
            _LOG.warning("%s; %s", self._describe(wait, waited_s), limit)
        if wait.time.is_over(now):
            raise StalledError(self._describe(wait, waited_s))

    @property
    def _oldest_wait(self) -> _Wait:
        """Speaks for this worker where several threads wait."""
        return list(self._waits.values())[0]

    def _has_sent(self, tag: Tag) -> bool:
        """Whether this worker has sent what belongs to a tag; true where that isn't certain."""
        return self._sent.get(tag.name, (0, -1)) >= tag[1:]

    def _look_for_circles(self, wait: _Wait, waited_s: float) -> None:
        """Asks those that this worker waits for, and answers who waits for it; see `deadlock`.

        Raises:
            DeadlockError: it waits for itself, by way of others, and that can't end any more.
        """
        own = None
        if waited_s >= wait.probe_s:
            wait.probe_s = waited_s + min(waited_s, _LATER_S)
            if wait.is_lowest or waited_s >= _SOON_S:
                own = self._waiter(wait)
                self._tell(wait.missing, _PROBE, self._circles.begin(own, wait.tag))
        if not self._circles.has_news:
            return
        onwards, circle = self._circles.look(own or self._waiter(wait), wait.tag)
        for probe in onwards:
            self._tell(wait.missing, _PROBE, probe)
        if not circle:
            return
        wait.is_in_circle = True
        deadlock_s = self.patience.deadlock_s
        text = ""
        if all(waiter.is_sole_caller for waiter in circle):
            text = deadlock.describe_deadlock(deadlock.describe_waits(circle))
        elif deadlock_s and waited_s >= deadlock_s:
            text = deadlock.describe_deadlock(deadlock.describe_waits(circle), waited_s=waited_s)
        if text:
            self._tell(self._links, _CIRCLE, text.encode()[:MAX_PAYLOAD_BYTES])
            self.end(text, DeadlockError)
            self.raise_if_aborted()

    def _waiter(self, wait: _Wait) -> Waiter:
        """What to tell others of a wait of this worker."""
        here = [self.rank, *self._mail.get(wait.tag, {})]
        line = find_user_line(wait.thread)
        return Waiter(
            rank=self.rank,
            number=wait.number,
            who=format_ranks([self.names[peer] for peer in here]),
            text=f"{wait.call} ({line})" if line else str(wait.call),
            is_sole_caller=len(self._waits) == 1
            and not self._is_shared
            and is_sole_caller(wait.thread),
        )

    def _tell_waits(self) -> None:
        """Says to all others in what this worker waits now."""
        calls = [str(wait.call) for wait in list(self._waits.values())]
        said = " and in ".join(dict.fromkeys(calls)).encode()[: MAX_PAYLOAD_BYTES // 2]
        self._tell(self._links, _STALL, said)

    def _tell(self, peers: Iterable[int], tag: Tag, payload: bytes) -> None:
        """Tells others something beside all operations; one whose mailbox is full can wait."""
        for peer in peers:
            self._is_sent(peer, _HEADER.pack(*tag, 0, 0) + payload)

    def _describe(self, wait: _Wait, seconds: float) -> str:
        missing, call = wait.missing, wait.call
        told = dict(self._told)  # Another thread may read.
        others = [
            f"rank {self.names[peer]} waits in {told[peer]} itself"
            for peer in missing
            if told.get(peer)
        ]
        names = format_ranks([self.names[peer] for peer in missing])
        return "; ".join(
            [
                f"rank {self.names[self.rank]} has waited for {seconds:.0f} s in {call}: {names} "
                f"{'has' if len(missing) == 1 else 'have'}n't come to it",
                *others,
                "all ranks must call the same operations",
            ]
        )
