"""How the workers of a host find each other: Unix sockets without a file, of this user alone.

The names are *abstract*: they vanish with the process, there is nothing to clean up, and they are
seen only within a network namespace, so that containers with networks of their own are hosts of
their own. Abstract names have no permissions; so each side asks the kernel whose process is at the
other end, and speaks to nobody else.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import struct
import sys
import time

from tfddl.errors import WireError
from tfddl.wire.carrier import Network
from tfddl.wire.links import PacketLink
from tfddl.wire.memory import PeerMemory, SharedMemory
from tfddl.wire.mesh import LONGEST_MESSAGE, Mesh
from tfddl.wire.messages import Seat, hashed
from tfddl.wire.segments import Segments

_CREDENTIALS = struct.Struct("3i")
_HELLO = struct.Struct("<I")
_RETRY_S = 0.01


def connect(seat: Seat) -> Network:
    """Connects the workers of a host. All of them must call it together.

    Returns:
        Sockets between them, and memory that they show each other.

    Raises:
        WireError: it can't be done here, or another worker hasn't come in time.
    """
    if not sys.platform.startswith("linux"):
        raise WireError(f"{sys.platform} has no shared memory without a name")
    deadline = time.monotonic() + seat.timeout_s
    sockets: dict[int, socket.socket] = {}
    try:
        with _listen(seat) as listener:
            for peer in range(seat.rank):
                sockets[peer] = _call(seat, peer, deadline)
            while len(sockets) < seat.size - 1:
                peer, connected = _answer(seat, listener, deadline, set(sockets))
                sockets[peer] = connected
        memory = SharedMemory()
        memory.check_views()
        peers = _exchange_memories(seat, sockets, memory, deadline)
    except OSError as error:
        _close(sockets)
        raise WireError(str(error)) from error
    except WireError:
        _close(sockets)
        raise
    links = {p: PacketLink(s, longest=LONGEST_MESSAGE) for p, s in sockets.items()}
    mesh = Mesh(seat, links)
    carrier = functools.partial(Segments, mesh, memory=memory, peers=peers)
    return Network("shared memory", mesh, carrier)


def _name(seat: Seat, rank: int) -> str:
    return f"\0tfddl-{os.getuid()}-{hashed(seat.job):016x}-{rank}"


def _listen(seat: Seat) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(_name(seat, seat.rank))
        listener.listen(seat.size)
    except OSError as error:
        listener.close()
        raise WireError(f"can't listen for the other workers: {error.strerror}") from error
    return listener


def _call(seat: Seat, peer: int, deadline: float) -> socket.socket:
    """Connects to a worker of a lower rank, once it listens."""
    while True:
        caller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            caller.connect(_name(seat, peer))
        except (ConnectionRefusedError, BlockingIOError):
            caller.close()
            if time.monotonic() > deadline:
                raise _too_late(seat, peer) from None
            time.sleep(_RETRY_S)
            continue
        if not _is_ours(caller):
            caller.close()
            raise WireError("a process of another user has the name of one of the workers")
        caller.sendall(_HELLO.pack(seat.rank))
        return caller


def _answer(
    seat: Seat, listener: socket.socket, deadline: float, known: set[int]
) -> tuple[int, socket.socket]:
    """Takes the call of a worker of a higher rank."""
    while True:
        listener.settimeout(max(_RETRY_S, deadline - time.monotonic()))
        try:
            connected, _ = listener.accept()
        except TimeoutError:
            missing = next(r for r in range(seat.rank + 1, seat.size) if r not in known)
            raise _too_late(seat, missing) from None
        if _is_ours(connected):
            connected.settimeout(max(_RETRY_S, deadline - time.monotonic()))
            data = connected.recv(_HELLO.size)
            if len(data) == _HELLO.size:
                return _HELLO.unpack(data)[0], connected
        connected.close()


def _is_ours(connected: socket.socket) -> bool:
    """Whether the process at the other end is this user's."""
    told = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(told)
    return bool(user == os.getuid())


def _exchange_memories(
    seat: Seat, sockets: dict[int, socket.socket], memory: SharedMemory, deadline: float
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
            raise WireError(f"local rank {peer} has ended")
        found[peer] = PeerMemory(fds[0])
    return found


def _too_late(seat: Seat, peer: int) -> WireError:
    return WireError(f"local rank {peer} of {seat.size} hasn't come within {seat.timeout_s:g} s")


def _close(sockets: dict[int, socket.socket]) -> None:
    for connected in sockets.values():
        with contextlib.suppress(OSError):
            connected.close()
