"""Which clients an endpoint admits, and what refusing the others costs."""

import contextlib
import hmac
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.processes import wait_until
from tests.unauthenticated_clients import attacking
from tfddl._src.cluster.ports import is_free
from tfddl._src.rendezvous import endpoint, handshake
from tfddl._src.rendezvous.endpoint import Client, Endpoint, RefuseError, listen_tcp, listen_unix
from tfddl._src.rendezvous.handshake import dial_tcp, dial_unix
from tfddl.errors import ConnectError

KEY = b"a key that only the workers of this job have"
TIMEOUT_S = 40.0
STREAM, PACKETS = socket.SOCK_STREAM, socket.SOCK_SEQPACKET
ROOT = Path(__file__).resolve().parent.parent


class Listening:
    """An endpoint, the clients that it has admitted, and how to connect to it."""

    def __init__(self, by: str, *, refuse: str = "") -> None:
        self.clients: list[Client] = []
        self.name = f"tfddl-test-{os.getpid()}-{time.monotonic_ns()}"
        self._by = by
        kind = PACKETS if by == "packets" else STREAM
        listener = listen_tcp() if by == "tcp" else listen_unix(self.name, kind)

        def check(hello: Mapping[str, Any]) -> None:
            if refuse:
                raise RefuseError(f"{refuse} {hello['rank']}")

        self.endpoint = Endpoint(listener, KEY, check=check, admit=self.clients.append)
        self.endpoint.start()

    @property
    def address(self) -> tuple[str, int] | str:
        return ("127.0.0.1", self.endpoint.port) if self._by == "tcp" else f"\0{self.name}"

    @property
    def kind(self) -> socket.SocketKind:
        return PACKETS if self._by == "packets" else STREAM

    def dial(self, hello: Mapping[str, Any], *, key: bytes = KEY) -> socket.socket:
        if self._by == "tcp":
            return dial_tcp("127.0.0.1", self.endpoint.port, key, hello, timeout_s=TIMEOUT_S)
        return dial_unix(self.name, self.kind, key, hello, timeout_s=TIMEOUT_S)

    def connect(self) -> socket.socket:
        """Connects without a handshake."""
        family = socket.AF_INET if self._by == "tcp" else socket.AF_UNIX
        connection = socket.socket(family, self.kind)
        connection.settimeout(TIMEOUT_S)
        connection.connect(self.address)
        return connection

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self.clients) >= count)


@pytest.fixture(params=["tcp", "stream", "packets"])
def listening(request: pytest.FixtureRequest) -> Iterator[Listening]:
    made = Listening(request.param)
    yield made
    made.endpoint.close()
    for client in made.clients:
        client.connection.close()


def test_a_client_with_the_key_is_admitted(listening: Listening) -> None:
    for number in range(5):
        hello = {"rank": number, "text": "ü" * 600}
        with listening.dial(hello) as connection:
            listening.wait_for(number + 1)
            client = listening.clients[number]
            assert client.hello == hello
            connection.sendall(b"there")
            assert client.connection.recv(100) == b"there"
            client.connection.sendall(b"and back")
            assert connection.recv(100) == b"and back"
            assert not connection.get_inheritable()
            assert not client.connection.get_inheritable()


def test_a_client_with_another_key_is_refused(listening: Listening) -> None:
    for key in (b"", b"x", KEY[:-1], KEY + b"x", KEY.upper()):
        with pytest.raises(ConnectError, match="closed the connection") as caught:
            listening.dial({"rank": 1}, key=key)
        assert not caught.value.is_refused
    assert not listening.clients


@pytest.mark.parametrize("by", ["tcp", "packets"])
def test_a_refused_client_is_told_why(by: str) -> None:
    made = Listening(by, refuse="nobody wants rank")
    with contextlib.closing(made.endpoint), pytest.raises(ConnectError) as caught:
        made.dial({"rank": 7})
    assert str(caught.value) == "nobody wants rank 7"
    assert caught.value.is_refused
    assert not made.clients


_HELLO = struct.Struct("<8s16s32sI")


def _hello(connection: socket.socket, text: bytes, *, label: bytes = b"caller") -> bytes:
    """A right hello, byte for byte; so the protocol can't change without this test."""
    magic, nonce = struct.unpack("<8s16s", connection.recv(24))
    assert magic == b"tfddl\x00\x01\n"
    own = bytes(range(16))
    mac = hmac.digest(KEY, label + nonce + own + text, "sha256")
    return _HELLO.pack(magic, own, mac, len(text)) + text


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:  # Not all had been read.
        return True


def _changed(place: int) -> Callable[[bytes], bytes]:
    return lambda hello: hello[:place] + bytes([hello[place] ^ 1]) + hello[place + 1 :]


WRONG: dict[str, Callable[[bytes], bytes]] = {
    "magic": _changed(0),
    "nonce": _changed(8),
    "first byte of the proof": _changed(24),
    "last byte of the proof": _changed(55),
    "length": lambda hello: hello[:56] + struct.pack("<I", 2**32 - 1) + hello[60:],
    "no length": lambda hello: hello[:56] + bytes(4),
    "text": _changed(62),
    "one byte less": lambda hello: hello[:56] + struct.pack("<I", hello[56] - 1) + hello[60:-1],
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_every_part_of_a_hello_is_checked(change: Callable[[bytes], bytes]) -> None:
    made = Listening("tcp")
    text = json.dumps({"rank": 1}).encode()
    with contextlib.closing(made.endpoint):
        with made.connect() as connection:
            connection.sendall(_hello(connection, text))
            assert len(connection.recv(36)) == 36
        made.wait_for(1)
        made.clients[0].connection.close()
        with made.connect() as connection:
            connection.sendall(change(_hello(connection, text)))
            assert _is_closed(connection)
        assert len(made.clients) == 1


@pytest.mark.parametrize("text", [b"[]", b"1", b"{", b'{"a": 1, "a": 2}', b"[" * 2000, b"\xff"])
def test_a_hello_that_is_no_object(text: bytes) -> None:
    made = Listening("tcp")
    with contextlib.closing(made.endpoint), made.connect() as connection:
        connection.sendall(_hello(connection, text))
        assert connection.recv(1) == b""
        assert not made.clients


def test_hellos_can_not_be_replayed() -> None:
    """Neither to the same endpoint, which has another nonce, nor reflected to the client."""
    made = Listening("tcp")
    with contextlib.closing(made.endpoint):
        with made.connect() as connection:
            hello = _hello(connection, b'{"rank": 1}')
            connection.sendall(hello)
            assert len(connection.recv(36)) == 36
        made.wait_for(1)
        made.clients[0].connection.close()
        with made.connect() as connection:
            connection.recv(24)
            connection.sendall(hello)
            assert connection.recv(1) == b""
        with made.connect() as connection:
            connection.sendall(_hello(connection, b'{"rank": 1}', label=b"listener"))
            assert connection.recv(1) == b""


def test_a_server_without_the_key_is_not_trusted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        pid = os.fork()
        if pid == 0:
            connection, _ = server.accept()
            connection.sendall(b"tfddl\x00\x01\n" + bytes(16))
            connection.recv(4096)
            connection.sendall(bytes(32) + struct.pack("<I", 2) + b"{}")
            connection.recv(4096)
            os._exit(0)
        with pytest.raises(ConnectError, match="doesn't know the secret of this job"):
            dial_tcp("127.0.0.1", port, KEY, {"rank": 1}, timeout_s=TIMEOUT_S)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("by", ["tcp", "stream", "packets"])
def test_unauthenticated_clients_delay_nobody(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for another client's handshake, which may take very long here."""
    monkeypatch.setattr(handshake, "HANDSHAKE_S", 10 * TIMEOUT_S)
    made = Listening(by)
    with contextlib.closing(made.endpoint), attacking(made.address, kind=made.kind):
        for number in range(50):  # Each within `TIMEOUT_S`.
            made.dial({"rank": number}).close()
        made.wait_for(50)
    for client in made.clients:
        client.connection.close()
    assert sorted(client.hello["rank"] for client in made.clients) == list(range(50))


def test_the_number_of_handshakes_is_limited() -> None:
    made = Listening("tcp")
    with contextlib.closing(made.endpoint), contextlib.ExitStack() as stack:
        silent = [stack.enter_context(made.connect()) for _ in range(endpoint.MAX_PENDING + 20)]
        dropped = 0
        for connection in silent[:-20]:
            assert len(connection.recv(24)) == 24
        for connection in silent[:20]:  # The oldest.
            connection.settimeout(TIMEOUT_S)
            dropped += connection.recv(1) == b""
        assert dropped == 20
        made.dial({"rank": 1}).close()
        assert len(silent[-1].recv(24)) == 24
        silent[-1].settimeout(0.05)
        with pytest.raises(TimeoutError):
            silent[-1].recv(1)
    made.clients[0].connection.close()


def test_the_deadline_of_a_handshake_does_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_S", 0.5)
    made = Listening("tcp")
    with contextlib.closing(made.endpoint), made.connect() as connection:
        connection.recv(24)
        connection.settimeout(0.3)
        is_closed = False
        for byte in b"tfddl\x00\x01\n" + bytes(40):  # 14 s, if they were all let come.
            try:
                connection.send(bytes([byte]))
                is_closed = connection.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                is_closed = True
            if is_closed:
                break
    assert is_closed


OUT_OF_DESCRIPTORS = """
import contextlib, resource, socket, time
from tfddl._src.rendezvous.endpoint import Endpoint, listen_tcp
clients = []
endpoint = Endpoint(listen_tcp(), b"key", check=lambda hello: None, admit=clients.append)
endpoint.start()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
print(endpoint.port, flush=True)
input()  # More clients have connected than there are descriptors.
deadline = time.monotonic() + 30
while len(clients) < 20 and time.monotonic() < deadline:
    time.sleep(0.01)
print(len(clients), flush=True)
"""


def test_unauthenticated_clients_do_not_use_up_the_descriptors() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", OUT_OF_DESCRIPTORS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(process.stdout.readline())
        assert 100 + 64 < resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=40))
        kept = [dial_tcp("127.0.0.1", port, b"key", {}, timeout_s=40.0) for _ in range(20)]
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "20\n"
        for connection in kept:
            connection.close()


def test_a_forked_child_keeps_nothing_open() -> None:
    made = Listening("tcp")
    with contextlib.closing(made.endpoint), made.dial({"rank": 1}) as connection:
        made.wait_for(1)
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        try:
            port = made.endpoint.port
            made.endpoint.close()
            wait_until(lambda: is_free(port))  # The child has its own time.
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        connection.sendall(b"x")
    made.clients[0].connection.close()


def test_connections_are_served_after_listening_has_stopped() -> None:
    served: list[bytes] = []
    made: list[Endpoint] = []

    def admit(client: Client) -> None:
        def on_readable() -> bool:
            served.append(client.connection.recv(100))
            if not served[-1]:
                client.connection.close()
            return bool(served[-1])

        made[0].serve(client.connection, on_readable)

    made.append(Endpoint(listen_tcp(), KEY, check=lambda hello: None, admit=admit))
    made[0].start()
    port = made[0].port
    with dial_tcp("127.0.0.1", port, KEY, {}, timeout_s=TIMEOUT_S) as connection:
        made[0].stop_listening()
        made[0].stop_listening()  # Again it does nothing.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        connection.sendall(b"still there")
        wait_until(lambda: served)
    made[0].close()
    assert served[0] == b"still there"
