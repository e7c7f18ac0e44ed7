"""How the workers of a host connect to each other: abstract Unix sockets, of this user only.

*Abstract* names (unix(7)) have no file: they vanish with the process that has bound them. They are
visible within one network namespace only, so containers with networks of their own are hosts of
their own. They have no permissions either: each side checks by SO_PEERCRED whose process is at the
other end, and that it knows the job's secret, see `rendezvous.endpoint`.
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
from tfddl._src.comm.native.mesh import Mesh
from tfddl._src.comm.native.message_socket import SeqpacketSocket
from tfddl._src.comm.native.messages import MAX_MESSAGE_BYTES, PeerConfig, stable_hash
from tfddl._src.comm.native.shm import PeerMemory, SharedMemory
from tfddl._src.comm.native.shm_backend import ShmBackend
from tfddl._src.rendezvous.endpoint import Client, Endpoint, RefuseError, listen_unix
from tfddl._src.rendezvous.handshake import dial_unix
from tfddl._src.wait_timer import WaitTimer
from tfddl.errors import CommunicationError, ConnectError, UntrustedPeerError

_RETRY_S = 0.01


def connect_local(config: PeerConfig) -> Network:
    """Connects the workers of a host. All of them must call it together.

    Returns:
        Sockets between them for messages, and shared memory for large arrays.

    Raises:
        CommunicationError: this system can't do it, or another worker hasn't connected in time.
    """
    if not sys.platform.startswith("linux"):
        raise CommunicationError(f"{sys.platform} has no shared memory without a name (memfd)")
    timer = WaitTimer(abort_s=config.connect_timeout_s)
    sockets: dict[int, socket.socket] = {}
    try:
        with contextlib.closing(_Acceptor(config)) as acceptor:
            # Each pair has one connection, made by its higher rank.
            for peer in range(config.rank):
                sockets[peer] = _dial(config, peer, timer)
            sockets |= acceptor.wait(timer)
        memory = SharedMemory()
        memory.check_private_views()
        peers = _exchange_memory(config, sockets, memory, timer)
    except OSError as error:
        _close(sockets)
        raise CommunicationError(str(error)) from error
    except CommunicationError:
        _close(sockets)
        raise
    # SOCK_SEQPACKET: messages arrive whole, and need no length in front.
    links = {p: SeqpacketSocket(s, max_bytes=MAX_MESSAGE_BYTES) for p, s in sockets.items()}
    mesh = Mesh(config, links)
    make_backend = functools.partial(ShmBackend, mesh, memory=memory, peers=peers)
    return Network("shared memory", mesh, make_backend)


class _Acceptor:
    """Accepts connections of workers with higher ranks."""

    def __init__(self, config: PeerConfig) -> None:
        self._config = config
        self._accepted: dict[int, socket.socket] = {}
        self._changed = threading.Condition()
        try:
            listener = listen_unix(_socket_name(config, config.rank), socket.SOCK_SEQPACKET)
        except OSError as error:
            raise CommunicationError(
                f"can't listen for the other workers: {error.strerror}"
            ) from error
        self._endpoint = Endpoint(listener, config.secret, check=self._check, admit=self._admit)
        self._endpoint.start()

    def wait(self, timer: WaitTimer) -> dict[int, socket.socket]:
        """Their sockets by rank, once all have connected."""
        expected = range(self._config.rank + 1, self._config.size)
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._accepted) == len(expected), timeout=timer.remaining_s
            )
            for peer in expected:
                if peer not in self._accepted:
                    raise _timeout_error(self._config, peer)
            accepted, self._accepted = self._accepted, {}
            return accepted

    def close(self) -> None:
        self._endpoint.close()
        _close(self._accepted)

    def _check(self, hello: Mapping[str, Any]) -> None:
        rank = hello.get("rank")
        if type(rank) is not int or not self._config.rank < rank < self._config.size:
            raise RefuseError(f"rank {rank} doesn't connect to rank {self._config.rank}")
        with self._changed:
            if rank in self._accepted:
                raise RefuseError(f"rank {rank} is connected already")

    def _admit(self, client: Client) -> None:
        with self._changed:
            self._accepted[client.hello["rank"]] = client.connection
            self._changed.notify_all()


def _socket_name(config: PeerConfig, rank: int) -> str:
    # At most 39 bytes: the kernel takes 107 in an abstract name (unix(7)). The user is in it so
    # that jobs of two users can't meet; `dial_unix` checks whose process answers.
    return f"tfddl-{os.getuid()}-{stable_hash(config.job):016x}-{rank}"


def _dial(config: PeerConfig, peer: int, timer: WaitTimer) -> socket.socket:
    """Connects to a worker of a lower rank, once it listens."""
    while True:
        left_s = max(_RETRY_S, timer.remaining_s)
        name, kind = _socket_name(config, peer), socket.SOCK_SEQPACKET
        try:
            return dial_unix(name, kind, config.secret, {"rank": config.rank}, timeout_s=left_s)
        except ConnectError as error:
            if error.is_refused or isinstance(error, UntrustedPeerError):
                raise CommunicationError(f"local rank {peer}: {error}") from error
            if timer.is_expired():
                raise _timeout_error(config, peer) from None
        time.sleep(_RETRY_S)


def _exchange_memory(
    config: PeerConfig, sockets: dict[int, socket.socket], memory: SharedMemory, timer: WaitTimer
) -> dict[int, PeerMemory]:
    """Sends this worker's memfd to all others, and receives theirs (SCM_RIGHTS, unix(7))."""
    found = {}
    for connected in sockets.values():
        # With a byte of data, which unix(7) asks for. All send before any receives: byte and
        # descriptor wait in the peer's queue.
        socket.send_fds(connected, [b"m"], [memory.fileno()])
    for peer, connected in sockets.items():
        connected.settimeout(max(_RETRY_S, timer.remaining_s))
        try:
            _, fds, _, _ = socket.recv_fds(connected, 1, 1)
        except TimeoutError:
            raise _timeout_error(config, peer) from None
        if not fds:
            raise CommunicationError(f"local rank {peer} has ended; its log says why")
        found[peer] = PeerMemory(fds[0])
    return found


def _timeout_error(config: PeerConfig, peer: int) -> CommunicationError:
    return CommunicationError(
        f"local rank {peer} of {config.size} hasn't connected within {config.connect_timeout_s:g} s"
    )


def _close(sockets: dict[int, socket.socket]) -> None:
    for connected in sockets.values():
        with contextlib.suppress(OSError):
            connected.close()
