"""How workers of several hosts connect to each other: TCP, on ports that the system chooses.

Each worker listens as long as it lives. Whoever connects proves that it knows the job's secret
(`rendezvous.endpoint`), and says its rank and for which purpose it connects: for messages, or for
the large arrays of some set of workers. Where both know that they need a connection, the one of the
higher rank makes it. For messages, either may, at any time.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfddl._src.comm.native.peer_dialer import PeerEndedError
from tfddl._src.rendezvous.endpoint import (
    Client,
    Endpoint,
    RefuseError,
    close_after_fork,
    listen_tcp,
)
from tfddl._src.rendezvous.handshake import dial_tcp
from tfddl._src.wait_timer import WaitTimer
from tfddl.errors import CommunicationError, ConnectError

_POLL_S = 0.05

# TCP asks a silent host for a sign of life after 4 s, then every second: a host that is cut off is
# noticed after ten seconds, when TensorFlow's servers notice it, too. Keepalive probes are answered
# by the kernel: a process that is busy, or stopped, isn't taken for a lost one. They run on idle
# connections only; `tcp_backend` says what a stream does. Six, since a probe isn't sent again where
# a host's queue overflows (net.core.netdev_max_backlog): three were lost, one after the other, when
# 64 workers moved 16 MiB each on two cores.
_KEEPALIVE_IDLE_S, _KEEPALIVE_INTERVAL_S, _KEEPALIVE_PROBES = 4, 1, 6


# How long a host may take to answer; more than it takes TCP to try again, twice.
_REACH_S = 10.0

# How long a host may take where others have answered at once: TCP tries three times.
_ANSWER_S = 5.0

MESSAGES = 0
"""The purpose of connections for messages."""

_REACH = -1
"""The purpose of those that only show that they can be made."""


@dataclass(frozen=True)
class Address:
    """Where a worker listens."""

    host: str
    """Its name or IP address, as the other hosts know it."""

    port: int


class TcpConnector:
    """One worker's listening socket. Several threads may connect, for different purposes."""

    def __init__(self, rank: int) -> None:
        """Listens on all addresses of the host; connections are accepted once it is started.

        Args:
            rank: this worker's.

        Raises:
            CommunicationError: the system has no port.
        """
        self._rank = rank
        self._secret = b""
        self._addresses: tuple[Address, ...] = ()
        # Connections of higher ranks, by rank and purpose, that `connect` hasn't returned yet.
        self._accepted: dict[tuple[int, int], socket.socket] = {}
        self._changed = threading.Condition()
        self._take: Callable[[int, socket.socket], None] | None = None
        self._endpoint: Endpoint | None = None
        try:
            self._listener = listen_tcp()
        except OSError as error:
            raise CommunicationError(
                f"can't listen for the other hosts: {error.strerror}"
            ) from error
        self._port: int = self._listener.getsockname()[1]
        close_after_fork(self)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    def start(self, addresses: Sequence[Address], secret: bytes) -> None:
        """Begins to accept connections.

        Args:
            addresses: of all workers, in rank order.
            secret: known to the workers of this job only.
        """
        self._addresses, self._secret = tuple(addresses), secret
        self._endpoint = Endpoint(self._listener, secret, check=self._check, admit=self._admit)
        self._endpoint.start()

    def close(self) -> None:
        """Stops listening."""
        if self._endpoint is None:
            self._listener.close()
        else:
            self._endpoint.close()
        with self._changed:
            for connected in self._accepted.values():
                connected.close()
            self._accepted.clear()

    def close_in_child(self) -> None:
        """In a forked child: closes what it has inherited."""
        self._listener.close()
        for connected in list(self._accepted.values()):
            connected.close()

    def connect(
        self,
        peers: Sequence[int],
        purpose: int,
        *,
        timeout_s: float,
        check: Callable[[], None] = lambda: None,
    ) -> dict[int, socket.socket]:
        """Connects to other workers, all of which call it with the same purpose.

        Args:
            peers: their ranks.
            purpose: a number that these workers use once.
            timeout_s: how long to wait for them; 0 waits for ever.
            check: called from time to time meanwhile; raises where waiting can't end.

        Returns:
            A non-blocking socket to each.

        Raises:
            CommunicationError: a worker can't be reached, or hasn't connected in time.
        """
        timer = WaitTimer(abort_s=timeout_s)
        found: dict[int, socket.socket] = {}
        try:
            # Each pair has one connection, made by its higher rank.
            for peer in peers:
                if peer < self._rank:
                    found[peer] = self._dial(peer, purpose, timer, check)
            while missing := [peer for peer in peers if peer not in found]:
                check()
                found |= self._wait_for_accepted(missing, purpose)
                if missing[0] not in found and timer.is_expired():
                    raise CommunicationError(
                        f"rank {missing[0]} hasn't connected to rank {self._rank} within "
                        f"{timeout_s:g} s"
                    )
            for connected in found.values():
                _set_options(connected)
        except BaseException:
            for connected in found.values():
                connected.close()
            raise
        return found

    def accept_messages(self, take: Callable[[int, socket.socket], None]) -> None:
        """From now on hands over connections for messages that others make.

        Args:
            take: gets the rank of the other, and a non-blocking socket; called in any thread.
        """
        with self._changed:
            self._take = take
            early = [key for key in self._accepted if key[1] == MESSAGES]
            found = {rank: self._accepted.pop((rank, purpose)) for rank, purpose in early}
        for rank, connected in found.items():
            _set_options(connected)
            take(rank, connected)

    def dial(
        self, peer: int, *, timeout_s: float, check: Callable[[], None]
    ) -> socket.socket | None:
        """Connects to another worker for messages, see `mesh.Dial`."""
        timer = WaitTimer(abort_s=timeout_s)
        address = self._addresses[peer]
        hello = {"rank": self._rank, "purpose": MESSAGES}
        while not timer.is_expired():
            check()
            try:
                connected = dial_tcp(
                    *(address.host, address.port, self._secret, hello),
                    timeout_s=min(_REACH_S, max(_POLL_S, timer.remaining_s)),
                    reach_s=_REACH_S,
                    check=check,
                )
            except ConnectError as error:
                if isinstance(error.__cause__, ConnectionRefusedError):  # It listens while it is.
                    raise PeerEndedError from error
                if not error.has_answered:
                    raise PeerEndedError(_unreachable(address, error)) from error
                if error.is_refused:
                    raise CommunicationError(
                        f"can't connect to rank {peer} at {address.host}, port {address.port}: "
                        f"{error}"
                    ) from error
                time.sleep(_POLL_S)  # It is busy, or stopped; or it ends.
            else:
                _set_options(connected)
                return connected
        return None

    def check_reach(self, peers: Iterable[int], *, timeout_s: float) -> None:
        """Makes sure that connections to other workers can be made later.

        Args:
            peers: which, not all: hosts that can't be reached are mostly so from any other one.
            timeout_s: for each.

        Raises:
            CommunicationError: a worker can't be reached.
        """
        for peer in peers:
            self._dial(peer, _REACH, WaitTimer(abort_s=timeout_s), lambda: None).close()

    def reach(self, peer: int) -> str:
        """Looks whether a worker's host answers, see `Mesh`. It does whatever the worker does."""
        address = self._addresses[peer]
        try:
            socket.create_connection((address.host, address.port), timeout=_ANSWER_S).close()
        except ConnectionRefusedError:  # That is an answer; how the worker ends comes by itself.
            return ""
        except OSError as error:
            return _unreachable(address, error)
        return ""

    def _wait_for_accepted(self, peers: Sequence[int], purpose: int) -> dict[int, socket.socket]:
        """Waits a moment; returns the sockets of those that have connected."""

        def connected() -> list[int]:
            return [peer for peer in peers if (peer, purpose) in self._accepted]

        with self._changed:
            self._changed.wait_for(connected, timeout=_POLL_S)
            return {peer: self._accepted.pop((peer, purpose)) for peer in connected()}

    def _dial(
        self, peer: int, purpose: int, timer: WaitTimer, check: Callable[[], None]
    ) -> socket.socket:
        address = self._addresses[peer]
        while True:
            try:
                return dial_tcp(
                    address.host,
                    address.port,
                    self._secret,
                    {"rank": self._rank, "purpose": purpose},
                    timeout_s=max(_POLL_S, timer.remaining_s),
                    check=check,
                )
            except ConnectError as error:
                # An endpoint with too many pending connections drops the oldest: try again.
                is_busy = error.has_answered and not error.is_refused
                if not is_busy or timer.is_expired():
                    raise CommunicationError(
                        f"can't reach rank {peer} at {address.host}, port {address.port}: {error}"
                    ) from error
            time.sleep(_POLL_S)

    def _check(self, hello: Mapping[str, Any]) -> None:
        """Refuses whoever isn't a worker that may connect, or is connected already."""
        rank, purpose = hello.get("rank"), hello.get("purpose")
        lowest = 0 if purpose in (MESSAGES, _REACH) else self._rank + 1
        if type(rank) is not int or not lowest <= rank < len(self._addresses) or rank == self._rank:
            raise RefuseError(f"rank {rank} doesn't connect to rank {self._rank}")
        with self._changed:
            if type(purpose) is not int or (rank, purpose) in self._accepted:
                raise RefuseError(f"rank {rank} is connected already for purpose {purpose}")

    def _admit(self, client: Client) -> None:
        rank, purpose = client.hello["rank"], client.hello["purpose"]
        if purpose == _REACH:
            client.connection.close()
            return
        with self._changed:
            take = self._take if purpose == MESSAGES else None
            if take is None:
                self._accepted[rank, purpose] = client.connection
                self._changed.notify_all()
        if take is not None:
            _set_options(client.connection)
            take(rank, client.connection)


def _unreachable(address: Address, error: OSError) -> str:
    why = error.strerror or str(error) or "no answer"
    return (
        f"has ended, or can't be reached any more at {address.host}, port {address.port} ({why}). "
        "HINT: let the hosts of the job reach all ports of each other; its log says more"
    )


def _set_options(connected: socket.socket) -> None:
    connected.setblocking(False)
    connected.set_inheritable(False)
    # Without it Nagle's algorithm holds small messages back until the last one is acknowledged.
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Only on an idle connection: with unacknowledged data, Linux retransmits instead, for some 15
    # minutes (tcp(7), tcp_retries2). TCP_USER_TIMEOUT would end that sooner, but also connections
    # to a stopped peer whose buffer is full.
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
