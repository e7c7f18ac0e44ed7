"""Mutual authentication of two processes of a job. Loads no TensorFlow.

Before anything that a client says is believed, or even decoded, both sides prove that they know the
job's key:

1. The server sends a magic number and a nonce.
2. The client sends the same, an HMAC-SHA256 of both nonces and of its hello, and the hello: a JSON
   object of at most `MAX_HELLO_BYTES` bytes.
3. The server answers with an HMAC of its own, and an empty object, or the reason for a refusal.

The HMACs of the two directions differ by a label, so that neither can be reflected; the nonces keep
them from being replayed. What follows is neither encrypted nor signed: whoever can change packets
between two hosts can take over a connection.

References:
    RFC 2104, "HMAC: Keyed-Hashing for Message Authentication"
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any

from tfddl._src.cluster.parsing import parse_json
from tfddl.errors import ClusterError, ConnectError, TfddlError, UntrustedPeerError

MAX_HELLO_BYTES = 4096
"""Bytes of a hello, and of a refusal."""

HANDSHAKE_S = 10.0
"""For a whole handshake, however many bytes of it come meanwhile."""

MAX_REFUSAL_CHARS = MAX_HELLO_BYTES // 8
"""Characters; JSON may write six bytes for one."""

_MAGIC = b"tfddl\x00\x01\n"
_NONCE_BYTES = 16
_MAC_BYTES = 32
_CHALLENGE = struct.Struct(f"<8s{_NONCE_BYTES}s")
_HELLO = struct.Struct(f"<8s{_NONCE_BYTES}s{_MAC_BYTES}sI")
_ANSWER = struct.Struct(f"<{_MAC_BYTES}sI")
_CREDENTIALS = struct.Struct("3i")
_CLIENT_LABEL, _SERVER_LABEL = b"caller", b"listener"
# Instead of infinity, which sockets don't take.
_MAX_TIMEOUT_S = 1e6


class PendingConnection:
    """A client that hasn't proved yet that it knows the key; the server's side of the handshake."""

    def __init__(self, connection: socket.socket, key: bytes) -> None:
        """Takes over a connection that was accepted.

        Args:
            connection: the connection.
            key: what the client has to know.
        """
        connection.setblocking(False)
        self.connection = connection
        self.since_s = time.monotonic()
        self.until_s = self.since_s + HANDSHAKE_S
        self.is_bad = False
        self._key = key
        self._nonce = secrets.token_bytes(_NONCE_BYTES)
        self._client_nonce = b""
        self._received = b""

    def challenge(self) -> bool:
        """Sends the first message; returns whether it could be sent."""
        if not is_own_user(self.connection):
            return False
        try:
            # Not sendall: the buffer of a new connection is empty, and has space for it.
            self.connection.send(_CHALLENGE.pack(_MAGIC, self._nonce))
        except OSError:
            return False
        return True

    def receive(self) -> dict[str, Any] | None:
        """Receives what has arrived.

        Returns:
            The hello, once all of it has arrived and the proof is right; None before. Also None if
            `is_bad` is set: then the connection is to be dropped.
        """
        wanted = _HELLO.size
        if len(self._received) >= _HELLO.size:
            wanted += self._length
        try:
            # Never more than belongs to the message: of SOCK_SEQPACKET the kernel drops the rest of
            # one that isn't taken whole, and on a stream it is the worker's.
            data = self.connection.recv(wanted - len(self._received))
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        self._received += data
        self.is_bad = not data or not _MAGIC.startswith(self._received[: len(_MAGIC)])
        if self.is_bad or len(self._received) < _HELLO.size:
            return None
        self.is_bad = not 0 < self._length <= MAX_HELLO_BYTES
        if self.is_bad or len(self._received) < _HELLO.size + self._length:
            return None
        hello = self._proved()
        self.is_bad = hello is None
        return hello

    def answer(self, body: Mapping[str, str]) -> None:
        """Proves that this side knows the key, and says whether the client is admitted."""
        text = _encode(body)
        mac = _mac(self._key, _SERVER_LABEL, self._nonce, self._client_nonce, text)
        # If the client has ended meanwhile, whoever reads from the connection notices.
        with contextlib.suppress(OSError):
            self.connection.sendall(_ANSWER.pack(mac, len(text)))
            self.connection.sendall(text)

    @property
    def _length(self) -> int:
        length: int = _HELLO.unpack_from(self._received)[3]
        return length

    def _proved(self) -> dict[str, Any] | None:
        _, self._client_nonce, mac, _ = _HELLO.unpack_from(self._received)
        text = self._received[_HELLO.size :]
        # compare_digest takes the same time wherever the first difference is.
        if not hmac.compare_digest(
            mac, _mac(self._key, _CLIENT_LABEL, self._nonce, self._client_nonce, text)
        ):
            return None
        return _decode(text)


def dial_tcp(  # noqa: PLR0913 - where, as whom, and how long
    host: str,
    port: int,
    key: bytes,
    hello: Mapping[str, Any],
    *,
    timeout_s: float,
    reach_s: float = 0.0,
    check: Callable[[], None] = lambda: None,
) -> socket.socket:
    """Connects to an `Endpoint` by TCP.

    Args:
        host: its name or address.
        port: where it listens.
        key: of the job.
        hello: what the client says of itself, a JSON object.
        timeout_s: for connecting and the handshake.
        reach_s: for connecting, where it is more than that: a host answers whatever the process
            does.
        check: called from time to time during the handshake; raises to give up.

    Returns:
        A blocking connection.

    Raises:
        ConnectError: nothing answers; what answers doesn't know the key; or it refuses the client.
    """
    timeout_s = max(0.01, min(timeout_s, _MAX_TIMEOUT_S))
    until_s = time.monotonic() + timeout_s
    try:
        connection = socket.create_connection((host, port), timeout=max(timeout_s, reach_s))
    except OSError as error:
        raise ConnectError(error.strerror or str(error) or "no answer") from error
    return _authenticate(connection, key, hello, until_s=until_s, check=check)


def dial_unix(  # noqa: PLR0913 - where, as whom, and how long
    name: str,
    kind: socket.SocketKind,
    key: bytes,
    hello: Mapping[str, Any],
    *,
    timeout_s: float,
    check: Callable[[], None] = lambda: None,
) -> socket.socket:
    """Connects to an `Endpoint` of this user on this host; see `dial_tcp`.

    Args:
        name: of the socket; abstract, without the leading zero byte.
        kind: SOCK_STREAM or SOCK_SEQPACKET.
        key: of the job.
        hello: what the client says of itself.
        timeout_s: for connecting and the handshake.
        check: called from time to time during the handshake; raises to give up.

    Raises:
        UntrustedPeerError: a process of another user listens there.
        ConnectError: as `dial_tcp`.
    """
    timeout_s = max(0.01, min(timeout_s, _MAX_TIMEOUT_S))
    until_s = time.monotonic() + timeout_s
    connection = socket.socket(socket.AF_UNIX, kind)
    try:
        connection.connect(f"\0{name}")
    except OSError as error:
        connection.close()
        raise ConnectError(error.strerror or str(error)) from error
    if not is_own_user(connection):
        connection.close()
        raise UntrustedPeerError("a process of another user listens at a worker's address")
    return _authenticate(connection, key, hello, until_s=until_s, check=check)


def is_own_user(connection: socket.socket) -> bool:
    """Whether the process at the other end of a Unix socket is this user's; True for TCP.

    The kernel keeps the credentials of the process that has called connect or listen (SO_PEERCRED,
    unix(7)): they can't be forged, nor do they change when the socket is handed on.
    """
    if connection.family != socket.AF_UNIX:
        return True
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)  # pid, uid, gid
    return bool(user == os.getuid())


def _authenticate(
    connection: socket.socket,
    key: bytes,
    hello: Mapping[str, Any],
    *,
    until_s: float,
    check: Callable[[], None] = lambda: None,
) -> socket.socket:
    """The client's side of the handshake."""
    try:
        magic, theirs = _CHALLENGE.unpack(_receive(connection, _CHALLENGE.size, until_s, check))
        if magic != _MAGIC:
            raise ConnectError("what listens there isn't tfddl", has_answered=True)
        nonce, text = secrets.token_bytes(_NONCE_BYTES), _encode(hello)
        mac = _mac(key, _CLIENT_LABEL, theirs, nonce, text)
        # Two messages, as the server receives them: SOCK_SEQPACKET keeps them apart.
        connection.sendall(_HELLO.pack(_MAGIC, nonce, mac, len(text)))
        connection.sendall(text)
        mac, length = _ANSWER.unpack(_receive(connection, _ANSWER.size, until_s, check))
        if length > MAX_HELLO_BYTES:
            raise ConnectError("what listens there isn't tfddl", has_answered=True)
        text = _receive(connection, length, until_s, check)
        if not hmac.compare_digest(mac, _mac(key, _SERVER_LABEL, theirs, nonce, text)):
            raise ConnectError(
                "what listens there doesn't know the secret of this job", has_answered=True
            )
        answer = _decode(text) or {}
        if "refused" in answer:
            raise ConnectError(str(answer["refused"]), has_answered=True, is_refused=True)
        connection.settimeout(None)
    except TfddlError:  # ConnectError is an OSError, too.
        connection.close()
        raise
    except OSError as error:
        connection.close()
        why = error.strerror or str(error) or "no answer"
        raise ConnectError(why, has_answered=True) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _receive(
    connection: socket.socket, count: int, until_s: float, check: Callable[[], None]
) -> bytes:
    received = b""
    while len(received) < count:
        check()
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            raise ConnectError("no answer in time", has_answered=True)
        # Not until the deadline: `check` has to be asked several times a second.
        connection.settimeout(min(left_s, 0.2))
        try:
            data = connection.recv(count - len(received))
        except TimeoutError:
            continue
        if not data:
            raise ConnectError(
                "what listens there closed the connection: it belongs to another job, or isn't "
                "tfddl",
                has_answered=True,
            )
        received += data
    return received


def _mac(key: bytes, label: bytes, server_nonce: bytes, client_nonce: bytes, text: bytes) -> bytes:
    return hmac.digest(key, label + server_nonce + client_nonce + text, "sha256")


def _encode(body: Mapping[str, Any]) -> bytes:
    text = json.dumps(body).encode()
    assert len(text) <= MAX_HELLO_BYTES, body
    return text


def _decode(text: bytes) -> dict[str, Any] | None:
    try:
        value = parse_json(text, what="a hello", most_bytes=MAX_HELLO_BYTES)
    except ClusterError:
        return None
    return value if isinstance(value, dict) else None
