"""How the workers of a host find each other: Unix sockets without a file, of this user alone.

The names are *abstract*: they vanish with the process, there is nothing to clean up, and they are
seen only within a network namespace, so that containers with networks of their own are hosts of
their own. Each side makes sure whose process is at the other end, and that it knows the job's
secret, see `tfddl._src.rendezvous.endpoint`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from tfddl._src.comm.native.backend import Network
from tfddl._src.comm.native.mesh import MAX_MESSAGE_BYTES, Mesh
from tfddl._src.comm.native.message_socket import SeqpacketSocket
from tfddl._src.comm.native.messages import PeerConfig, stable_hash
from tfddl._src.comm.native.shm import PeerMemory, SharedMemory
from tfddl._src.comm.native.shm_backend import ShmBackend
from tfddl._src.rendezvous.endpoint import Client, Endpoint, RefuseError, listen_unix
from tfddl._src.rendezvous.handshake import dial_unix
from tfddl.errors import CommunicationError, ConnectError, UntrustedPeerError

_RETRY_S = 0.01


def connect_local(seat: PeerConfig) -> Network:
    """Connects the workers of a host. All of them must call it together.

    Returns:
        Sockets between them, and memory that they show each other.

    Raises:
        CommunicationError: it can't be done here, or another worker hasn't come in time.
    """
    if not sys.platform.startswith("linux"):
        raise CommunicationError(f"{sys.platform} has no shared memory without a name")
    deadline = time.monotonic() + seat.timeout_s
    sockets: dict[int, socket.socket] = {}
    try:
        with contextlib.closing(_Callers(seat)) as callers:
            for peer in range(seat.rank):
                sockets[peer] = _call(seat, peer, deadline)
            sockets |= callers.wait(deadline)
        memory = SharedMemory()
        memory.check_views()
        peers = _exchange_memories(seat, sockets, memory, deadline)
    except OSError as error:
        _close(sockets)
        raise CommunicationError(str(error)) from error
    except CommunicationError:
        _close(sockets)
        raise
    links = {p: SeqpacketSocket(s, longest=MAX_MESSAGE_BYTES) for p, s in sockets.items()}
    mesh = Mesh(seat, links)
    carrier = functools.partial(ShmBackend, mesh, memory=memory, peers=peers)
    return Network("shared memory", mesh, carrier)


class _Callers:
    """The workers of higher ranks, who call this one."""

    def __init__(self, seat: PeerConfig) -> None:
        self._seat = seat
        self._come: dict[int, socket.socket] = {}
        self._changed = threading.Condition()
        try:
            listener = listen_unix(_name(seat, seat.rank), socket.SOCK_SEQPACKET)
        except OSError as error:
            raise CommunicationError(
                f"can't listen for the other workers: {error.strerror}"
            ) from error
        self._endpoint = Endpoint(listener, seat.secret, check=self._check, admit=self._admit)
        self._endpoint.start()

    def wait(self, deadline: float) -> dict[int, socket.socket]:
        """Their sockets, once all are there."""
        expected = range(self._seat.rank + 1, self._seat.size)
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._come) == len(expected), timeout=deadline - time.monotonic()
            )
            for peer in expected:
                if peer not in self._come:
                    raise _too_late(self._seat, peer)
            found, self._come = self._come, {}
            return found

    def close(self) -> None:
        self._endpoint.close()
        _close(self._come)

    def _check(self, hello: Mapping[str, Any]) -> None:
        rank = hello.get("rank")
        if type(rank) is not int or not self._seat.rank < rank < self._seat.size:
            raise RefuseError(f"rank {rank} doesn't call rank {self._seat.rank}")
        with self._changed:
            if rank in self._come:
                raise RefuseError(f"rank {rank} has called already")

    def _admit(self, caller: Client) -> None:
        with self._changed:
            self._come[caller.hello["rank"]] = caller.connection
            self._changed.notify_all()


def _name(seat: PeerConfig, rank: int) -> str:
    return f"tfddl-{os.getuid()}-{stable_hash(seat.job):016x}-{rank}"


def _call(seat: PeerConfig, peer: int, deadline: float) -> socket.socket:
    """Connects to a worker of a lower rank, once it listens."""
    while True:
        left_s = max(_RETRY_S, deadline - time.monotonic())
        name, kind = _name(seat, peer), socket.SOCK_SEQPACKET
        try:
            return dial_unix(name, kind, seat.secret, {"rank": seat.rank}, timeout_s=left_s)
        except ConnectError as error:
            if error.is_refused or isinstance(error, UntrustedPeerError):
                raise CommunicationError(f"local rank {peer}: {error}") from error
            if time.monotonic() > deadline:
                raise _too_late(seat, peer) from None
        time.sleep(_RETRY_S)


def _exchange_memories(
    seat: PeerConfig, sockets: dict[int, socket.socket], memory: SharedMemory, deadline: float
) -> dict[int, PeerMemory]:
    found = {}
    for connected in sockets.values():
        socket.send_fds(connected, [b"m"], [memory.fileno()])
    for peer, connected in sockets.items():
        connected.settimeout(max(_RETRY_S, deadline - time.monotonic()))
        try:
            _, fds, _, _ = socket.recv_fds(connected, 1, 1)
        except TimeoutError:
            raise _too_late(seat, peer) from None
        if not fds:
            raise CommunicationError(f"local rank {peer} has ended")
        found[peer] = PeerMemory(fds[0])
    return found


def _too_late(seat: PeerConfig, peer: int) -> CommunicationError:
    return CommunicationError(
        f"local rank {peer} of {seat.size} hasn't come within {seat.timeout_s:g} s"
    )


def _close(sockets: dict[int, socket.socket]) -> None:
    for connected in sockets.values():
        with contextlib.suppress(OSError):
            connected.close()
