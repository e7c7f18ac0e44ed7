"""Connects the workers of several hosts by TCP."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Sequence

from tfddl._src.comm.native.backend import Network
from tfddl._src.comm.native.mesh import Mesh
from tfddl._src.comm.native.message_socket import StreamSocket
from tfddl._src.comm.native.messages import PeerConfig
from tfddl._src.comm.native.tcp_backend import TcpBackend
from tfddl._src.comm.native.tcp_connector import MESSAGES, TcpConnector
from tfddl._src.comm.native.tree import neighbours


def connect_hosts(config: PeerConfig, connector: TcpConnector, members: Sequence[int]) -> Network:
    """Connects to workers of other hosts. All of these workers must call it together.

    Args:
        config: this worker; ranks are those of the job.
        connector: this worker's, started. It is closed with the network, or if this fails.
        members: ranks of those that are in operations of all: of each host one. They connect to
            their neighbours now, and make sure that they reach some others; any two workers of
            different hosts connect where they need it.

    Raises:
        CommunicationError: a worker can't be reached, or hasn't connected in time.
    """
    peers, later = [], []
    if config.rank in members:
        peers = neighbours(members, config.rank)
        index, size = members.index(config.rank), len(members)
        later = [members[(index + 2**k) % size] for k in range((size - 1).bit_length())]
    try:
        # Before the others know that this one is connected, and one of them may end.
        connector.check_reach(later, timeout_s=config.connect_timeout_s)
        sockets = connector.connect(peers, MESSAGES, timeout_s=config.connect_timeout_s)
    except BaseException:
        connector.close()
        raise

    def dial(peer: int, *, timeout_s: float, check: Callable[[], None]) -> StreamSocket | None:
        connected = connector.dial(peer, timeout_s=timeout_s, check=check)
        return None if connected is None else StreamSocket(connected)

    def accept(peer: int, connected: socket.socket) -> None:
        mesh.add_socket(peer, StreamSocket(connected))

    links = {peer: StreamSocket(connected) for peer, connected in sockets.items()}
    mesh = Mesh(config, links, dial, connector.reach)
    connector.accept_messages(accept)
    mesh.close_with([connector])
    return Network("TCP", mesh, functools.partial(TcpBackend, mesh, connector=connector))
