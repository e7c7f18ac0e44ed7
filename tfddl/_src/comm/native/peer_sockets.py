"""The message sockets of one worker to all others, read together."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Mapping

from tfddl._src.comm.native.message_socket import MessageSocket

# For how long to try before sleeping: to wake a thread up takes about as long.
_SPIN_S = 50e-6


class PeerSockets:
    """One socket to each peer. Several threads may send; one at a time may receive.

    Attributes:
        by_peer: the sockets.
        lost: the peers that have ended, in that order; nothing more comes from them.
    """

    def __init__(self, sockets: Mapping[int, MessageSocket], *, spins: bool) -> None:
        """Takes over sockets.

        Args:
            sockets: by peer.
            spins: whether to try for some microseconds before sleeping.
        """
        self.by_peer = dict(sockets)
        self.lost: dict[int, None] = {}
        self._spin_s = _SPIN_S if spins else 0.0
        self._peer_of = {one.fileno(): peer for peer, one in self.by_peer.items()}
        # What poll(2) costs grows with the number of sockets, what epoll(7) costs doesn't. (Not
        # select.select, which can't take descriptors above 1023.)
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._poll = select.poll() if self._epoll is None else self._epoll
        for one in self.by_peer.values():
            self._poll.register(one, select.POLLIN)

    def receive_into(self, arrived: list[tuple[int, bytes]], timeout_s: float) -> None:
        """Appends messages that have arrived, each with the peer that sent it.

        They are appended one by one, so that none is lost where a signal's handler raises.

        Args:
            arrived: an empty list.
            timeout_s: how long to wait for the first message.
        """
        end_s = time.perf_counter() + self._spin_s
        while not arrived and self._spin_s:
            for peer in self._peer_of.values():
                self._receive_from(peer, arrived)
            if time.perf_counter() > end_s:
                break
        if not arrived:
            for descriptor in self._wait(timeout_s):
                self._receive_from(self._peer_of[descriptor], arrived)

    def _wait(self, timeout_s: float) -> list[int]:
        """Waits until a socket can be read; returns the descriptors of all that can."""
        if self._epoll is None:
            return [descriptor for descriptor, _ in self._poll.poll(timeout_s * 1000)]
        if self._epoll.closed:  # Then all sockets are, and reading says that nothing more comes.
            return list(self._peer_of)
        return [descriptor for descriptor, _ in self._epoll.poll(timeout_s)]

    def close(self) -> None:
        """Closes the sockets."""
        for one in self.by_peer.values():
            one.close()
        if self._epoll is not None:
            self._epoll.close()

    def _receive_from(self, peer: int, arrived: list[tuple[int, bytes]]) -> None:
        if peer not in self.lost:
            arrived += [(peer, message) for message in self.by_peer[peer].receive()]

    def mark_lost(self, peer: int) -> None:
        """Stops receiving from a peer that has ended."""
        self.lost[peer] = None
        # Its socket stays readable at the end, and poll would return at once for ever.
        with contextlib.suppress(KeyError, OSError, ValueError):  # As it may be closed already.
            self._poll.unregister(self.by_peer[peer])
