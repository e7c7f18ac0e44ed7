"""Where the workers of a crew come in for their orders: both ends of it.

On one machine it is a Unix socket of this user, from other hosts TCP. Either side proves to the
other that it knows a secret, before it believes anything that it is told
(`rendezvous.endpoint`). The secret is in the environment of the workers, and on no command line.
"""

import os
import queue
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from tfddl._src.cluster import join_address
from tfddl._src.rendezvous.endpoint import Client, Endpoint, RefuseError, listen_tcp, listen_unix
from tfddl._src.rendezvous.handshake import dial_tcp, dial_unix
from tfddl.bench.channel import Channel
from tfddl.errors import ConnectError, LaunchError

SECRET = "TFDDL_BENCH_SECRET"
"""The variable that has it."""

_UNIX = "@"
"""What the name of a Unix socket begins with; no address does."""

_RETRY_S = 0.1


class Entrance:
    """Open while a crew starts; a context manager that closes it.

    Attributes:
        name: what workers are told, for `connect`.
        environment: what they have to inherit.
    """

    def __init__(self, server: socket.socket, name: str) -> None:
        """Takes over a socket that listens, and makes a secret.

        Args:
            server: Which.
            name: See above.
        """
        secret = secrets.token_hex(32)
        self.name = name
        self.environment = {SECRET: secret}
        self._admitted: queue.SimpleQueue[Channel] = queue.SimpleQueue()
        self._ranks: set[int] = set()
        self._endpoint = Endpoint(server, secret.encode(), check=self._check, admit=self._admit)
        self._endpoint.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Lets nobody in any more; those who have been let in before, stay."""
        self._endpoint.close()
        while not self._admitted.empty():
            self._admitted.get().close()

    def accept(self, *, wait_s: float) -> Channel | None:
        """The next worker who has come in; None where none comes in this time."""
        try:
            return self._admitted.get(timeout=wait_s)
        except queue.Empty:
            return None

    def _check(self, hello: Mapping[str, Any]) -> None:
        rank = hello.get("rank")
        if type(rank) is not int or rank < 0:
            raise RefuseError(f"{rank!r} is no rank")
        if rank in self._ranks:
            raise RefuseError(f"rank {rank} is here already")

    def _admit(self, caller: Client) -> None:
        self._ranks.add(caller.hello["rank"])
        self._admitted.put(Channel(caller.connection))


def open_socket() -> Entrance:
    """Opens an entrance for this user's processes on this machine.

    Raises:
        LaunchError: The system has no such sockets.
    """
    name = f"tfddl-bench-{secrets.token_hex(16)}"
    try:
        return Entrance(listen_unix(name, socket.SOCK_STREAM), _UNIX + name)
    except OSError as error:
        raise LaunchError(f"can't listen for workers: {error.strerror}") from error


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
            server = listen_tcp(port)
        else:
            family = socket.AF_INET6 if ":" in addresses[0] else socket.AF_INET
            server = socket.create_server((addresses[0], port), family=family)
    except OSError as error:
        # Python adds to the text of some errors what it was about to do.
        number = error.errno or 0
        why = os.strerror(number) if number > 0 else error.strerror
        raise LaunchError(
            f"can't listen on port {port} of {', '.join(dict.fromkeys(addresses))}: {why}. HINT: "
            "--address HOST:PORT names another port, and --address HOST takes one that is free"
        ) from error
    port = server.getsockname()[1]
    return Entrance(server, ",".join(join_address(address, port) for address in addresses))


def connect(
    name: str, *, rank: int, host: int, environment: Mapping[str, str], timeout_s: float
) -> Channel:
    """Comes in at an entrance.

    Args:
        name: Of the entrance.
        rank: This worker's.
        host: This host's number among those of the crew.
        environment: This process's.
        timeout_s: How long it may take.

    Raises:
        LaunchError: Nobody is found there, or we aren't let in.
    """
    key, hello = environment.get(SECRET, "").encode(), {"rank": rank}
    until_s = time.monotonic() + timeout_s
    first: ConnectError | None = None
    while True:
        try:
            left_s = until_s - time.monotonic()
            return Channel(_dial(name, host, key, hello, timeout_s=left_s))
        except ConnectError as error:
            first = first or error
            # Where strangers throng, one of us may be dropped with them.
            is_final = error.is_refused or not error.has_answered
            if is_final or time.monotonic() + _RETRY_S > until_s:
                why = error if is_final else first
                raise LaunchError(_describe(name, host, why)) from error
            time.sleep(_RETRY_S)


def _dial(
    name: str, host: int, key: bytes, hello: Mapping[str, Any], *, timeout_s: float
) -> socket.socket:
    if name.startswith(_UNIX):
        path = name.removeprefix(_UNIX)
        return dial_unix(path, socket.SOCK_STREAM, key, hello, timeout_s=timeout_s)
    text, _, port = name.split(",")[host].rpartition(":")
    return dial_tcp(text.strip("[]"), int(port), key, hello, timeout_s=timeout_s)


def _describe(name: str, host: int, error: ConnectError) -> str:
    if name.startswith(_UNIX):
        return f"tfddl-bench isn't found at {name}: {error}"
    return (
        f"tfddl-bench isn't found at {name.split(',')[host]}: {error}. HINT: tfddl-bench --address "
        "HOST[:PORT] names the address by which its hosts reach the machine that it runs on, and a "
        "port that firewalls let through"
    )
