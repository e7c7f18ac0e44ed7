"""What one TCP stream carries between two hosts: what the network gives to whoever asks."""

import contextlib
import socket
import statistics
import time

import tfddl
from tfddl.bench.results import Labels, Row
from tfddl.bench.session import Session

_BYTES = 64 * 2**20
_REPETITIONS = 7
_TIMEOUT_S = 20.0


def measure_stream(session: Session) -> list[Row]:
    """From the first host to the second. All ranks must call it together.

    No row where the second host can't be reached so: then the progress says why.
    """
    rank, (first, second) = session.cluster.rank, session.leaders[:2]
    with contextlib.ExitStack() as stack:
        there = None
        if rank == second:
            listener = stack.enter_context(socket.create_server(("", 0)))
            there = session.cluster.host, listener.getsockname()[1]
        address = tfddl.broadcast_object(there, second)
        gb_per_s, error = 0.0, ""
        try:
            if rank == second:
                receive(listener, _BYTES)
            elif rank == first:
                gb_per_s = _BYTES / send(address, _BYTES) / 1e9
        except OSError as caught:
            error = f"{type(caught).__name__}: {caught}"
    gb_per_s, error = tfddl.broadcast_object((gb_per_s, error), first)
    if error:
        session.say(f"a TCP stream between the hosts can't be measured: {error}")
        return []
    labels: Labels = {"workers": session.cluster.size, "by": session.by}
    return [Row("stream", labels, {"gb_per_s": gb_per_s})]


def receive(listener: socket.socket, num_bytes: int) -> None:
    """Takes in what `send` sends, until it ends; raises OSError after 20 s without anything."""
    listener.settimeout(_TIMEOUT_S)
    buffer = bytearray(num_bytes)
    connection, _ = listener.accept()
    connection.settimeout(_TIMEOUT_S)
    with connection, connection.makefile("rb") as stream:
        while stream.readinto(buffer) == num_bytes:
            connection.sendall(b"!")


def send(address: tuple[str, int], num_bytes: int) -> float:
    """How many seconds it takes to send so many bytes to `receive`: the median of seven times."""
    data, taken = bytes(num_bytes), []
    with socket.create_connection(address, timeout=_TIMEOUT_S) as connection:
        for _ in range(_REPETITIONS):
            began_s = time.perf_counter()
            connection.sendall(data)
            if not connection.recv(1):
                raise ConnectionError("the receiver has gone")
            taken.append(time.perf_counter() - began_s)
    return statistics.median(taken)
