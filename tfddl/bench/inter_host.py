"""What one TCP stream carries between two hosts: what the network gives to whoever asks."""

import contextlib
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
    rank, (first, second) = session.cluster.rank, session.leaders[:2]
    with contextlib.ExitStack() as stack:
        there = None
        if rank == second:
            listener = stack.enter_context(listen())
            there = session.cluster.host, listener.getsockname()[1]
        host, port = tfddl.broadcast_object(there, second)
        gb_per_s, error = None, ""
        try:
            if rank == second:
                receive(listener, _BYTES)
            elif rank == first:
                gb_per_s = _BYTES / send(host, port, _BYTES) / 1e9
        except OSError as caught:
            error = f"{type(caught).__name__}: {caught}"
    found = Stream(workers=session.cluster.size, gb_per_s=gb_per_s, error=error)
    stream: Stream = tfddl.broadcast_object(found, first)
    return stream


def listen() -> socket.socket:
    """Listens for `send` on a free port of all interfaces."""
    listener = socket.create_server(("", 0))
    listener.settimeout(_TIMEOUT_S)
    return listener


def receive(listener: socket.socket, num_bytes: int) -> None:
    """Takes in what `send` sends.

    Raises:
        OSError: Nobody came within 20 s, or the sender has gone.
    """
    buffer = bytearray(_BUFFER_BYTES)
    connection, _ = listener.accept()
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
    """How many seconds it takes to send so many bytes to `receive`: the median of seven times.

    Raises:
        OSError: It can't be reached, or has gone.
    """
    data, taken = bytes(num_bytes), []
    with socket.create_connection((host, port), timeout=_TIMEOUT_S) as connection:
        for _ in range(_REPETITIONS):
            began_s = time.perf_counter()
            connection.sendall(data)
            if not connection.recv(1):
                raise ConnectionError("the receiver has gone")
            taken.append(time.perf_counter() - began_s)
    return statistics.median(taken)
