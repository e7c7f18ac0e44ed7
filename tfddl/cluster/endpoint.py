"""Accepts connections from processes of one job, and from nobody else. Loads no TensorFlow.

All connections between workers, and those that orders come by, begin here: the rendezvous, the
links and streams of a process group, the control of a benchmark. A thread accepts them, so that
strangers can neither keep the job waiting nor use up its descriptors, whatever the workers are
doing meanwhile. Before anything that a caller says is believed, or even decoded, both sides prove
to each other that they know the job's key:

1. The listener sends a magic number and a nonce.
2. The caller sends the same, an HMAC-SHA256 of both nonces and of its hello, and the hello: a JSON
   object of at most `LONGEST_HELLO` bytes.
3. The listener answers with an HMAC of its own, and an empty object, or the reason why it refuses.

The HMACs of the two directions differ by a label, so that neither can be sent back. What follows is
neither encrypted nor signed: somebody who can change packets between two hosts can do as he likes.

Usage::

    endpoint = Endpoint(listen_tcp(12345), key, check=lambda hello: None, admit=callers.append)
    connection = dial_tcp("hostA", 12345, key, {"rank": 1}, timeout_s=10.0)
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import json
import logging
import os
import queue
import secrets
import selectors
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tfddl.cluster.parsing import parse_json
from tfddl.errors import ClusterError, ConnectError, StrangerError, TfddlError

LONGEST_HELLO = 4096
"""Bytes of a hello, and of a refusal."""

_LONGEST_REFUSAL = LONGEST_HELLO // 8
"""Characters; JSON may write six bytes for one."""

_MAGIC = b"tfddl\x00\x01\n"
_NONCE_BYTES = 16
_MAC_BYTES = 32
_CHALLENGE = struct.Struct(f"<8s{_NONCE_BYTES}s")
_HELLO = struct.Struct(f"<8s{_NONCE_BYTES}s{_MAC_BYTES}sI")
_ANSWER = struct.Struct(f"<{_MAC_BYTES}sI")
_CREDENTIALS = struct.Struct("3i")
_CALLER, _LISTENER = b"caller", b"listener"

_HANDSHAKE_S = 10.0
"""For a whole handshake, however many bytes of it come meanwhile."""

MOST_PENDING = 128
"""Handshakes at a time. Beyond, the oldest is dropped: a worker of the job needs a millisecond."""

_LEAST_S = 0.1
"""For a handshake, however many others come meanwhile; these have to wait until then."""

_BACKLOG = 1024
"""Connections that the kernel keeps until they are accepted; it may cut that (net.core.somaxconn).
Callers that find no room try again."""

_PAUSE_S = 0.05
"""Until the next try to accept, where there are no descriptors."""

_LONGEST_S = 1e6
"""What stands for ever: sockets take no infinite timeouts."""

_OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_LOG = logging.getLogger("tfddl")


class RefuseError(Exception):
    """What `Endpoint`'s `check` raises to refuse a caller, who is told the text."""


@dataclass(frozen=True)
class Caller:
    """Somebody who knows the key.

    Attributes:
        hello: what he has said of himself.
        connection: to him; blocking, and not inherited by children.
    """

    hello: Mapping[str, Any]
    connection: socket.socket


class Endpoint:
    """A listening socket, and the thread that serves it."""

    def __init__(
        self,
        listener: socket.socket,
        key: bytes,
        *,
        check: Callable[[Mapping[str, Any]], None],
        admit: Callable[[Caller], None],
    ) -> None:
        """Begins to accept. Both functions are called in the thread, and must not wait.

        Args:
            listener: listens; TCP or Unix. It is taken over.
            key: what callers have to know; of any length.
            check: is given the hello of somebody who knows the key, and raises `RefuseError` where
                he is not wanted.
            admit: takes over the connection of somebody who has passed the check, and has been
                told so.
        """
        self.name = listener.getsockname()
        self._listener, self._key, self._check, self._admit = listener, key, check, admit
        self._pending: dict[int, _PendingConnection] = {}
        self._served: dict[int, tuple[socket.socket, Callable[[], bool]]] = {}
        self._selector = selectors.DefaultSelector()
        self._wakes, self._woken = socket.socketpair()
        self._actions: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._is_closing = self._is_closed = False
        self._paused_until_s = 0.0
        listener.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._selector.register(listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="tfddl-endpoint", daemon=True)
        self._thread.start()
        close_in_children(self)

    @property
    def port(self) -> int:
        """Where it listens, by TCP."""
        port: int = self.name[1]
        return port

    def serve(self, connection: socket.socket, on_readable: Callable[[], bool]) -> None:
        """Lets the thread call a function whenever a connection has something to read.

        Only for `admit`, of the connection that it is given.

        Args:
            connection: which.
            on_readable: must not wait for anything; returns False to be called no more.
        """
        self._served[connection.fileno()] = connection, on_readable
        self._selector.register(connection, selectors.EVENT_READ)

    def stop_listening(self) -> None:
        """Accepts nobody any more; the port is free on return. What is served goes on."""
        if self._is_closing:
            return
        done = threading.Event()

        def stop() -> None:
            self._drop_listener()
            done.set()

        self._do(stop)
        if not done.wait(timeout=_HANDSHAKE_S):
            raise ConnectError(f"the thread that listens at {self.name} hangs")

    def close(self) -> None:
        """Ends everything, what is served included. Again it does nothing."""
        if self._is_closing:
            return
        self._is_closing = True
        self._do(self._end)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=_HANDSHAKE_S)

    def _do(self, action: Callable[[], None]) -> None:
        """Lets the thread do something soon."""
        self._actions.put(action)
        self._wakes.send(b".")

    def _end(self) -> None:
        self._is_closed = True

    def _run(self) -> None:
        try:
            while not self._is_closed:
                self._turn()
        finally:
            self._close_all()

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._wait_s()):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fd in self._pending:
                self._advance(self._pending[key.fd])
            elif key.fd in self._served:
                self._call(*self._served[key.fd])
            elif key.fileobj is self._woken:
                self._woken.recv(64)
        while not self._actions.empty():
            self._actions.get()()
        self._keep_time(time.monotonic())

    def _call(self, connection: socket.socket, on_readable: Callable[[], bool]) -> None:
        if not on_readable():
            self._forget(connection)

    def _keep_time(self, now_s: float) -> None:
        """Drops who takes too long, and listens again after a pause."""
        for pending in list(self._pending.values()):
            if now_s > pending.until_s:
                self._drop(pending)
        if 0.0 < self._paused_until_s < now_s:
            self._paused_until_s = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _wait_s(self) -> float | None:
        """Until the next deadline; None where there is none."""
        deadlines = [pending.until_s for pending in self._pending.values()]
        if self._paused_until_s:
            deadlines.append(self._paused_until_s)
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _accept(self) -> None:
        """Takes the callers that are there."""
        for _ in range(MOST_PENDING):
            if len(self._pending) >= MOST_PENDING and not self._make_room():
                return
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_DESCRIPTORS:
                    raise
                if not self._make_room():
                    return
                continue
            pending = _PendingConnection(connection, self._key)
            self._pending[connection.fileno()] = pending
            self._selector.register(connection, selectors.EVENT_READ)
            if not pending.challenge():
                self._drop(pending)

    def _make_room(self) -> bool:
        """Drops the oldest of those who have proved nothing, or accepts nobody for a while."""
        now_s = time.monotonic()
        oldest = next(iter(self._pending.values()), None)
        if oldest is not None and now_s - oldest.since_s >= _LEAST_S:
            self._drop(oldest)
            return True
        if oldest is None:
            _LOG.warning(
                "no file descriptors are left for connections of other workers. HINT: ulimit -n"
            )
        self._paused_until_s = now_s + _PAUSE_S
        self._selector.unregister(self._listener)
        return False

    def _advance(self, pending: _PendingConnection) -> None:
        """Takes what a caller has sent."""
        hello = pending.receive()
        if hello is None:
            if pending.is_bad:
                self._drop(pending)
            return
        del self._pending[pending.connection.fileno()]
        self._selector.unregister(pending.connection)
        pending.connection.settimeout(_HANDSHAKE_S)
        try:
            self._check(hello)
        except RefuseError as error:
            pending.answer({"refused": str(error)[:_LONGEST_REFUSAL]})
            pending.connection.close()
            return
        pending.answer({})
        pending.connection.settimeout(None)
        self._admit(Caller(hello, pending.connection))

    def _forget(self, connection: socket.socket) -> None:
        """Serves a connection no more, which may have been closed."""
        for number, (served, _) in list(self._served.items()):
            if served is connection:
                del self._served[number]
                self._selector.unregister(connection)

    def _drop(self, pending: _PendingConnection) -> None:
        del self._pending[pending.connection.fileno()]
        self._selector.unregister(pending.connection)
        pending.connection.close()

    def _drop_listener(self) -> None:
        if self._listener.fileno() >= 0 and not self._paused_until_s:
            self._selector.unregister(self._listener)
        self._listener.close()
        self._paused_until_s = 0.0
        for pending in list(self._pending.values()):
            self._drop(pending)

    def _close_all(self) -> None:
        self._drop_listener()
        for connection, _ in self._served.values():
            connection.close()
        self._selector.close()
        self._woken.close()
        self._wakes.close()

    def forget(self) -> None:
        """For a forked child: closes what it has inherited, which no thread serves there."""
        self._is_closing = True
        inherited = [self._listener, self._wakes, self._woken]
        inherited += [pending.connection for pending in self._pending.values()]
        inherited += [connection for connection, _ in self._served.values()]
        for connection in inherited:
            connection.close()
        self._selector.close()


class _PendingConnection:
    """A caller who hasn't proved yet that he knows the key."""

    def __init__(self, connection: socket.socket, key: bytes) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.since_s = time.monotonic()
        self.until_s = self.since_s + _HANDSHAKE_S
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
        self.is_bad = not 0 < self._length <= LONGEST_HELLO
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
        StrangerError: a process of another user has the name.
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
        raise StrangerError("a process of another user has the name of a worker")
    return _prove(connection, key, hello, until_s=until_s)


def listen_tcp(port: int = 0) -> socket.socket:
    """Listens on all addresses of this host, IPv6 and IPv4.

    Args:
        port: which; 0 for one that the system chooses.

    Raises:
        OSError: the port is taken, or there is none.
    """
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG
            )
        except OSError as error:
            # The kernel may know IPv6, and have none.
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
    return socket.create_server(("", port), backlog=_BACKLOG)


def listen_unix(name: str, kind: socket.SocketKind) -> socket.socket:
    """Listens under an *abstract* name: it has no file, and vanishes with the process.

    It is seen within a network namespace only, and has no permissions; so both sides ask the kernel
    whose process is at the other end.

    Args:
        name: of the socket, without the zero byte in front.
        kind: SOCK_STREAM or SOCK_SEQPACKET.

    Raises:
        OSError: the name is taken, or the system has no such sockets.
    """
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        listener.bind(f"\0{name}")
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


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
        if length > LONGEST_HELLO:
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
    assert len(text) <= LONGEST_HELLO, body
    return text


def _decode(text: bytes) -> dict[str, Any] | None:
    try:
        value = parse_json(text, what="a hello", most_bytes=LONGEST_HELLO)
    except ClusterError:
        return None
    return value if isinstance(value, dict) else None


class Inherited(Protocol):
    """Something with descriptors that a forked child shares."""

    def forget(self) -> None:
        """Closes these in a child."""


def close_in_children(inherited: Inherited) -> None:
    """Makes forked children close descriptors, which would outlive this process in them."""
    reference = weakref.ref(inherited)

    def forget() -> None:
        found = reference()
        if found is not None:
            found.forget()

    os.register_at_fork(after_in_child=forget)
