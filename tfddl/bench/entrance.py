"""Where the workers of a crew come in for their orders: both ends of it.

On one machine it is a socket in a folder that is its user's alone. From other hosts workers come
through TCP, and either side proves to the other that it knows a secret, before it believes anything
that it is told. The secret is in the environment of the workers, and on no command line.
"""

import contextlib
import os
import secrets
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Self

from tfddl.bench.channel import Channel
from tfddl.cluster import join_address
from tfddl.cluster.ports import listen_everywhere
from tfddl.errors import LaunchError

SECRET = "TFDDL_BENCH_SECRET"
"""The variable that has it."""

_LONGEST_SOCKET = 107
_STRANGER_S = 5.0
"""For whoever comes in to prove who he is; others have to wait meanwhile."""

_Step = Callable[[Connection, bytes], None]


class Entrance:
    """Open while a crew starts; a context manager that closes it.

    Attributes:
        name: what workers are told, for `connect`.
        environment: what they have to inherit.
    """

    def __init__(self, server: socket.socket, name: str, *, secret: str = "") -> None:
        """Takes over a socket that listens.

        Args:
            server: Which.
            name: See above.
            secret: What workers have to know; nothing where the system lets nobody else in.
        """
        self.name = name
        self.environment = {SECRET: secret} if secret else {}
        self._server, self._secret = server, secret.encode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        if self._server.family == socket.AF_UNIX:
            Path(self.name).unlink(missing_ok=True)

    def accept(self, *, wait_s: float) -> Channel | None:
        """Lets the next worker in; None where none has come, or a stranger."""
        self._server.settimeout(wait_s)
        try:
            found, _ = self._server.accept()
        except (TimeoutError, ConnectionAbortedError):
            return None
        if not self._secret:
            return Channel(found)
        with contextlib.suppress(AuthenticationError, EOFError, OSError):
            steps = (deliver_challenge, answer_challenge)
            return _shake_hands(found, self._secret, steps, timeout_s=_STRANGER_S)
        return None


def open_socket(path: Path) -> Entrance:
    """Opens an entrance for this user's processes on this machine.

    Args:
        path: A name that is free, in a folder that nobody else can enter.

    Raises:
        LaunchError: The name is too long.
    """
    if len(os.fsencode(path)) > _LONGEST_SOCKET:
        raise LaunchError(
            f"{path} is too long a name for a socket, which can have {_LONGEST_SOCKET} "
            "bytes. HINT: let TMPDIR be a folder with a shorter name."
        )
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(socket.SOMAXCONN)
    return Entrance(server, str(path))


def open_port(addresses: Sequence[str], *, port: int = 0, everywhere: bool = False) -> Entrance:
    """Opens an entrance for whoever is given the secret.

    Args:
        addresses: By which each host of the crew reaches this machine, in the order of the hosts.
        port: Where to listen; 0 is any that is free.
        everywhere: Whether to listen on all of this machine's addresses, though one be enough.

    Raises:
        LaunchError: Nothing can listen there.
    """
    try:
        if everywhere or len(set(addresses)) > 1:
            server = listen_everywhere(port, after_others=True)
            server.listen(socket.SOMAXCONN)
        else:
            family = socket.AF_INET6 if ":" in addresses[0] else socket.AF_INET
            server = socket.create_server((addresses[0], port), family=family)
    except OSError as error:
        raise LaunchError(
            f"can't listen on port {port} of {', '.join(dict.fromkeys(addresses))}: "
            f"{error.strerror}. HINT: --address HOST:PORT names another port, and --address HOST "
            "takes one that is free"
        ) from error
    port = server.getsockname()[1]
    name = ",".join(join_address(address, port) for address in addresses)
    return Entrance(server, name, secret=secrets.token_hex(32))


def connect(name: str, *, host: int, environment: Mapping[str, str], timeout_s: float) -> Channel:
    """Comes in at an entrance.

    Args:
        name: Of the entrance.
        host: This host's number among those of the crew.
        environment: This process's.
        timeout_s: How long it may take.

    Raises:
        LaunchError: Nobody is found there.
    """
    if SECRET not in environment:
        found = socket.socket(socket.AF_UNIX)
        try:
            found.connect(name)
        except OSError as error:
            found.close()
            raise LaunchError(f"tfddl-bench isn't found at {name}: {error.strerror}") from error
        return Channel(found)
    address = name.split(",")[host]
    text, _, port = address.rpartition(":")
    steps = (answer_challenge, deliver_challenge)
    try:
        found = socket.create_connection((text.strip("[]"), int(port)), timeout=timeout_s)
        return _shake_hands(found, environment[SECRET].encode(), steps, timeout_s=timeout_s)
    # An older Python asserts what a newer one makes an AuthenticationError.
    except (OSError, EOFError, AuthenticationError, AssertionError) as error:
        raise LaunchError(
            f"tfddl-bench isn't found at {address}: {_describe(error, timeout_s)}. HINT: "
            "tfddl-bench --address HOST[:PORT] names the address by which its hosts reach the "
            "machine that it runs on, and a port that firewalls let through"
        ) from error


def _shake_hands(
    found: socket.socket, secret: bytes, steps: Sequence[_Step], *, timeout_s: float
) -> Channel:
    """Makes sure that both sides know the secret; where they don't, the socket is closed.

    These steps exchange bytes; nothing is unpickled.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(found)
        found.settimeout(None)
        _limit_reading(found, timeout_s)
        with Connection(os.dup(found.fileno())) as connection:
            for step in steps:
                step(connection, secret)
        _limit_reading(found, 0.0)
        stack.pop_all()
    return Channel(found)


def _limit_reading(found: socket.socket, timeout_s: float) -> None:
    """Makes reads fail after so long a silence; 0 is never. A `Connection` has no such limit."""
    seconds, rest_s = divmod(timeout_s, 1)
    value = struct.pack("@ll", int(seconds), int(rest_s * 1e6))
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)


def _describe(error: Exception, timeout_s: float) -> str:
    if isinstance(error, (TimeoutError, BlockingIOError)):
        return f"no answer within {timeout_s:g} s"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "what answers there is something else"
