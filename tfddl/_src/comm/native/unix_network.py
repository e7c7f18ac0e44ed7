"""How the workers of a host connect to each other: abstract Unix sockets, of this user only.

*Abstract* names (unix(7)) have no file: they vanish with the process that has bound them. They are
visible within one network namespace only, so containers with networks of their own are hosts of
their own. They have no permissions either: each side checks by SO_PEERCRED whose process is at the
other end, and that it knows the job's secret, see `rendezvous.endpoint`.

Each worker listens as long as it lives. At the start it connects to its neighbours only, see
`mesh`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from tfddl._src.comm.native.backend import Network
from tfddl._src.comm.native.mesh import Mesh
from tfddl._src.comm.native.message_socket import SeqpacketSocket
from tfddl._src.comm.native.messages import MAX_MESSAGE_BYTES, PeerConfig, stable_hash
from tfddl._src.comm.native.peer_dialer import PeerEndedError
from tfddl._src.comm.native.shm import MemoryFile, SharedMemory
from tfddl._src.comm.native.shm_backend import ShmBackend
from tfddl._src.comm.native.tree import Tree, neighbours
from tfddl._src.rendezvous.endpoint import Client, Endpoint, RefuseError, listen_unix
from tfddl._src.rendezvous.handshake import dial_unix
from tfddl._src.wait_timer import WaitTimer
from tfddl.errors import CommunicationError, ConnectError, UntrustedPeerError

_RETRY_S = 0.01

# How much longer to wait for those that wait for others: they know better who is missing.
_LATER_S = 5.0

# What neighbours tell each other at the start: that all beyond are connected, or why they can't be.
_READY, _FAILED = b"r", b"f"
_MAX_TEXT_BYTES = 1000


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
    acceptor = _Acceptor(config)
    sockets: dict[int, socket.socket] = {}
    file = None
    try:
        peers = neighbours(range(config.size), config.rank)
        # Each pair has one connection, made by its higher rank.
        for peer in peers:
            if peer < config.rank:
                sockets[peer] = _dial(config, peer, timer)
        sockets |= acceptor.wait([peer for peer in peers if peer > config.rank], timer)
        file = _share_file(config, sockets, timer)
        memory = SharedMemory(file, config.rank)
        memory.check_private_views()
    except (CommunicationError, OSError) as error:
        if file is None:
            _tell_failure(sockets | acceptor.accepted, str(error))
        else:  # The others may have begun: they notice by the end of the connections.
            file.close()
        acceptor.close()
        _close(sockets)
        if isinstance(error, CommunicationError):
            raise
        raise CommunicationError(str(error)) from error

    def dial(peer: int, *, timeout_s: float, check: Callable[[], None]) -> SeqpacketSocket | None:
        connected = _dial_any(config, peer, WaitTimer(abort_s=timeout_s), check)
        return None if connected is None else _message_socket(connected)

    links = {peer: _message_socket(connected) for peer, connected in sockets.items()}
    mesh = Mesh(config, links, dial)
    acceptor.hand_over(lambda peer, connected: mesh.add_socket(peer, _message_socket(connected)))
    mesh.close_with([acceptor, file])
    return Network("shared memory", mesh, functools.partial(ShmBackend, mesh, memory=memory))


class _Acceptor:
    """Accepts connections of other workers."""

    def __init__(self, config: PeerConfig) -> None:
        self._config = config
        self._accepted: dict[int, socket.socket] = {}
        self._take: Callable[[int, socket.socket], None] | None = None
        self._changed = threading.Condition()
        try:
            listener = listen_unix(_socket_name(config, config.rank), socket.SOCK_SEQPACKET)
        except OSError as error:
            raise CommunicationError(
                f"can't listen for the other workers: {error.strerror}"
            ) from error
        self._endpoint = Endpoint(listener, config.secret, check=self._check, admit=self._admit)
        self._endpoint.start()

    def wait(self, expected: list[int], timer: WaitTimer) -> dict[int, socket.socket]:
        """The sockets of some workers by rank, once all of them have connected."""

        def missing() -> list[int]:
            return [peer for peer in expected if peer not in self._accepted]

        with self._changed:
            self._changed.wait_for(lambda: not missing(), timeout=timer.remaining_s)
            if missing():
                raise _timeout_error(self._config, missing()[0])
            return {peer: self._accepted.pop(peer) for peer in expected}

    @property
    def accepted(self) -> dict[int, socket.socket]:
        """The sockets that nobody has taken yet, by rank."""
        with self._changed:
            return dict(self._accepted)

    def hand_over(self, take: Callable[[int, socket.socket], None]) -> None:
        """From now on hands over the connections that others make; in any thread."""
        with self._changed:
            self._take, early = take, self._accepted
            self._accepted = {}
        for peer, connected in early.items():
            take(peer, connected)

    def close(self) -> None:
        """Stops listening."""
        self._endpoint.close()
        _close(self._accepted)

    def _check(self, hello: Mapping[str, Any]) -> None:
        rank, own = hello.get("rank"), self._config.rank
        if type(rank) is not int or not 0 <= rank < self._config.size or rank == own:
            raise RefuseError(f"rank {rank} doesn't connect to rank {own}")
        with self._changed:
            if rank in self._accepted:
                raise RefuseError(f"rank {rank} is connected already")

    def _admit(self, client: Client) -> None:
        rank = client.hello["rank"]
        with self._changed:
            take = self._take
            if take is None:
                self._accepted[rank] = client.connection
                self._changed.notify_all()
        if take is not None:
            take(rank, client.connection)


def _socket_name(config: PeerConfig, rank: int) -> str:
    # At most 39 bytes: the kernel takes 107 in an abstract name (unix(7)). The user is in it so
    # that jobs of two users can't meet; `dial_unix` checks whose process answers.
    return f"tfddl-{os.getuid()}-{stable_hash(config.job):016x}-{rank}"


def _message_socket(connected: socket.socket) -> SeqpacketSocket:
    # SOCK_SEQPACKET: messages arrive whole, and need no length in front.
    return SeqpacketSocket(connected, max_bytes=MAX_MESSAGE_BYTES)


def _dial(config: PeerConfig, peer: int, timer: WaitTimer) -> socket.socket:
    """Connects to a worker at the start, once it listens."""
    while True:
        with contextlib.suppress(PeerEndedError):  # It hasn't begun yet.
            connected = _dial_any(config, peer, timer, lambda: None)
            if connected is not None:
                return connected
        if timer.is_expired():
            raise _timeout_error(config, peer)
        time.sleep(_RETRY_S)


def _dial_any(
    config: PeerConfig, peer: int, timer: WaitTimer, check: Callable[[], None]
) -> socket.socket | None:
    """Connects to a worker that listens, see `mesh.Dial`."""
    name, kind = _socket_name(config, peer), socket.SOCK_SEQPACKET
    hello = {"rank": config.rank}
    while True:
        check()
        try:
            left_s = max(_RETRY_S, timer.remaining_s)
            return dial_unix(name, kind, config.secret, hello, timeout_s=left_s, check=check)
        except ConnectError as error:
            if error.is_refused or isinstance(error, UntrustedPeerError):
                raise CommunicationError(f"local rank {peer}: {error}") from error
            if isinstance(error.__cause__, ConnectionRefusedError):  # Nobody listens.
                raise PeerEndedError from error
            if timer.is_expired():
                return None
        time.sleep(_RETRY_S)


def _share_file(
    config: PeerConfig, sockets: Mapping[int, socket.socket], timer: WaitTimer
) -> MemoryFile:
    """The first worker's memory file, once all workers are connected to their neighbours.

    That they are goes up the tree; the file comes down (SCM_RIGHTS, unix(7)).
    """
    place = Tree.of(config.rank, config.size)  # Its edges are among the connections.
    for child in place.children:
        _hear(config, child, sockets[child], timer)
    if place.parent is None:
        file = MemoryFile(config.size)
    else:
        parent = sockets[place.parent]
        with contextlib.suppress(ConnectionError):  # It has ended, which receiving tells.
            parent.send(_READY)
        fd = _hear(config, place.parent, parent, timer, with_fd=True)
        file = MemoryFile(config.size, fd)
    for child in place.children:
        with contextlib.suppress(ConnectionError):  # It has ended: whoever waits for it notices.
            socket.send_fds(sockets[child], [_READY], [file.fileno()])
    return file


def _hear(
    config: PeerConfig,
    peer: int,
    connected: socket.socket,
    timer: WaitTimer,
    *,
    with_fd: bool = False,
) -> int:
    """Waits for a neighbour's `_READY`; returns the descriptor that comes with it.

    Raises:
        CommunicationError: it hasn't come, or the neighbour says why it can't.
    """
    connected.settimeout(max(_RETRY_S, timer.remaining_s) + _LATER_S)
    try:
        try:
            data, fds, _, _ = socket.recv_fds(connected, _MAX_TEXT_BYTES, 1)
        except ConnectionResetError:
            # It has ended with something of ours unread; Linux reports that once, and then still
            # delivers what it had sent.
            data, fds, _, _ = socket.recv_fds(connected, _MAX_TEXT_BYTES, 1)
    except TimeoutError:
        raise _timeout_error(config, peer) from None
    if data.startswith(_FAILED):
        raise CommunicationError(data[len(_FAILED) :].decode(errors="replace"))
    if data != _READY or len(fds) != with_fd:
        raise CommunicationError(f"local rank {peer} has ended; its log says why")
    return fds[0] if fds else -1


def _tell_failure(sockets: Mapping[int, socket.socket], text: str) -> None:
    """Tells the neighbours why this worker can't be connected."""
    for connected in sockets.values():
        with contextlib.suppress(OSError):  # It has ended, or has failed itself.
            connected.send(_FAILED + text.encode()[: _MAX_TEXT_BYTES - len(_FAILED)])


def _timeout_error(config: PeerConfig, peer: int) -> CommunicationError:
    return CommunicationError(
        f"local rank {peer} of {config.size} hasn't connected within {config.connect_timeout_s:g} s"
    )


def _close(sockets: Mapping[int, socket.socket]) -> None:
    for connected in sockets.values():
        with contextlib.suppress(OSError):
            connected.close()
