"""What one TCP stream carries between two hosts: what the network gives to whoever asks."""

import socket
import statistics
import time

import tfddl
from tfddl.bench.results import Stream
from tfddl.bench.session import Session

_BYTES = 64 * 2**20
_REPETITIONS = 7
_TIMEOUT_S = 20.0
_BUFFER_BYTES = 2**20


def measure_stream(session: Session) -> Stream:
    """From the first host to the second. All ranks must call it together."""
    first, second = session.leaders[:2]
    rank, size = session.cluster.rank, session.cluster.size
    receiver = Receiver() if rank == second else None
    there = (session.cluster.host, receiver.port) if receiver is not None else None
    host, port = tfddl.broadcast_object(there, second)
    found = Stream(workers=size, gb_per_s=None)
    try:
        if receiver is not None:
            receiver.receive(_BYTES)
        elif rank == first:
            found = Stream(workers=size, gb_per_s=_BYTES / send(host, port, _BYTES) / 1e9)
    except OSError as error:
        found = Stream(workers=size, gb_per_s=None, error=f"{type(error).__name__}: {error}")
    result: Stream = tfddl.broadcast_object(found, first)
    return result


class Receiver:
    """The receiving end: listens on a free port of all interfaces."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("", 0))
        self._listener.settimeout(_TIMEOUT_S)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    def receive(self, num_bytes: int) -> None:
        """Takes in what `send` sends, and closes.

        Raises:
            OSError: Nobody came within 20 s, or the sender has gone.
        """
        buffer = bytearray(_BUFFER_BYTES)
        with self._listener:
            connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(_TIMEOUT_S)
            for _ in range(_REPETITIONS):
                left = num_bytes
                while left:
                    got = connection.recv_into(buffer, min(left, _BUFFER_BYTES))
                    if not got:
                        raise ConnectionError("the sender has gone")
                    left -= got
                connection.sendall(b"!")


def send(host: str, port: int, num_bytes: int) -> float:
    """How many seconds it takes to send so many bytes: the median of seven times.

    Args:
        host: Where the receiver is.
        port: Where it listens.
        num_bytes: How much is sent each time.

    Raises:
        OSError: It can't be reached, or has gone.
    """
    data = bytes(num_bytes)
    with socket.create_connection((host, port), timeout=_TIMEOUT_S) as connection:
        return statistics.median(_send_once(connection, data) for _ in range(_REPETITIONS))


def _send_once(connection: socket.socket, data: bytes) -> float:
    began_s = time.perf_counter()
    connection.sendall(data)
    if not connection.recv(1):
        raise ConnectionError("the receiver has gone")
    return time.perf_counter() - began_s
