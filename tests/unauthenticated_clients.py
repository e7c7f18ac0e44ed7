"""Clients that aren't of the job, and connect where its workers listen."""

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

_MESSAGES = (
    b"GET / HTTP/1.1\r\n\r\n\n",
    b'{"rank": 1, "cluster": []}\n',
    b"[]\n",
    b"",
    b"tfddl\x00\x01\n" + bytes(16) + bytes(32) + struct.pack("<I", 2**32 - 1),
    b"tfddl\x00\x01\n" + bytes(16) + bytes(32) + struct.pack("<I", 2) + b"{}",
    os.urandom(4096),
)
_TIMEOUT_S = 60.0
"""For a worker to listen, which may have to import TensorFlow before."""

NUM_SILENT = 200
"""More than an endpoint keeps handshakes at a time."""


@contextlib.contextmanager
def attacking(
    target: tuple[str, int] | str, *, kind: socket.SocketKind = socket.SOCK_STREAM
) -> Iterator[None]:
    """Connects in every wrong way, while the block lasts.

    Some clients send nothing; some send a byte from time to time; some send something wrong, again
    and again. The block begins when the silent ones are connected.

    Args:
        target: a TCP address, or the name of a Unix socket.
        kind: type of the sockets.
    """
    stop, there = threading.Event(), threading.Event()
    with contextlib.ExitStack() as silent:

        def call() -> socket.socket:
            is_unix = isinstance(target, str)
            connection = socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET, kind)
            try:
                connection.settimeout(5)
                connection.connect(target)
            except OSError:
                connection.close()
                raise
            return connection

        def stay() -> None:
            held = [silent.enter_context(_connect_when_listening(call)) for _ in range(NUM_SILENT)]
            slow = silent.enter_context(_connect_when_listening(call))
            there.set()
            while not stop.wait(0.2):
                with contextlib.suppress(OSError):
                    slow.send(b"t")
                with contextlib.suppress(OSError):
                    held.append(silent.enter_context(call()))

        def send_wrong() -> None:
            while not stop.is_set():
                for message in _MESSAGES:
                    with contextlib.suppress(OSError), call() as connection:
                        connection.sendall(message)
                stop.wait(0.01)

        threads = [threading.Thread(target=one) for one in (stay, send_wrong)]
        for thread in threads:
            thread.start()
        try:
            assert there.wait(_TIMEOUT_S), "nothing listens"
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(timeout=30)


def _connect_when_listening(call: Callable[[], socket.socket]) -> socket.socket:
    """Tries until something listens."""
    until_s = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            return call()
        except OSError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.01)
