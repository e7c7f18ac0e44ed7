"""What one TCP stream carries from one host to another: what a cable gives to whoever asks."""

import socket
import statistics
import time
from contextlib import ExitStack

_ROUNDS = 7
_TIMEOUT_S = 20.0
_BUFFER_BYTES = 2**20


class Receiver:
    """The end that receives."""

    def __init__(self) -> None:
        """Listens on a port that is free, on all interfaces."""
        self._listener = socket.create_server(("", 0))
        self._listener.settimeout(_TIMEOUT_S)

    @property
    def port(self) -> int:
        """Where."""
        return int(self._listener.getsockname()[1])

    def receive(self, num_bytes: int) -> None:
        """Takes in what a sender sends, and closes."""
        buffer = bytearray(_BUFFER_BYTES)
        with self._listener:
            connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(_TIMEOUT_S)
            for _ in range(_ROUNDS):
                left = num_bytes
                while left:
                    got = connection.recv_into(buffer, min(left, _BUFFER_BYTES))
                    if not got:
                        raise ConnectionError("the sender has gone")
                    left -= got
                connection.sendall(b"!")


def send(host: str, port: int, num_bytes: int) -> float:
    """How many seconds so many bytes take, the median of some times.

    Args:
        host: Where the receiver is.
        port: Where it listens.
        num_bytes: How much is sent each time.

    Raises:
        OSError: It can't be reached, or has gone.
    """
    data = bytes(num_bytes)
    with ExitStack() as stack:
        connection = socket.create_connection((host, port), timeout=_TIMEOUT_S)
        stack.enter_context(connection)
        return statistics.median(_once(connection, data) for _ in range(_ROUNDS))


def _once(connection: socket.socket, data: bytes) -> float:
    began_s = time.perf_counter()
    connection.sendall(data)
    if not connection.recv(1):
        raise ConnectionError("the receiver has gone")
    return time.perf_counter() - began_s
