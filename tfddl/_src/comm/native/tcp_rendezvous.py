"""How workers on several hosts find each other: TCP, on a port that the system chooses.

A worker's *lobby* listens as long as the worker lives. Whoever comes proves that he knows the job's
secret (`rendezvous.endpoint`), and says whom he is, and for what he comes: to exchange messages,
or to move what is large between some set of workers. Those of lower ranks are called, those of
higher ranks call.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfddl._src.rendezvous.endpoint import (
    Client,
    Endpoint,
    RefuseError,
    close_after_fork,
    listen_tcp,
)
from tfddl._src.rendezvous.handshake import dial_tcp
from tfddl.errors import CommunicationError, ConnectError

_LOOK_S = 0.05

_IDLE_S, _PROBE_S, _PROBES = 4, 2, 3
"""When TCP asks whether a silent host is still there, how often, and how many times: ten seconds,
after which TensorFlow's servers miss a host, too."""


@dataclass(frozen=True)
class Address:
    """Where a worker's lobby is."""

    host: str
    """Its name or address, as the other hosts know it."""

    port: int


class TcpRendezvous:
    """Where other workers call; several threads may wait for different ones."""

    def __init__(self, rank: int) -> None:
        """Listens, on all of the host's addresses; nobody is let in yet.

        Args:
            rank: this worker's.

        Raises:
            CommunicationError: the system has no port.
        """
        self._rank = rank
        self._secret = b""
        self._doors: tuple[Address, ...] = ()
        self._welcome: dict[tuple[int, int], socket.socket] = {}
        self._changed = threading.Condition()
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

    def learn(self, doors: Sequence[Address], secret: bytes) -> None:
        """Takes note of what all workers have to know before they meet, and lets them in.

        Args:
            doors: where their lobbies are, in rank order.
            secret: what they know, and nobody else.
        """
        self._doors, self._secret = tuple(doors), secret
        self._endpoint = Endpoint(self._listener, secret, check=self._check, admit=self._admit)
        self._endpoint.start()

    def close(self) -> None:
        """Listens no longer."""
        if self._endpoint is None:
            self._listener.close()
        else:
            self._endpoint.close()
        with self._changed:
            for connected in self._welcome.values():
                connected.close()
            self._welcome.clear()

    def forget(self) -> None:
        """For a forked child: closes what it has inherited."""
        self._listener.close()
        for connected in list(self._welcome.values()):
            connected.close()

    def meet(
        self,
        peers: Sequence[int],
        purpose: int,
        *,
        timeout_s: float,
        check: Callable[[], None] = lambda: None,
    ) -> dict[int, socket.socket]:
        """Connects to other workers, who do the same at about the same time.

        Args:
            peers: their ranks.
            purpose: what for: a number that they use once.
            timeout_s: how long to wait for them; 0 is for ever.
            check: called again and again meanwhile; raises where waiting is in vain.

        Returns:
            A socket to each.

        Raises:
            CommunicationError: one can't be reached, or hasn't come in time.
        """
        end_s = time.monotonic() + (timeout_s or float("inf"))
        found: dict[int, socket.socket] = {}
        try:
            for peer in peers:
                if peer < self._rank:
                    found[peer] = self._call(peer, purpose, end_s, check)
            while missing := [peer for peer in peers if peer not in found]:
                check()
                found |= self._welcomed(missing, purpose)
                if missing[0] not in found and time.monotonic() > end_s:
                    raise CommunicationError(
                        f"rank {missing[0]} hasn't come within {timeout_s:g} s"
                    )
            for connected in found.values():
                _set_up(connected)
        except BaseException:
            for connected in found.values():
                connected.close()
            raise
        return found

    def _welcomed(self, peers: Sequence[int], purpose: int) -> dict[int, socket.socket]:
        """Waits a moment; returns the sockets of those who have come."""

        def come() -> list[int]:
            return [peer for peer in peers if (peer, purpose) in self._welcome]

        with self._changed:
            self._changed.wait_for(come, timeout=_LOOK_S)
            return {peer: self._welcome.pop((peer, purpose)) for peer in come()}

    def _call(
        self, peer: int, purpose: int, end_s: float, check: Callable[[], None]
    ) -> socket.socket:
        door = self._doors[peer]
        while True:
            try:
                return dial_tcp(
                    door.host,
                    door.port,
                    self._secret,
                    {"rank": self._rank, "purpose": purpose},
                    timeout_s=max(_LOOK_S, end_s - time.monotonic()),
                    check=check,
                )
            except ConnectError as error:
                # It may have had too many callers; then the next call is answered.
                is_busy = error.has_answered and not error.is_refused
                if not is_busy or time.monotonic() > end_s:
                    raise CommunicationError(
                        f"can't reach rank {peer} at {door.host}, port {door.port}: {error}"
                    ) from error
            time.sleep(_LOOK_S)

    def _check(self, hello: Mapping[str, Any]) -> None:
        """Refuses who is no other worker, or here already; see `Endpoint`."""
        rank, purpose = hello.get("rank"), hello.get("purpose")
        if type(rank) is not int or not self._rank < rank < len(self._doors):
            raise RefuseError(f"rank {rank} doesn't call rank {self._rank}")
        with self._changed:
            if type(purpose) is not int or (rank, purpose) in self._welcome:
                raise RefuseError(f"rank {rank} has called already for {purpose}")

    def _admit(self, caller: Client) -> None:
        with self._changed:
            self._welcome[caller.hello["rank"], caller.hello["purpose"]] = caller.connection
            self._changed.notify_all()


def _set_up(connected: socket.socket) -> None:
    connected.setblocking(False)
    connected.set_inheritable(False)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
