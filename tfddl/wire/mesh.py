"""Short messages between workers, found by what they belong to.

Every worker holds a link to every other. A message carries a *tag*: which operation it belongs
to, and which step of it. So operations may be under way in several threads, in an order of their
own on each worker. Whoever waits first reads for all: what arrives for another thread is put where
that one will find it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import struct
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from tfddl.errors import PeerLostError, StalledError, WireError
from tfddl.wire.links import ENDED, Link
from tfddl.wire.messages import LONGEST_PAYLOAD, Call, Message, Seat, Tag
from tfddl.wire.telling import rank_names
from tfddl.wire.waiting import Waiting

_HEADER = struct.Struct("<QIIQQ")
LONGEST_MESSAGE = _HEADER.size + LONGEST_PAYLOAD
"""Bytes that a link has to carry at once."""

_SPIN_S = 50e-6
_LOOK_S = 1.0
_LOG = logging.getLogger("tfddl")

_STALL = Tag(0, 0, 0)
"""What a worker waits for, told to those it waits for."""


class Closes(Protocol):
    """Something that is closed in the end."""

    def close(self) -> None:
        """Closes it."""


class Mesh:
    """The links of one worker to others, and the mail that has arrived."""

    def __init__(self, seat: Seat, links: Mapping[int, Link]) -> None:
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
        self._kept: list[Closes] = list(links.values())
        self._spin_s = _SPIN_S if seat.spins else 0.0
        self._mail: dict[Tag, dict[int, Message]] = {}
        self._told: dict[int, str] = {}
        self._waits: dict[Tag, Call] = {}
        self._lost: set[int] = set()
        self._changed = threading.Condition()
        self._is_read = False
        self._end = ""
        self._poll = select.poll()
        self._peer_of = {link.fileno(): peer for peer, link in self._links.items()}
        for link in self._links.values():
            self._poll.register(link, select.POLLIN)
        _close_in_children(self)

    def keep(self, closing: Iterable[Closes]) -> None:
        """Closes other things, too, when it is closed, and in children."""
        self._kept += closing

    def send(self, peers: Iterable[int], tag: Tag, message: Message) -> None:
        """Tells others something. One that has ended is noticed by who waits for it.

        Not here: what it said before it ended may still have to be read.
        """
        header = _HEADER.pack(*tag, message.digest, message.number)
        data = header + message.payload if message.payload else header
        for peer in peers:
            is_taken = self._is_sent(peer, data)
            if not is_taken or not self._links[peer].flush():
                self._send_slowly(peer, None if is_taken else data)

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
        waiting = Waiting(self.patience, begin)
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

    def end(self, text: str) -> None:
        """Lets whoever waits here raise `StalledError`, soon; any thread may call it.

        Args:
            text: what the error says.
        """
        self._end = text

    def refuse_end(self) -> None:
        """Raises what `end` has ordered; who waits calls it again and again."""
        if self._end:
            raise StalledError(self._end)

    def refuse_in_vain(self, peers: Sequence[int], call: Call) -> None:
        """For whoever waits elsewhere for others: looks whether that is in vain.

        Args:
            peers: for whom.
            call: in what.

        Raises:
            PeerLostError: one of them has ended.
            StalledError: as `end` has ordered.
        """
        self.refuse_end()
        with self._changed:
            self._refuse_lost(peers, call)
            reads = not self._is_read
            self._is_read = True
        if reads:
            self._read(0)

    def close(self) -> None:
        """Closes the links; the others notice."""
        for kept in self._kept:
            kept.close()

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
            if data == ENDED:
                self._lost.add(peer)
                with contextlib.suppress(KeyError):
                    self._poll.unregister(self._links[peer])
                continue
            name, occurrence, step, digest, number = _HEADER.unpack_from(data)
            tag, payload = Tag(name, occurrence, step), data[_HEADER.size :]
            if tag == _STALL:
                self._told[peer] = payload.decode(errors="replace")
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
            self.refuse_end()
            give_up_s = self.patience.give_up_s
            if give_up_s and time.monotonic() - begin > give_up_s:
                raise StalledError(f"rank {self.names[peer]} has read nothing for {give_up_s:g} s")

    def _is_sent(self, peer: int, data: bytes) -> bool:
        """Whether there was room for it, or nobody who would read it."""
        try:
            return self._links[peer].offer(data)
        except OSError as error:
            raise WireError(f"can't speak to rank {self.names[peer]}: {error.strerror}") from error

    def _refuse_lost(self, missing: Sequence[int], call: Call) -> None:
        lost = [peer for peer in missing if peer in self._lost]
        if lost:
            raise self.lost(lost, call)

    def lost(self, peers: Sequence[int], call: Call) -> PeerLostError:
        """What to raise where others have ended.

        Args:
            peers: who.
            call: what this worker waits in.
        """
        names = ", ".join(str(self.names[peer]) for peer in peers)
        loss = self._links[peers[0]].loss
        return PeerLostError(
            f"rank {self.names[self.rank]} waits in {call}, but rank {names} {loss}"
        )

    def _check(self, waiting: Waiting, missing: Sequence[int], call: Call) -> None:
        self.refuse_end()
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
        for peer in self._links:
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
