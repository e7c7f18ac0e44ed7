"""Short messages between workers, matched by tag.

A worker is connected to those that it mostly exchanges messages with (`tree.neighbours`) from the
start, and to others once it has something to send to them. Each message carries a *tag*: which
operation it belongs to, and which step of it. So operations may be under way in several threads, in
another order on each worker. The first thread that waits receives for all, and puts messages for
the others into the mailbox where they find them.

What all have to know, such as the end of a worker, goes from neighbour to neighbour (`broadcasts`).
Where more than a few workers are connected in this way, a thread of its own receives while no other
one does, so that a worker that computes keeps nobody from hearing it.
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from tfddl._src.comm.native.broadcasts import Broadcasts
from tfddl._src.comm.native.diagnostics import describe_fork
from tfddl._src.comm.native.lost_peers import LostPeers
from tfddl._src.comm.native.message_socket import END_OF_MESSAGES, MessageSocket
from tfddl._src.comm.native.messages import (
    BROADCAST,
    CONTROL,
    DEADLOCK_FOUND,
    DEADLOCK_PROBE,
    EXIT,
    GROUP_FAILED,
    MAX_CONTROL_BYTES,
    PEER_LOST,
    STALL_REPORT,
    Group,
    Message,
    OpSignature,
    PeerConfig,
    Tag,
    pack_message,
    unpack_message,
    unpack_operations,
)
from tfddl._src.comm.native.peer_dialer import Dial, PeerDialer, PeerEndedError
from tfddl._src.comm.native.peer_sockets import PeerSockets
from tfddl._src.comm.native.tree import MAX_DIRECT_SIZE
from tfddl._src.comm.native.wait_tracker import Wait, WaitTracker
from tfddl._src.rendezvous.endpoint import close_after_fork
from tfddl._src.wait_timer import WaitTimer
from tfddl.errors import (
    CommunicationError,
    DeadlockError,
    PeerLostError,
    StalledError,
    TfddlError,
    UnsupportedError,
)

# How often a thread that waits looks whether it should go on.
_POLL_S = 1.0

# How often a thread looks for messages before it is known to wait: for those of a few others.
_LOOKS = 4

# How often a thread looks whether there is space again for its message.
_FULL_POLL_S = 0.001

# How often the thread of its own looks whether no other thread has received, and what it takes then
# at most.
_IDLE_S = 0.25
_MAX_IDLE_RECEIVES = 200

# For how long a thread that waits for a peer's message tries to connect to it.
_TRY_S = 2.0

# For how long to wait at the end until what was sent has arrived.
_DELIVERY_S = 2.0

# For how long to wait for the news why a peer has ended a connection. It sends them before.
_REASON_S = 2.0


class Closable(Protocol):
    """What has to be closed."""

    def close(self) -> None:
        """Releases its descriptors."""


class Mesh:
    """The sockets of one worker to others, and the messages that have arrived.

    Attributes:
        rank: this worker, in [0, size).
        size: number of workers.
        global_ranks: the rank in the job of each worker, for messages.
        timeouts: how long to wait for others.
        waited_s: seconds that threads of this worker have waited for others, in all.
    """

    def __init__(
        self,
        config: PeerConfig,
        sockets: Mapping[int, MessageSocket],
        dial: Dial | None = None,
        reach: Callable[[int], str] = lambda _: "",
    ) -> None:
        """Takes over sockets.

        Args:
            config: this worker.
            sockets: to its neighbours.
            dial: connects to others; None if they can't be.
            reach: makes sure within seconds that a peer's host answers; returns "", or what has
                become of the peer, as errors say it after "rank 3".
        """
        self.rank, self.size = config.rank, config.size
        self.global_ranks = tuple(config.global_ranks) or tuple(range(config.size))
        self.timeouts = config.timeouts
        self.waited_s = 0.0
        self._sockets = PeerSockets(sockets, spins=config.spins)
        self._reach = reach
        self._broadcasts = Broadcasts(self.rank, sockets)
        # What a forked child has to close, too.
        self._inherited: list[Closable] = [self._sockets]
        self._owned: list[Closable] = []
        self._is_closed = False
        self._mailbox: dict[Tag, dict[int, Message]] = {}
        self._lost_peers = LostPeers(
            self.rank, self.global_ranks, self._sockets, tell=self._broadcast
        )
        self._dialer = PeerDialer(
            dial, self._sockets, self._lost_peers, check=self._check_open, lose=self._lose
        )
        self._stalls = WaitTracker(
            self.rank, self.global_ranks, self.timeouts, tell=self._tell, arrived=self.arrived
        )
        # Guards the mailbox, lost peers and `_is_receiving`; notified when any has changed.
        self._changed = threading.Condition()
        # Whether a thread receives, for all.
        self._is_receiving = False
        self._abort: tuple[type[TfddlError], str] | None = None
        self._num_receives = 0
        self._closing = threading.Event()
        # Few are connected directly, each with each other: nobody has anything to pass on.
        self._receiver = threading.Thread(
            target=self._receive_while_idle, name="tfddl-receiver", daemon=True
        )
        self._passes_on = self.size > MAX_DIRECT_SIZE
        if self._passes_on:
            self._receiver.start()
        close_after_fork(self)

    def close_with(self, owned: Iterable[Closable]) -> None:
        """Closes other things, too, when it is closed; a forked child doesn't close them."""
        self._owned += owned

    @property
    def num_connections(self) -> int:
        """Sockets to others, for messages."""
        return self._sockets.num_open

    def add_socket(self, peer: int, connected: MessageSocket) -> None:
        """Takes over a connection that a peer has made; for any thread."""
        self._sockets.add(peer, connected, is_accepted=True)

    def add_neighbours(self, peers: Iterable[int]) -> None:
        """Passes what all have to know on to these, too, once it is connected to them."""
        with self._changed:
            self._broadcasts.relays = {**self._broadcasts.relays, **dict.fromkeys(peers)}

    def connect_to(self, peers: Iterable[int]) -> None:
        """Connects to peers of which nothing comes, so that their ends are noticed.

        Does nothing about those that don't answer: they may be stopped.
        """
        for peer in peers:
            self._dialer.connect(peer, _TRY_S)

    def adopt_sockets(self, sockets: Mapping[int, socket.socket]) -> None:
        """Closes these sockets, too, when it is closed, and in forked children."""
        self._inherited += sockets.values()

    def send(self, peers: Iterable[int], tag: Tag, message: Message) -> None:
        """Sends a message to each of some peers; may wait for space, while receiving.

        A peer that has ended is no error here, but where a message of it is waited for: what it
        sent before its end may be still unread.

        Raises:
            StalledError: a peer doesn't read, or the mesh was aborted.
            CommunicationError: the system can't send.
        """
        self._stalls.note_sent(tag)
        data = pack_message(tag, message)
        for peer in peers:
            connected = self._sockets.by_peer.get(peer) or self._connect_to_send(peer)
            if connected is None:
                continue
            is_taken = self._offer(peer, data)
            if not is_taken or not connected.flush():
                self._send_when_possible(peer, None if is_taken else data)

    def collect(  # noqa: PLR0913 - what for, of whom, and how long
        self,
        tag: Tag,
        peers: Sequence[int],
        signature: OpSignature,
        *,
        group: Group | None = None,
        excuse: Tag | None = None,
        is_timed: bool = True,
    ) -> dict[int, Message]:
        """Waits for a message of each of some peers.

        Args:
            tag: of the messages; one thread at a time may wait for it.
            peers: who sends one.
            signature: of the operation, for errors.
            group: whom the operation is of; by default of the peers.
            excuse: of messages, which stay in the mailbox: whoever has sent one isn't waited for,
                unless its payload names this operation (`pack_operations`).
            is_timed: whether a long wait is reported, and given up.

        Returns:
            The messages by peer, in the order in which they arrived.

        Raises:
            PeerLostError: one of the peers has ended without sending it; or another rank of the
                group has ended, as one that has waited for it has told.
            StalledError: not all have arrived in time.
            DeadlockError: they can't arrive.
        """
        began_s = time.perf_counter()
        soon = self._collect_soon(tag, peers)
        self.waited_s += time.perf_counter() - began_s
        if soon is not None:
            return soon
        wait = self._stalls.begin(tag, signature, group, excuse=excuse, is_timed=is_timed)
        try:
            messages = self._wait_for_messages(wait, peers, excuse)
        finally:
            self.waited_s += wait.timer.elapsed_s
            self._stalls.end(wait)
        if wait.has_told:
            self._stalls.report()  # That this worker no longer waits in it.
        return messages

    def _collect_soon(self, tag: Tag, peers: Sequence[int]) -> dict[int, Message] | None:
        """The messages of `collect` where they are there, or come while this thread looks for them.

        Most do in small steps: then nobody has to be told that this worker waits.
        """
        for _ in range(_LOOKS):
            with self._changed:
                arrived = self._mailbox.get(tag)
                if arrived is not None and all(peer in arrived for peer in peers):
                    return self._mailbox.pop(tag)
                if self._is_receiving:
                    return None
                self._is_receiving = True
            has_arrived = self._receive(0)
            self.raise_if_aborted()
            if not has_arrived:
                return None
        return None

    def _wait_for_messages(
        self, wait: Wait, peers: Sequence[int], excuse: Tag | None
    ) -> dict[int, Message]:
        while True:
            with self._changed:
                arrived = self._mailbox.get(wait.tag, {})
                silent = [peer for peer in peers if peer not in arrived]
                missing = silent
                if excuse in self._mailbox:
                    excused = self._excused(excuse, wait.tag)
                    missing = [peer for peer in silent if peer not in excused]
                wait.missing = missing
                if missing and wait.group is not None:
                    self._lost_peers.raise_if_failed(wait.group, wait.signature)
                if silent:  # Who is excused has to be alive nevertheless.
                    self._raise_if_lost(silent, wait.signature, wait.group)
                if missing and wait.group is not None:
                    self._lost_peers.raise_if_killed(wait, wait.group)
                if not missing:
                    return self._mailbox.pop(wait.tag, {})
                # One thread at a time may receive from a socket; it does so for all threads.
                receives = not self._is_receiving
                if receives:
                    self._is_receiving = True
                else:
                    # Not for ever: this thread has an abort, and its own stall, to notice.
                    self._changed.wait(_POLL_S)
            has_arrived = receives and self._receive(_POLL_S)
            self.raise_if_aborted()
            # To check costs about as much as to receive a message.
            if not has_arrived or wait.timer.elapsed_s >= wait.check_s:
                wait.check_s = wait.timer.elapsed_s + _POLL_S
                self._check_missing(wait)
                self._check_stall(wait)

    def _check_missing(self, wait: Wait) -> None:
        """Finds out whether those are still there of which nothing comes."""
        waited_s = wait.timer.elapsed_s
        # Not too often: they may be stopped, or compute for long.
        if waited_s >= wait.connect_s:
            wait.connect_s = 2 * waited_s
            self.connect_to(wait.missing)
        if waited_s < wait.reach_s:
            return
        wait.reach_s = 2 * waited_s
        for peer in wait.missing:
            connected = self._sockets.by_peer.get(peer)
            if connected is not None and connected.is_unacknowledged:
                loss = self._reach(peer)
                if loss:
                    self._lose(peer, loss)
                    return

    def _lose(self, peer: int, loss: str) -> None:
        """Notes that a peer has ended though its connection hasn't; and what has become of it."""
        if self._is_closed:
            return
        if not loss:
            self._await_reason(peer)
        with self._changed:
            self._sockets.mark_lost(peer, loss)
            self._lost_peers.note_end(peer, tells=self._passes_on)
            self._changed.notify_all()

    def has_arrived(self, tag: Tag) -> bool:
        """Whether any message of a tag is in the mailbox."""
        return tag in self._mailbox

    def excused(self, excuse: Tag, tag: Tag) -> Collection[int]:
        """The peers that have sent an excuse from the operation of a tag; see `collect`."""
        with self._changed:
            return self._excused(excuse, tag)

    def _excused(self, excuse: Tag, tag: Tag) -> Collection[int]:
        """The caller holds `_changed`."""
        messages = self._mailbox.get(excuse, {})
        return [p for p, m in messages.items() if tag.operation not in unpack_operations(m.payload)]

    def arrived(self, tag: Tag) -> Collection[int]:
        """The peers whose messages of a tag are in the mailbox, in the order of their arrival."""
        # Without the lock: copying a dict's keys is atomic under CPython's GIL.
        return list(self._mailbox.get(tag, ()))

    def discard(self, tag: Tag) -> bool:
        """Forgets messages that nobody will collect. Returns whether there were any."""
        with self._changed:
            return bool(self._mailbox.pop(tag, None))

    def abort(self, text: str, kind: type[TfddlError] = StalledError) -> None:
        """Makes all threads that wait here raise an error within a second; for any thread.

        Args:
            text: of the error.
            kind: of the error.
        """
        # The first reason counts: others follow from it.
        self._abort = self._abort or (kind, text)

    @property
    def is_broken(self) -> bool:
        """Whether operations can't go on: a worker has ended."""
        return self._lost_peers.any_ended

    def raise_if_aborted(self) -> None:
        """Raises the error given to `abort`. Threads that wait elsewhere for peers call it, too."""
        if self._abort is not None:
            kind, text = self._abort
            raise kind(text)

    def raise_if_unreachable(
        self, peers: Sequence[int], signature: OpSignature, group: Group | None = None
    ) -> None:
        """For threads that wait elsewhere for peers: checks whether that can still end.

        Args:
            peers: for whom.
            signature: in which operation.
            group: whom it is of; by default of the peers.

        Raises:
            PeerLostError: one of them has ended; or see `collect`.
            StalledError: the mesh was aborted; or another error given to `abort`.
        """
        self.raise_if_aborted()
        with self._changed:
            if group is not None:
                self._lost_peers.raise_if_failed(group, signature)
            self._raise_if_lost(peers, signature, group)
            receives = not self._is_receiving
            self._is_receiving = True
        if receives:
            self._receive(0)

    def close(self) -> None:
        """Closes the sockets. Peers that wait for this worker raise `PeerLostError`."""
        self._await_delivery()
        self._is_closed = True
        self._closing.set()
        if self._receiver.is_alive():
            # With a limit: a signal's handler may close, in a thread that holds the lock.
            self._receiver.join(_TRY_S)
        for one in [*self._inherited, *self._owned]:
            one.close()

    def expect_concurrent_calls(self) -> None:
        """Never again assumes that a wait is the only thing this worker could be doing.

        Then deadlocks are found only after `Timeouts.deadlock_s`. For operations in threads that
        nobody sees, as those of `tf.data`.
        """
        self._stalls.expect_concurrent_calls()

    def announce_exit(self, how: str) -> None:
        """Tells the others that the interpreter of this worker is exiting.

        Does nothing after `close`, and in forked children, whose sockets are their parent's.

        Args:
            how: what errors of those that wait for it say after "rank 3": "has ended".
        """
        if not self._is_closed:
            # Not by way of others to those that are connected: they must know it before the end.
            self._broadcast(EXIT, Message(0, 0, how.encode()[:MAX_CONTROL_BYTES]), to_all=True)
            self._await_delivery()

    def _await_delivery(self) -> None:
        """Waits for a moment until what was sent is at the other hosts."""
        # TCP drops what isn't, where the other end sends something to a socket that is closed, or
        # something that it has sent is unread (RFC 2525, 2.17): such as a control message.
        timer = WaitTimer(abort_s=_DELIVERY_S)
        for peer, connected in list(self._sockets.by_peer.items()):
            while peer not in self._sockets.lost and connected.is_unacknowledged:
                if timer.is_expired():
                    return
                time.sleep(_FULL_POLL_S)

    def close_in_child(self) -> None:
        """In a forked child: closes the sockets, and makes every operation raise.

        With a copy of a socket in a child, peers wouldn't notice that this process has ended.
        """
        self._is_closed = True
        self.abort(describe_fork(self.global_ranks[self.rank]), UnsupportedError)
        for inherited in self._inherited:
            inherited.close()

    def stream_lost_error(
        self, peer: int, signature: OpSignature, group: Group | None
    ) -> PeerLostError:
        """The error to raise where a peer has ended a connection of its own kind.

        It has ended itself, or has given up since another one has; waits a moment to hear which.
        """
        timer = WaitTimer(abort_s=_REASON_S)
        while not timer.is_expired():
            try:
                self.raise_if_unreachable([peer], signature, group)
            except PeerLostError as error:
                return error
            if self._lost_peers.knows_why(peer, group):
                break
            time.sleep(_FULL_POLL_S)
        lost = [peer] if group is None else self._lost_peers.cause([peer], group)
        return self._lost_peers.error(lost, signature, group)

    def _check_stall(self, wait: Wait) -> None:
        try:
            self._stalls.check(wait)
        except DeadlockError as error:
            self.abort(str(error), DeadlockError)  # For the other threads of this worker.
            raise

    def _receive(self, timeout_s: float) -> bool:
        """Receives for all threads; the caller has set `_is_receiving`, or holds `_changed`.

        Returns:
            Whether anything has arrived.
        """
        arrived: list[tuple[int, bytes]] = []
        self._num_receives += 1
        try:
            self._sockets.receive_into(arrived, timeout_s)
        finally:
            with self._changed:
                self._is_receiving = False
                # In a `finally`: what was taken from the sockets has to be delivered even where a
                # signal's handler raises.
                for peer, data in arrived:
                    self._deliver(peer, data)
                self._changed.notify_all()
        return bool(arrived)

    def _receive_while_idle(self) -> None:
        """Receives where no other thread has lately; what is for others stays in the mailbox."""
        seen = 0
        while not self._closing.wait(_IDLE_S):
            if seen == self._num_receives:
                try:
                    self._receive_waiting()
                except ValueError:  # What it polls is closed.
                    if not self._is_closed:
                        raise
            seen = self._num_receives

    def _receive_waiting(self) -> None:
        """Receives what there is, unless another thread receives."""
        for _ in range(_MAX_IDLE_RECEIVES):
            with self._changed:
                if self._is_receiving:
                    return
                self._is_receiving = True
            if not self._receive(0):
                return

    def _deliver(self, peer: int, data: bytes) -> None:
        """The caller holds `_changed`."""
        if data == END_OF_MESSAGES:
            # After all that the peer has sent: sockets keep the order.
            self._sockets.mark_lost(peer)
            if not self._is_closed:  # Else this worker has ended the connection.
                self._lost_peers.note_end(peer, tells=self._passes_on)
            return
        tag, message = unpack_message(data)
        if tag == BROADCAST:
            heard = self._broadcasts.receive(message)
            if heard is None:
                return
            # Before anything comes of it here: this worker may end of it.
            if self._passes_on:
                self._pass_on(data, self._broadcasts.relays, unless=(peer, heard.origin))
            peer, tag, message = heard
        if tag.name_hash == CONTROL:
            self._deliver_control(peer, tag, message)
        else:
            # It stays until this worker is in the operation, too. That is bounded: a peer gets no
            # further ahead than a message or two, since each step waits for those of all.
            self._mailbox.setdefault(tag, {})[peer] = message

    def _deliver_control(self, peer: int, tag: Tag, message: Message) -> None:
        if tag == STALL_REPORT:
            self._stalls.receive_report(peer, message.payload)
        elif tag == EXIT:
            self._lost_peers.note_exit(peer, message.payload.decode(errors="replace"))
        elif tag == DEADLOCK_PROBE:
            self._stalls.receive_probe(message.payload)
        elif tag == GROUP_FAILED:
            self._lost_peers.note_failed(peer, message.digest, message.value)
        elif tag == PEER_LOST:
            self._lost_peers.note_killed(message.value)
        elif tag == DEADLOCK_FOUND:
            self.abort(message.payload.decode(errors="replace"), DeadlockError)
        # Of `CONNECTED` nothing comes here.

    def _connect_to_send(self, peer: int) -> MessageSocket | None:
        """Connects to a peer; None if it has ended."""
        abort_s = self.timeouts.abort_s
        connected = self._dialer.connect(peer, abort_s or math.inf)
        if connected is None and not self._lost_peers.is_lost(peer) and not self._is_closed:
            raise StalledError(
                f"rank {self.global_ranks[peer]} has accepted no connection of rank "
                f"{self.global_ranks[self.rank]} for {abort_s:g} s"
            )
        return connected

    def _check_open(self) -> None:
        """Raises where this worker is to connect to nobody any more."""
        self.raise_if_aborted()
        if self._is_closed:
            raise PeerEndedError

    def _await_reason(self, peer: int) -> None:
        """Receives for a moment: what a peer that has ended said of it may be on its way."""
        timer = WaitTimer(abort_s=_REASON_S)
        while not timer.is_expired() and not self._lost_peers.knows_why(peer, None):
            with self._changed:
                receives = not self._is_receiving
                self._is_receiving = True
            if receives:
                self._receive(_FULL_POLL_S)
            else:
                time.sleep(_FULL_POLL_S)

    def _send_when_possible(self, peer: int, data: bytes | None) -> None:
        """Receives until a peer's queue has space: it may itself wait until we read ours.

        Args:
            peer: who is to get it.
            data: the message; None if the socket has taken it and not sent all of it.
        """
        timer = WaitTimer(abort_s=self.timeouts.abort_s)
        while peer not in self._sockets.lost:
            with self._changed:
                receives = not self._is_receiving
                self._is_receiving = True
            if receives:
                self._receive(_FULL_POLL_S)
            else:
                time.sleep(_FULL_POLL_S)  # Another thread receives.
            if data is not None and self._offer(peer, data):
                data = None
            if data is None and self._sockets.by_peer[peer].flush():
                return
            self.raise_if_aborted()
            if timer.is_expired():
                raise StalledError(
                    f"rank {self.global_ranks[peer]} has read nothing for "
                    f"{self.timeouts.abort_s:g} s"
                )

    def _offer(self, peer: int, data: bytes) -> bool:
        """Whether a message was taken for sending, or its receiver has ended."""
        try:
            return self._sockets.by_peer[peer].offer(data)
        except OSError as error:
            raise CommunicationError(
                f"can't send to rank {self.global_ranks[peer]}: {error.strerror}"
            ) from error

    def _tell(self, peers: Iterable[int] | None, tag: Tag, payload: bytes) -> None:
        """Sends a control message to peers that this worker is connected to, or to all (None)."""
        if peers is None:
            self._broadcast(tag, Message(0, 0, payload))
        else:
            self._pass_on(pack_message(tag, Message(0, 0, payload)), peers)

    def _broadcast(self, tag: Tag, message: Message, *, to_all: bool = False) -> None:
        """Sends a control message to all, by way of the neighbours.

        Args:
            tag: of it.
            message: it.
            to_all: whether to send it to all that this worker is connected to.
        """
        if self._is_closed:  # What this worker loses then the others don't.
            return
        relays: Iterable[int] = self._sockets.by_peer if to_all else self._broadcasts.relays
        self._pass_on(self._broadcasts.pack(tag, message), relays)

    def _pass_on(self, data: bytes, peers: Iterable[int], *, unless: Collection[int] = ()) -> None:
        """Sends a control message to those of some peers that this worker is connected to."""
        # Without waiting for space: operations don't depend on control messages.
        for peer in list(peers):
            is_there = peer in self._sockets.by_peer and not self._lost_peers.has_ended(peer)
            if is_there and peer not in unless:
                with contextlib.suppress(CommunicationError):  # They say so where they can't send.
                    self._offer(peer, data)

    def _raise_if_lost(
        self, peers: Sequence[int], signature: OpSignature, group: Group | None
    ) -> None:
        """The caller holds `_changed`."""
        lost = [peer for peer in peers if self._lost_peers.is_lost(peer)]
        if not lost:
            return
        # Another worker may have sent why these have ended (a deadlock) before that. Its message
        # has arrived, and hasn't been received if its socket was read just before.
        while not self._is_receiving and self._receive(0):
            pass
        self.raise_if_aborted()
        if group is not None:
            self._lost_peers.raise_if_failed(group, signature)
            lost = self._lost_peers.cause(lost, group)
        raise self._lost_peers.error(lost, signature, group)
