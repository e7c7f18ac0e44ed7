"""How the workers of several hosts get connected: `TcpRendezvous` and `TcpBackend` put together."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from tfddl._src.comm.native.backend import Network
from tfddl._src.comm.native.mesh import Mesh
from tfddl._src.comm.native.message_socket import StreamSocket
from tfddl._src.comm.native.messages import PeerConfig
from tfddl._src.comm.native.tcp_backend import TcpBackend
from tfddl._src.comm.native.tcp_rendezvous import TcpRendezvous

_MESSAGES = 0
"""The purpose of the links for messages."""


def connect_hosts(seat: PeerConfig, lobby: TcpRendezvous, peers: Sequence[int]) -> Network:
    """Connects workers of several hosts. All of them must call it together.

    Args:
        seat: who this worker is; numbers are the ranks of the job.
        lobby: this worker's, which has learnt of the others; it is closed with the network, or if
            this fails.
        peers: who is on other hosts; only with these can operations be had.

    Returns:
        Streams between them.

    Raises:
        CommunicationError: one can't be reached, or hasn't come in time.
    """
    try:
        sockets = lobby.meet(peers, _MESSAGES, timeout_s=seat.timeout_s)
    except BaseException:
        lobby.close()
        raise
    mesh = Mesh(seat, {peer: StreamSocket(connected) for peer, connected in sockets.items()})
    mesh.keep([lobby])
    return Network("TCP", mesh, functools.partial(TcpBackend, mesh, lobby=lobby))
