"""How two processes of a job prove to each other that they are of one. Loads no TensorFlow.

Before anything that a caller says is believed, or even decoded, both sides prove that they know the
job's key:

1. The listener sends a magic number and a nonce.
2. The caller sends the same, an HMAC-SHA256 of both nonces and of its hello, and the hello: a JSON
   object of at most `MAX_HELLO_BYTES` bytes.
3. The listener answers with an HMAC of its own, and an empty object, or the reason why it refuses.

The HMACs of the two directions differ by a label, so that neither can be sent back. What follows is
neither encrypted nor signed: somebody who can change packets between two hosts can do as he likes.
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
_CALLER, _LISTENER = b"caller", b"listener"
_LONGEST_S = 1e6
"""What stands for ever: sockets take no infinite timeouts."""


class PendingConnection:
    """A caller who hasn't proved yet that he knows the key."""

    def __init__(self, connection: socket.socket, key: bytes) -> None:
        """Takes over a connection that was accepted.

        Args:
            connection: it.
            key: what the caller has to know.
        """
        connection.setblocking(False)
        self.connection = connection
        self.since_s = time.monotonic()
        self.until_s = self.since_s + HANDSHAKE_S
        self.is_bad = False
        self._key = key
        self._nonce = secrets.token_bytes(_NONCE_BYTES)
        self._theirs = b""
        self._received = b""

    def challenge(self) -> bool:
        """Sends the first message; whether it could be sent."""
        if not is_own_user(self.connection):
            return False
        try:
            # Few enough bytes for the empty buffer of a new connection.
            self.connection.send(_CHALLENGE.pack(_MAGIC, self._nonce))
        except OSError:
            return False
        return True

    def receive(self) -> dict[str, Any] | None:
        """The hello, once all of it has come and is proved; None before, or if `is_bad`."""
        wanted = _HELLO.size
        if len(self._received) >= _HELLO.size:
            wanted += self._length
        try:
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
        """Proves that we know the key, too, and says whether the caller is admitted."""
        text = _encode(body)
        mac = _mac(self._key, _LISTENER, self._nonce, self._theirs, text)
        # Whoever has gone meanwhile is noticed by whoever reads from him.
        with contextlib.suppress(OSError):
            self.connection.sendall(_ANSWER.pack(mac, len(text)))
            self.connection.sendall(text)

    @property
    def _length(self) -> int:
        length: int = _HELLO.unpack_from(self._received)[3]
        return length

    def _proved(self) -> dict[str, Any] | None:
        _, self._theirs, mac, _ = _HELLO.unpack_from(self._received)
        text = self._received[_HELLO.size :]
        if not hmac.compare_digest(mac, _mac(self._key, _CALLER, self._nonce, self._theirs, text)):
            return None
        return _decode(text)


def dial_tcp(  # noqa: PLR0913 - where, as whom, and how long
    host: str,
    port: int,
    key: bytes,
    hello: Mapping[str, Any],
    *,
    timeout_s: float,
    check: Callable[[], None] = lambda: None,
) -> socket.socket:
    """Connects to an `Endpoint` by TCP.

    Args:
        host: its name or address.
        port: where it listens.
        key: the job's.
        hello: what to say of oneself, a JSON object.
        timeout_s: for all of it.
        check: called from time to time meanwhile; raises where waiting is in vain.

    Returns:
        A blocking connection.

    Raises:
        ConnectError: nobody answers, or not a process that knows the key; or it refuses us.
    """
    timeout_s = max(0.01, min(timeout_s, _LONGEST_S))
    until_s = time.monotonic() + timeout_s
    try:
        connection = socket.create_connection((host, port), timeout=timeout_s)
    except OSError as error:
        raise ConnectError(error.strerror or str(error) or "no answer") from error
    return _prove(connection, key, hello, until_s=until_s, check=check)


def dial_unix(
    name: str, kind: socket.SocketKind, key: bytes, hello: Mapping[str, Any], *, timeout_s: float
) -> socket.socket:
    """Connects to an `Endpoint` of this user on this host; see `dial_tcp`.

    Args:
        name: of the socket; abstract, without the zero byte in front.
        kind: SOCK_STREAM or SOCK_SEQPACKET.
        key: the job's.
        hello: what to say of oneself.
        timeout_s: for all of it.

    Raises:
        UntrustedPeerError: a process of another user has the name.
        ConnectError: as `dial_tcp`.
    """
    until_s = time.monotonic() + timeout_s
    connection = socket.socket(socket.AF_UNIX, kind)
    try:
        connection.connect(f"\0{name}")
    except OSError as error:
        connection.close()
        raise ConnectError(error.strerror or str(error)) from error
    if not is_own_user(connection):
        connection.close()
        raise UntrustedPeerError("a process of another user has the name of a worker")
    return _prove(connection, key, hello, until_s=until_s)


def is_own_user(connection: socket.socket) -> bool:
    """Whether the process at the other end of a Unix socket is this user's; True for TCP."""
    if connection.family != socket.AF_UNIX:
        return True
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(told)
    return bool(user == os.getuid())


def _prove(
    connection: socket.socket,
    key: bytes,
    hello: Mapping[str, Any],
    *,
    until_s: float,
    check: Callable[[], None] = lambda: None,
) -> socket.socket:
    """The caller's side of the handshake."""
    try:
        magic, theirs = _CHALLENGE.unpack(_receive(connection, _CHALLENGE.size, until_s, check))
        if magic != _MAGIC:
            raise ConnectError("something else answers there", has_answered=True)
        nonce, text = secrets.token_bytes(_NONCE_BYTES), _encode(hello)
        mac = _mac(key, _CALLER, theirs, nonce, text)
        # Two messages: a SOCK_SEQPACKET keeps them apart, as the listener reads them.
        connection.sendall(_HELLO.pack(_MAGIC, nonce, mac, len(text)))
        connection.sendall(text)
        mac, length = _ANSWER.unpack(_receive(connection, _ANSWER.size, until_s, check))
        if length > MAX_HELLO_BYTES:
            raise ConnectError("something else answers there", has_answered=True)
        text = _receive(connection, length, until_s, check)
        if not hmac.compare_digest(mac, _mac(key, _LISTENER, theirs, nonce, text)):
            raise ConnectError(
                "what answers there doesn't know the secret of this job", has_answered=True
            )
        answer = _decode(text) or {}
        if "refused" in answer:
            raise ConnectError(str(answer["refused"]), has_answered=True, is_refused=True)
        connection.settimeout(None)
    except TfddlError:  # Some are OSErrors, too.
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
        connection.settimeout(min(left_s, 0.2))
        try:
            data = connection.recv(count - len(received))
        except TimeoutError:
            continue
        if not data:
            raise ConnectError(
                "what answers there hangs up: it is no process of this job, or of another one",
                has_answered=True,
            )
        received += data
    return received


def _mac(key: bytes, label: bytes, listeners: bytes, callers: bytes, text: bytes) -> bytes:
    return hmac.digest(key, label + listeners + callers + text, "sha256")


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
