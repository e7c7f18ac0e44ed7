"""How workers on several hosts find each other: TCP, on a port that the system chooses.

A worker's *lobby* listens as long as the worker lives. Whoever comes says a secret that only the
workers of the job know, whom it is, and for what it comes: to exchange messages, or to move what is
large between some set of workers. Those of lower ranks are called, those of higher ranks call.
"""

from __future__ import annotations

import contextlib
import hmac
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tfddl.errors import WireError

SECRET_BYTES = 16

_WORD = struct.Struct(f"<{SECRET_BYTES}sIQ")
"""What a caller says: the secret, its rank, and for what it comes."""

_BACKLOG = 1024
_LOOK_S = 0.05
_GREETING_S = 10.0
"""How long a caller may take to say it."""

_IDLE_S, _PROBE_S, _PROBES = 4, 2, 3
"""When TCP asks whether a silent host is still there, how often, and how many times: ten seconds,
after which TensorFlow's servers miss a host, too."""


@dataclass(frozen=True)
class Door:
    """Where a worker's lobby is."""

    host: str
    """Its name or address, as the other hosts know it."""

    port: int


@dataclass
class _Guest:
    """Somebody who hasn't yet said all."""

    connected: socket.socket
    said: bytes
    until_s: float


class Lobby:
    """Where other workers call; several threads may wait for different ones."""

    def __init__(self, rank: int) -> None:
        """Listens, on all of the host's addresses.

        Args:
            rank: this worker's.

        Raises:
            WireError: the system has no port.
        """
        self._rank = rank
        self._secret = b""
        self._doors: tuple[Door, ...] = ()
        self._guests: list[_Guest] = []
        self._welcome: dict[tuple[int, int], socket.socket] = {}
        self._changed = threading.Lock()
        try:
            self._listener = _listen()
        except OSError as error:
            raise WireError(f"can't listen for the other hosts: {error.strerror}") from error
        self._listener.setblocking(False)

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listener.getsockname()[1]
        return port

    def learn(self, doors: Sequence[Door], secret: bytes) -> None:
        """Takes note of what all workers have to know before they meet.

        Args:
            doors: where their lobbies are, in rank order.
            secret: `SECRET_BYTES` that they know, and nobody else.
        """
        assert len(secret) == SECRET_BYTES
        self._doors, self._secret = tuple(doors), secret

    def close(self) -> None:
        """Listens no longer."""
        self._listener.close()
        for guest in self._guests:
            guest.connected.close()
        for connected in self._welcome.values():
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
            WireError: one can't be reached, or hasn't come in time.
        """
        end_s = time.monotonic() + (timeout_s or float("inf"))
        found: dict[int, socket.socket] = {}
        try:
            for peer in peers:
                if peer < self._rank:
                    found[peer] = self._call(peer, purpose, end_s)
            while missing := [peer for peer in peers if peer not in found]:
                check()
                found |= self._welcomed(missing, purpose)
                if missing[0] not in found and time.monotonic() > end_s:
                    raise WireError(f"rank {missing[0]} hasn't come within {timeout_s:g} s")
            for connected in found.values():
                _set_up(connected)
        except BaseException:
            for connected in found.values():
                connected.close()
            raise
        return found

    def _welcomed(self, peers: Sequence[int], purpose: int) -> dict[int, socket.socket]:
        """Waits a moment; returns the sockets of those who have come."""
        self._wait()
        with self._changed:
            self._look()
            come = [peer for peer in peers if (peer, purpose) in self._welcome]
            return {peer: self._welcome.pop((peer, purpose)) for peer in come}

    def _call(self, peer: int, purpose: int, end_s: float) -> socket.socket:
        door = self._doors[peer]
        left_s = max(_LOOK_S, end_s - time.monotonic())
        try:
            connected = socket.create_connection(
                (door.host, door.port), timeout=None if left_s == float("inf") else left_s
            )
        except OSError as error:
            raise WireError(
                f"can't reach rank {peer} at {door.host}, port {door.port}: "
                f"{error.strerror or error}"
            ) from error
        try:
            connected.sendall(_WORD.pack(self._secret, self._rank, purpose))
        except OSError as error:
            connected.close()
            raise WireError(f"rank {peer} has hung up: {error.strerror or error}") from error
        return connected

    def _wait(self) -> None:
        """Until somebody says something, or another thread may have heard it."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        with self._changed:
            for guest in self._guests:
                poll.register(guest.connected, select.POLLIN)
        poll.poll(_LOOK_S * 1000)

    def _look(self) -> None:
        """Lets in who has come, and shows out who isn't one of us."""
        while (connected := self._next_caller()) is not None:
            connected.setblocking(False)
            self._guests.append(_Guest(connected, b"", time.monotonic() + _GREETING_S))
        for guest in list(self._guests):
            if not self._is_heard(guest):
                continue
            self._guests.remove(guest)
            if len(guest.said) < _WORD.size:
                guest.connected.close()
                continue
            secret, rank, purpose = _WORD.unpack(guest.said)
            if hmac.compare_digest(secret, self._secret):
                self._welcome[rank, purpose] = guest.connected
            else:
                guest.connected.close()

    def _next_caller(self) -> socket.socket | None:
        while True:
            try:
                return self._listener.accept()[0]
            except BlockingIOError:
                return None
            except ConnectionAbortedError:  # Gone again.
                continue
            except OSError as error:
                raise WireError(f"can't take the calls of other hosts: {error.strerror}") from error

    def _is_heard(self, guest: _Guest) -> bool:
        """Whether a guest has said all it will say."""
        try:
            heard = guest.connected.recv(_WORD.size - len(guest.said))
        except BlockingIOError:
            return time.monotonic() > guest.until_s
        except OSError:
            return True
        guest.said += heard
        return not heard or len(guest.said) == _WORD.size


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # The kernel may know IPv6, and have none.
            return socket.create_server(
                ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG
            )
    return socket.create_server(("", 0), backlog=_BACKLOG)


def _set_up(connected: socket.socket) -> None:
    connected.setblocking(False)
    connected.set_inheritable(False)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
