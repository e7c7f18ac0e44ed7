"""How a worker connects to others when it needs it: it has a message for them, or waits for one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from tfddl._src.comm.native.lost_peers import LostPeers
from tfddl._src.comm.native.message_socket import MessageSocket
from tfddl._src.comm.native.messages import CONNECTED, Message, pack_message
from tfddl._src.comm.native.peer_sockets import PeerSockets


class PeerEndedError(Exception):
    """Raised where a worker can't be connected to any more; what has become of it, or ""."""


class Dial(Protocol):
    """Connects to another worker, which accepts it whatever it does meanwhile."""

    def __call__(
        self, peer: int, *, timeout_s: float, check: Callable[[], None]
    ) -> MessageSocket | None:
        """Connects.

        Args:
            peer: to which one.
            timeout_s: for how long to try.
            check: called from time to time meanwhile; raises to give up.

        Returns:
            None if it hasn't answered in time.

        Raises:
            PeerEndedError: it has ended, or can't be reached.
            CommunicationError: it has refused.
        """


class _ConnectedError(Exception):
    """Ends an attempt to connect: the peer has connected to this worker."""


class PeerDialer:
    """Adds connections to the sockets of one worker. Thread-safe."""

    def __init__(
        self,
        dial: Dial | None,
        sockets: PeerSockets,
        lost_peers: LostPeers,
        *,
        check: Callable[[], None],
        lose: Callable[[int, str], None],
    ) -> None:
        """Connects to nobody yet.

        Args:
            dial: connects; None if this worker can't.
            sockets: of this worker.
            lost_peers: what it knows of those that have ended.
            check: raises where this worker is to connect to nobody any more.
            lose: is told which peer has ended, and what has become of it or "".
        """
        self._dial, self._sockets, self._lost_peers = dial, sockets, lost_peers
        self._check, self._lose = check, lose
        self._locks: dict[int, threading.Lock] = {}

    def connect(self, peer: int, timeout_s: float) -> MessageSocket | None:
        """Connects to a peer, unless one of both has before.

        Args:
            peer: to which one.
            timeout_s: for how long to try.

        Returns:
            By which socket to send; None if the peer has ended, or hasn't answered in time.
        """
        with self._locks.setdefault(peer, threading.Lock()):
            if self._dial is None or peer in self._sockets.by_peer:
                return self._sockets.by_peer.get(peer)

            def check() -> None:
                self._check()
                if peer in self._sockets.by_peer:
                    raise _ConnectedError
                if self._lost_peers.is_lost(peer):
                    raise PeerEndedError

            try:
                check()
                connected = self._dial(peer, timeout_s=timeout_s, check=check)
            except _ConnectedError:
                connected = None
            except PeerEndedError as error:
                self._lose(peer, str(error))
                return None
            if connected is not None:
                # Empty, it has space for this; before anything else is sent by it.
                connected.offer(pack_message(CONNECTED, Message(0, 0, b"")))
                self._sockets.add(peer, connected)
            return self._sockets.by_peer.get(peer)
