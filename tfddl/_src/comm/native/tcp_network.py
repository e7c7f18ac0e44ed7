"""Connects the workers of several hosts by TCP."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from tfddl._src.comm.native.backend import Network
from tfddl._src.comm.native.mesh import Mesh
from tfddl._src.comm.native.message_socket import StreamSocket
from tfddl._src.comm.native.messages import PeerConfig
from tfddl._src.comm.native.tcp_backend import TcpBackend
from tfddl._src.comm.native.tcp_connector import TcpConnector

# The purpose of the sockets for messages, as `TcpConnector.connect` has it.
_MESSAGES = 0


def connect_hosts(config: PeerConfig, connector: TcpConnector, peers: Sequence[int]) -> Network:
    """Connects to workers of other hosts. All of these workers must call it together.

    Args:
        config: this worker; ranks are those of the job.
        connector: this worker's, started. It is closed with the network, or if this fails.
        peers: ranks of the workers on other hosts. Only these can be in operations.

    Raises:
        CommunicationError: a worker can't be reached, or hasn't connected in time.
    """
    try:
        sockets = connector.connect(peers, _MESSAGES, timeout_s=config.connect_timeout_s)
    except BaseException:
        connector.close()
        raise
    mesh = Mesh(config, {peer: StreamSocket(connected) for peer, connected in sockets.items()})
    mesh.close_with([connector])
    return Network("TCP", mesh, functools.partial(TcpBackend, mesh, connector=connector))
