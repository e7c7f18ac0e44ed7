"""The handshake: every byte of the key and of the messages counts, on both sides."""

import contextlib
import functools
import hmac
import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tfddl._src.rendezvous import handshake
from tfddl._src.rendezvous.handshake import PendingConnection, dial_tcp, dial_unix
from tfddl.errors import ConnectError, UntrustedPeerError

KEY = bytes(range(100, 132))
MAGIC = b"tfddl\x00\x01\n"
NONCE = bytes(range(16))
TIMEOUT_S = 40.0
STREAM = socket.SOCK_STREAM


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def _hello(theirs: bytes, text: bytes, *, key: bytes = KEY) -> bytes:
    mac = hmac.digest(key, b"caller" + theirs + NONCE + text, "sha256")
    return MAGIC + NONCE + mac + struct.pack("<I", len(text)) + text


@contextlib.contextmanager
def _pending() -> Iterator[tuple[PendingConnection, socket.socket, bytes]]:
    """The server's side, the client's end of the connection, and the server's nonce."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pending = PendingConnection(ours, KEY)
        assert pending.challenge()
        challenge = theirs.recv(100)
        assert (challenge[:8], len(challenge)) == (MAGIC, 24)
        yield pending, theirs, challenge[8:]


def _received(pending: PendingConnection) -> dict[str, Any] | None:
    """What the server returns for all that has been sent."""
    for _ in range(3):  # The head, the text, and that nothing more comes.
        found = pending.receive()
        if found is not None or pending.is_bad:
            return found
    return None


def test_every_byte_of_the_key_counts() -> None:
    text = b'{"rank": 1}'
    keys = [KEY, KEY[:-1], KEY + b"x", b"", *(_flipped(KEY, i) for i in range(len(KEY)))]
    for key in keys:
        with _pending() as (pending, caller, nonce):
            caller.sendall(_hello(nonce, text, key=key))
            assert _received(pending) == ({"rank": 1} if key == KEY else None)
            assert pending.is_bad == (key != KEY)


def test_every_byte_of_a_hello_counts() -> None:
    text = b'{"rank": 1}'
    length = range(56, 60)  # With another length it isn't over, or too long.
    for place in range(60 + len(text)):
        with _pending() as (pending, caller, nonce):
            caller.sendall(_flipped(_hello(nonce, text), place))
            assert _received(pending) is None
            assert pending.is_bad or place in length, place


def test_a_hello_may_come_in_pieces() -> None:
    text = json.dumps({"text": "x" * 4084}).encode()
    assert len(text) == 4096
    with _pending() as (pending, caller, nonce):
        whole = _hello(nonce, text)
        assert pending.receive() is None
        for at in range(0, len(whole), 50):
            assert not pending.is_bad
            caller.sendall(whole[at : at + 50])
            found = pending.receive()
        assert found == json.loads(text)


@pytest.mark.parametrize("length", [0, 4097, 2**32 - 1])
def test_a_length_out_of_bounds_is_invalid(length: int) -> None:
    with _pending() as (pending, caller, _):
        caller.sendall(MAGIC + bytes(48) + struct.pack("<I", length))
        assert pending.receive() is None
        assert pending.is_bad


@pytest.mark.parametrize("said", [b"tfddl\x00\x02\n", b"GET / HTTP", b"t\x00"])
def test_another_protocol_is_detected_by_its_first_bytes(said: bytes) -> None:
    with _pending() as (pending, caller, _):
        caller.sendall(said[:1])
        assert pending.receive() is None
        assert pending.is_bad == (said[:1] != b"t")
        caller.sendall(said[1:])
        assert pending.receive() is None
        assert pending.is_bad


def test_a_client_that_closes_is_dropped() -> None:
    with _pending() as (pending, caller, _):
        caller.sendall(MAGIC)
        assert pending.receive() is None
        assert not pending.is_bad
        caller.close()
        assert pending.receive() is None
        assert pending.is_bad


def test_a_handshake_has_ten_seconds() -> None:
    with _pending() as (pending, _, _):
        assert pending.until_s - pending.since_s == pytest.approx(10.0)
        assert 0 <= time.monotonic() - pending.since_s < TIMEOUT_S


def _answer(theirs: bytes, ours: bytes, text: bytes) -> bytes:
    """What a listener that knows the key says in the end."""
    mac = hmac.digest(KEY, b"listener" + ours + theirs + text, "sha256")
    return mac + struct.pack("<I", len(text)) + text


Listener = Callable[[socket.socket], None]


def _dial(listen: Listener, *, timeout_s: float = TIMEOUT_S, **options: Any) -> socket.socket:
    """Calls somebody who does this."""

    def accept() -> None:
        connection, _ = server.accept()
        with connection, contextlib.suppress(ConnectionError):
            listen(connection)
            connection.recv(1)  # Until the client closes.

    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        done = pool.submit(accept)
        try:
            port = server.getsockname()[1]
            connection = dial_tcp(
                "127.0.0.1", port, KEY, {"rank": 1}, timeout_s=timeout_s, **options
            )
            connection.close()
            return connection
        finally:
            done.result(timeout=TIMEOUT_S)


def _says(
    text: bytes = b"{}", *, change: Callable[[bytes], bytes] = lambda answer: answer
) -> Listener:
    """A listener that does as it should, but for its answer."""

    def listen(connection: socket.socket) -> None:
        connection.sendall(MAGIC + NONCE)
        received = b""
        while len(received) < 60 + len(b'{"rank": 1}'):
            received += connection.recv(4096)
        connection.sendall(change(_answer(received[8:24], NONCE, text)))

    return listen


def test_every_byte_of_the_servers_proof_counts() -> None:
    _dial(_says())
    _dial(_says(json.dumps({"more": "x" * (4096 - 12)}).encode()))  # The longest there may be.
    for place in range(32):
        listen = _says(change=functools.partial(_flipped, place=place))
        with pytest.raises(ConnectError, match="doesn't know the secret of this job") as caught:
            _dial(listen)
        assert caught.value.has_answered
        assert not caught.value.is_refused


ANSWERS: dict[str, tuple[Listener, str]] = {
    "another magic": (lambda c: c.sendall(_flipped(MAGIC, 7) + NONCE), "isn't tfddl"),
    "too long": (
        _says(change=lambda a: a[:32] + struct.pack("<I", 4097) + a[36:]),
        "what listens there isn't tfddl",
    ),
    "text": (_says(change=lambda a: _flipped(a, len(a) - 1)), "doesn't know the secret"),
    "nothing": (
        lambda c: c.shutdown(socket.SHUT_WR),
        "closed the connection: it belongs to another job",
    ),
    "less": (_says(change=lambda a: a[:20]), "no answer in time"),
}


@pytest.mark.parametrize(("listen", "message"), ANSWERS.values(), ids=ANSWERS)
def test_another_answer_is_not_trusted(listen: Listener, message: str) -> None:
    with pytest.raises(ConnectError, match=message) as caught:
        _dial(listen, timeout_s=0.5 if "in time" in message else TIMEOUT_S)
    assert caught.value.has_answered
    assert not caught.value.is_refused


def test_a_refusal_is_raised() -> None:
    for why in ("rank 1 is there already", "é" * 512):
        with pytest.raises(ConnectError) as caught:
            _dial(_says(json.dumps({"refused": why}).encode()))
        assert str(caught.value) == why
        assert caught.value.has_answered
        assert caught.value.is_refused


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_no_answer_is_told_from_a_wrong_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    dials: list[Callable[[], socket.socket]] = [
        lambda: dial_tcp("127.0.0.1", port, KEY, {}, timeout_s=TIMEOUT_S),
        lambda: dial_unix(f"nobody {os.getpid()}", STREAM, KEY, {}, timeout_s=TIMEOUT_S),
    ]
    for dial in dials:
        before = _open_files()
        with pytest.raises(ConnectError) as caught:
            dial()
        assert str(caught.value) == "Connection refused"
        assert not caught.value.has_answered
        assert _open_files() == before  # Though whoever has the error has its frames, too.


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(113, "No route to host"), "No route to host"),
        (TimeoutError("timed out"), "timed out"),
        (OSError(), "no answer"),
    ],
)
def test_errors_say_why_a_connection_has_failed(
    error: OSError, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(socket, "create_connection", fail)
    with pytest.raises(ConnectError) as caught:
        dial_tcp("127.0.0.1", 1, KEY, {}, timeout_s=TIMEOUT_S)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
        (OSError("something odd"), "something odd"),
        (OSError(), "no answer"),
    ],
)
def test_a_connection_that_breaks_has_been_answered(
    error: OSError, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> bytes:
        raise error

    monkeypatch.setattr(handshake, "_receive", fail)
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(ConnectError) as caught:
        handshake._authenticate(ours, KEY, {}, until_s=time.monotonic() + TIMEOUT_S)
    assert str(caught.value) == said
    assert caught.value.has_answered
    assert ours.fileno() == -1


class Trickle:
    """A connection whose bytes come one by one."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0

    def recv(self, count: int) -> bytes:
        assert 0 < count <= len(self._data), "more is asked for than belongs to it"
        data, self._data = self._data[:1], self._data[1:]
        return data


def test_bytes_after_the_handshake_are_not_read() -> None:
    connection: Any = Trickle(b"0123456789")
    until_s = time.monotonic() + TIMEOUT_S
    assert handshake._receive(connection, 4, until_s, lambda: None) == b"0123"
    assert handshake._receive(connection, 6, until_s, lambda: None) == b"456789"


@pytest.mark.parametrize("listen", [ANSWERS["text"][0], ANSWERS["nothing"][0], _says(b"x")])
def test_connections_that_are_not_trusted_are_closed(listen: Listener) -> None:
    """`_dial` waits for that; and no file stays open."""
    before = _open_files()
    with contextlib.suppress(ConnectError):
        _dial(listen)
    assert _open_files() == before


def test_a_client_that_has_closed_is_not_challenged() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        assert PendingConnection(ours, KEY).challenge() is False


@pytest.mark.parametrize("kind", [STREAM, socket.SOCK_SEQPACKET])
@pytest.mark.parametrize("refused", ["", "é" * handshake.MAX_REFUSAL_CHARS])
def test_both_sides(kind: socket.SocketKind, refused: str) -> None:
    name = f"tfddl-test-{os.getpid()}"
    hello = {"rank": 1, "text": "x" * 600}

    def admit() -> dict[str, Any] | None:
        connection, _ = listener.accept()
        with connection:
            pending = PendingConnection(connection, KEY)
            assert pending.challenge()
            found = None
            while found is None and not pending.is_bad:
                select.select([connection], [], [], TIMEOUT_S)
                found = pending.receive()
            pending.answer({"refused": refused} if refused else {})
            connection.setblocking(True)
            assert connection.recv(10) == (b"" if refused else b"thanks")
            return found

    with socket.socket(socket.AF_UNIX, kind) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(f"\0{name}")
        listener.listen()
        admitted = pool.submit(admit)
        if refused:
            with pytest.raises(ConnectError, match=f"^{refused}$") as caught:
                dial_unix(name, kind, KEY, hello, timeout_s=TIMEOUT_S)
            assert caught.value.is_refused
        else:
            with dial_unix(name, kind, KEY, hello, timeout_s=TIMEOUT_S) as connection:
                assert connection.gettimeout() is None
                connection.sendall(b"thanks")
        assert admitted.result(timeout=TIMEOUT_S) == hello


def test_answering_a_closed_connection_is_no_error() -> None:
    with _pending() as (pending, caller, nonce):
        caller.sendall(_hello(nonce, b"{}"))
        assert _received(pending) == {}
        caller.close()
        pending.answer({})


def test_tcp_has_no_peer_credentials() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as connection,
    ):
        assert handshake.is_own_user(connection) is True


def test_a_process_of_another_user_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"tfddl-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, STREAM) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        before = _open_files()
        with pytest.raises(UntrustedPeerError, match="a process of another user listens"):
            dial_unix(name, STREAM, KEY, {}, timeout_s=TIMEOUT_S)
        assert _open_files() == before
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert PendingConnection(ours, KEY).challenge() is False
            theirs.setblocking(False)
            with pytest.raises(BlockingIOError):
                theirs.recv(1)


def test_check_is_called_during_the_handshake() -> None:
    class Enough(Exception):
        pass

    asked: list[int] = []

    def check() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise Enough

    with pytest.raises(Enough):
        _dial(lambda connection: None, check=check)
    assert len(asked) == 3


def test_a_connection_has_no_timeout_after_the_handshake() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        done = pool.submit(_says(), theirs)
        until_s = time.monotonic() + TIMEOUT_S
        found = handshake._authenticate(ours, KEY, {"rank": 1}, until_s=until_s)
        done.result(timeout=TIMEOUT_S)
        assert found is ours
        assert found.gettimeout() is None
