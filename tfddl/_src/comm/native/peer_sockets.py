"""The message sockets of one worker to some others, read together.

Two workers that connect to each other at the same time have two sockets: each sends by one of them,
always the same, so that the order is kept, and receives from both. A connection that was accepted
counts from its first message on: its maker may have given it up before.
"""

from __future__ import annotations

import contextlib
import select
import threading
import time
from collections import Counter
from collections.abc import Mapping

from tfddl._src.comm.native.message_socket import END_OF_MESSAGES, MessageSocket

# For how long to try before sleeping: to wake a thread up takes about as long.
_SPIN_S = 50e-6

_ENDED = "has ended; its log says why"


class PeerSockets:
    """Sockets to peers. Several threads may send, and add some; one at a time may receive.

    Attributes:
        by_peer: by which socket to send.
        lost: the peers that have ended, in that order; nothing more comes from them.
    """

    def __init__(self, sockets: Mapping[int, MessageSocket], *, spins: bool) -> None:
        """Takes over sockets.

        Args:
            sockets: by peer.
            spins: whether to try for some microseconds before sleeping.
        """
        self.by_peer: dict[int, MessageSocket] = {}
        self.lost: dict[int, None] = {}
        self._losses: dict[int, str] = {}
        self._spin_s = _SPIN_S if spins else 0.0
        # What isn't at its end, by descriptor.
        self._open: dict[int, tuple[int, MessageSocket]] = {}
        self._unconfirmed: set[int] = set()
        self._ended: list[MessageSocket] = []
        self._num_open: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._is_closed = False
        # What poll(2) costs grows with the number of sockets, what epoll(7) costs doesn't. (Not
        # select.select, which can't take descriptors above 1023.)
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._poll = select.poll() if self._epoll is None else self._epoll
        for peer, one in sockets.items():
            self.add(peer, one)

    @property
    def num_open(self) -> int:
        """Sockets that aren't at their end."""
        return len(self._open)

    def add(self, peer: int, connected: MessageSocket, *, is_accepted: bool = False) -> None:
        """Takes over one more socket. It is closed at once where nothing can come of it.

        Args:
            peer: at the other end.
            connected: the socket.
            is_accepted: whether the peer has made the connection, and sends something at once.
        """
        with self._lock:
            if self._is_closed or peer in self.lost:
                connected.close()
                return
            self._open[connected.fileno()] = peer, connected
            if is_accepted:
                self._unconfirmed.add(connected.fileno())
            else:
                self._num_open[peer] += 1
                self.by_peer.setdefault(peer, connected)
            if self._is_closed:  # Meanwhile.
                connected.close()
                return
            self._poll.register(connected, select.POLLIN)

    def receive_into(self, arrived: list[tuple[int, bytes]], timeout_s: float) -> None:
        """Appends messages that have arrived, each with the peer that sent it.

        They are appended one by one, so that none is lost where a signal's handler raises.

        Args:
            arrived: an empty list.
            timeout_s: how long to wait for the first message.
        """
        end_s = time.perf_counter() + self._spin_s
        while not arrived and self._spin_s:
            for descriptor in list(self._open):
                self._receive_from(descriptor, arrived)
            if time.perf_counter() > end_s:
                break
        if not arrived:
            for descriptor in self._wait(timeout_s):
                self._receive_from(descriptor, arrived)

    def _wait(self, timeout_s: float) -> list[int]:
        """Waits until a socket can be read; returns the descriptors of all that can."""
        if self._epoll is None:
            return [descriptor for descriptor, _ in self._poll.poll(timeout_s * 1000)]
        if self._epoll.closed:  # Then all sockets are, and reading says that nothing more comes.
            return list(self._open)
        return [descriptor for descriptor, _ in self._epoll.poll(timeout_s)]

    def close(self) -> None:
        """Closes the sockets."""
        # Without the lock: in a forked child nobody would release it.
        self._is_closed = True
        sockets = [*self._ended, *(one for _, one in list(self._open.values()))]
        for one in sockets:
            one.close()
        if self._epoll is not None:
            self._epoll.close()

    def _receive_from(self, descriptor: int, arrived: list[tuple[int, bytes]]) -> None:
        if descriptor not in self._open:
            return
        peer, one = self._open[descriptor]
        for message in one.receive():
            if message == END_OF_MESSAGES:
                if not self._end(descriptor):
                    return  # More may come by another one.
            elif descriptor in self._unconfirmed:
                self._confirm(descriptor)
            arrived.append((peer, message))

    def _confirm(self, descriptor: int) -> None:
        with self._lock:
            peer, one = self._open[descriptor]
            self._unconfirmed.discard(descriptor)
            self._num_open[peer] += 1
            self.by_peer.setdefault(peer, one)

    def _end(self, descriptor: int) -> bool:
        """Stops receiving from a socket at its end; returns whether it was the peer's last one."""
        with self._lock:
            peer, one = self._open.pop(descriptor)
            is_confirmed = descriptor not in self._unconfirmed
            self._unconfirmed.discard(descriptor)
            self._num_open[peer] -= is_confirmed
            # Closed at the end of all: a thread may be sending by it, and its descriptor must not
            # become another socket's meanwhile.
            self._ended.append(one)
            # It stays readable, and poll would return at once for ever.
            with contextlib.suppress(KeyError, OSError, ValueError):  # As it may be closed already.
                self._poll.unregister(one)
            return is_confirmed and not self._num_open[peer]

    def mark_lost(self, peer: int, loss: str = "") -> None:
        """Nothing more comes from a peer.

        Args:
            peer: which.
            loss: what has become of it, as errors say it after "rank 3"; by default that it has
                ended.
        """
        with self._lock:
            self.lost[peer] = None
            if loss:
                self._losses[peer] = loss

    def loss(self, peer: int) -> str:
        """What has become of a peer that has ended, as errors say it after "rank 3"."""
        if peer in self._losses:
            return self._losses[peer]
        # All sockets are of one kind.
        some = self.by_peer.get(peer) or next(iter(self.by_peer.values()), None)
        return _ENDED if some is None else some.loss
