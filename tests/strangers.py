"""Processes that aren't of the job, and call where its workers listen."""

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

_WORDS = (
    b"GET / HTTP/1.1\r\n\r\n\n",
    b'{"rank": 1, "cluster": []}\n',
    b"[]\n",
    b"",
    b"tfddl\x00\x01\n" + bytes(16) + bytes(32) + struct.pack("<I", 2**32 - 1),
    b"tfddl\x00\x01\n" + bytes(16) + bytes(32) + struct.pack("<I", 2) + b"{}",
    os.urandom(4096),
)
_PATIENCE_S = 60.0
"""For a worker to listen: before, it may have to import TensorFlow."""

NUM_SILENT = 200
"""More than handshakes are kept at a time."""


@contextlib.contextmanager
def attacking(
    target: tuple[str, int] | str, *, kind: socket.SocketKind = socket.SOCK_STREAM
) -> Iterator[None]:
    """Calls there in every wrong way, while the block lasts.

    Some say nothing, and stay; some say a byte from time to time; some say what is wrong, again and
    again. It begins when they are there.

    Args:
        target: an address of TCP, or the name of a Unix socket.
        kind: of the socket.
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
            held = [silent.enter_context(_patient(call)) for _ in range(NUM_SILENT)]
            slow = silent.enter_context(_patient(call))
            there.set()
            while not stop.wait(0.2):
                with contextlib.suppress(OSError):
                    slow.send(b"t")
                with contextlib.suppress(OSError):
                    held.append(silent.enter_context(call()))

        def speak() -> None:
            while not stop.is_set():
                for words in _WORDS:
                    with contextlib.suppress(OSError), call() as connection:
                        connection.sendall(words)
                stop.wait(0.01)

        threads = [threading.Thread(target=one) for one in (stay, speak)]
        for thread in threads:
            thread.start()
        try:
            assert there.wait(_PATIENCE_S), "nobody listens"
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(timeout=30)


def _patient(call: Callable[[], socket.socket]) -> socket.socket:
    """Calls until somebody listens."""
    until_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return call()
        except OSError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.01)
