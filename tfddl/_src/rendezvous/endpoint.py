"""Accepts connections from processes of one job only. Loads no TensorFlow.

All connections between workers begin here: those of the rendezvous, and those for the messages and
large arrays of a process group. A thread accepts them, without blocking and with one deadline for
each, so that strangers can neither delay the job nor use up its descriptors, whatever the workers
do meanwhile. Clients prove that they know the job's key, see `handshake`.

Usage::

    endpoint = Endpoint(listen_tcp(12345), key, check=lambda hello: None, admit=clients.append)
    endpoint.start()
    connection = dial_tcp("hostA", 12345, key, {"rank": 1}, timeout_s=10.0)
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import selectors
import socket
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tfddl._src.rendezvous.handshake import HANDSHAKE_S, MAX_REFUSAL_CHARS, PendingConnection
from tfddl.errors import ConnectError

MAX_PENDING = 128
"""Handshakes at a time. Beyond, the oldest is dropped: one with a worker takes a millisecond."""

# For a handshake, however many other clients connect meanwhile.
_MIN_HANDSHAKE_S = 0.1

# Connections that the kernel queues until they are accepted; it may queue fewer
# (net.core.somaxconn). Clients that find no space try again.
_BACKLOG = 1024

# Until the next attempt to accept, where no descriptors are left.
_PAUSE_S = 0.05

_OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_LOG = logging.getLogger("tfddl")


class RefuseError(Exception):
    """Raised by `check` of an `Endpoint` to refuse a client, which is told the text."""


@dataclass(frozen=True)
class Client:
    """A process that knows the key.

    Attributes:
        hello: what it has said of itself.
        connection: blocking, and not inherited by programs that are started (PEP 446).
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
        admit: Callable[[Client], None],
    ) -> None:
        """Accepts nothing before `start`.

        Both functions are called in the thread, and mustn't block.

        Args:
            listener: a listening socket, TCP or Unix; it is taken over.
            key: what clients have to know; of any length.
            check: gets the hello of a client that knows the key; raises `RefuseError` to refuse it.
            admit: takes over the connection of a client that has passed the check, and was told so.
        """
        self.name = listener.getsockname()
        self._listener, self._key, self._check, self._admit = listener, key, check, admit
        self._pending: dict[int, PendingConnection] = {}
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
        close_after_fork(self)

    def start(self) -> None:
        """Begins to accept connections."""
        self._thread.start()

    @property
    def port(self) -> int:
        """The TCP port at which it listens."""
        port: int = self.name[1]
        return port

    def serve(self, connection: socket.socket, on_readable: Callable[[], bool]) -> None:
        """Calls a function, in the thread, whenever a connection has something to read.

        Only `admit` may call it, for the connection that it is given.

        Args:
            connection: which.
            on_readable: must not block; returns False to be called no more.
        """
        self._served[connection.fileno()] = connection, on_readable
        self._selector.register(connection, selectors.EVENT_READ)

    def stop_listening(self) -> None:
        """Accepts no more connections; the port is free on return. Served connections stay."""
        if self._is_closing:
            return
        done = threading.Event()

        def stop() -> None:
            self._drop_listener()
            done.set()

        self._do(stop)
        if not done.wait(timeout=HANDSHAKE_S):
            raise ConnectError(
                f"the thread that listens at {self.name} hasn't stopped within {HANDSHAKE_S:g} s"
            )

    def close(self) -> None:
        """Closes everything, served connections included. A second call does nothing.

        Not to be called by the functions that the thread calls.
        """
        if self._is_closing:
            return
        self._is_closing = True
        self._do(self._mark_closed)
        self._thread.join(timeout=HANDSHAKE_S)
        # Not closed by the thread, which may have ended before `_do` wakes it.
        self._wakes.close()
        self._woken.close()

    def _do(self, action: Callable[[], None]) -> None:
        """Makes the thread call a function soon."""
        # A byte wakes the thread, which may sleep in `select`.
        self._actions.put(action)
        self._wakes.send(b".")

    def _mark_closed(self) -> None:
        self._is_closed = True

    def _run(self) -> None:
        try:
            while not self._is_closed:
                self._run_once()
        finally:
            self._close_all()

    def _run_once(self) -> None:
        for key, _ in self._selector.select(self._wait_s()):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fd in self._pending:
                self._advance(self._pending[key.fd])
            elif key.fd in self._served:
                self._serve_readable(*self._served[key.fd])
            elif key.fileobj is self._woken:
                self._woken.recv(64)
        while not self._actions.empty():
            self._actions.get()()
        self._check_deadlines(time.monotonic())

    def _serve_readable(self, connection: socket.socket, on_readable: Callable[[], bool]) -> None:
        if not on_readable():
            self._stop_serving(connection)

    def _check_deadlines(self, now_s: float) -> None:
        """Drops handshakes that take too long, and listens again after a pause."""
        for pending in list(self._pending.values()):
            if now_s > pending.until_s:
                self._drop(pending)
        if 0.0 < self._paused_until_s < now_s:
            self._paused_until_s = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _wait_s(self) -> float | None:
        """Seconds until the next deadline; None where there is none."""
        deadlines = [pending.until_s for pending in self._pending.values()]
        if self._paused_until_s:
            deadlines.append(self._paused_until_s)
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _accept(self) -> None:
        """Accepts the connections that the kernel has queued."""
        # Not without end: who connects faster than this accepts must not keep the others from being
        # served. The selector reports the listener again.
        for _ in range(MAX_PENDING):
            if len(self._pending) >= MAX_PENDING and not self._drop_oldest():
                return
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):  # None left; or it has closed before.
                return
            except OSError as error:
                if error.errno not in _OUT_OF_DESCRIPTORS:
                    raise
                if not self._drop_oldest():
                    return
                continue
            pending = PendingConnection(connection, self._key)
            self._pending[connection.fileno()] = pending
            self._selector.register(connection, selectors.EVENT_READ)
            if not pending.challenge():
                self._drop(pending)

    def _drop_oldest(self) -> bool:
        """Drops the oldest handshake, or stops accepting for a moment; True if it dropped."""
        now_s = time.monotonic()
        oldest = next(iter(self._pending.values()), None)  # Dicts keep the order of insertion.
        if oldest is not None and now_s - oldest.since_s >= _MIN_HANDSHAKE_S:
            self._drop(oldest)
            return True
        if oldest is None:
            _LOG.warning(
                "no file descriptors are left for connections of other workers. HINT: ulimit -n"
            )
        self._paused_until_s = now_s + _PAUSE_S
        self._selector.unregister(self._listener)
        return False

    def _advance(self, pending: PendingConnection) -> None:
        """Continues a handshake with what the client has sent."""
        hello = pending.receive()
        if hello is None:
            if pending.is_bad:
                self._drop(pending)
            return
        del self._pending[pending.connection.fileno()]
        self._selector.unregister(pending.connection)
        # Blocking from here: an answer of a few bytes fits the empty buffer of the connection.
        pending.connection.settimeout(HANDSHAKE_S)
        try:
            self._check(hello)
        except RefuseError as error:
            pending.answer({"refused": str(error)[:MAX_REFUSAL_CHARS]})
            pending.connection.close()
            return
        pending.answer({})
        pending.connection.settimeout(None)
        self._admit(Client(hello, pending.connection))

    def _stop_serving(self, connection: socket.socket) -> None:
        """Stops serving a connection, which may be closed already."""
        for number, (served, _) in list(self._served.items()):
            if served is connection:
                del self._served[number]
                self._selector.unregister(connection)

    def _drop(self, pending: PendingConnection) -> None:
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

    def close_in_child(self) -> None:
        """In a forked child: closes what it has inherited. The thread isn't copied by fork(2)."""
        self._is_closing = True
        inherited = [self._listener, self._wakes, self._woken]
        inherited += [pending.connection for pending in self._pending.values()]
        inherited += [connection for connection, _ in self._served.values()]
        for connection in inherited:
            connection.close()
        self._selector.close()


def listen_tcp(port: int = 0) -> socket.socket:
    """Listens on all addresses of this host, IPv6 and IPv4.

    Args:
        port: which one; 0 for one that the system chooses.

    Raises:
        OSError: the port is taken, or no port is free.
    """
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG
            )
        except OSError as error:
            # The kernel may have IPv6 that is disabled (net.ipv6.conf.all.disable_ipv6).
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
    return socket.create_server(("", port), backlog=_BACKLOG)


def listen_unix(name: str, kind: socket.SocketKind) -> socket.socket:
    """Listens at an *abstract* name (unix(7)), which has no file and vanishes with the process.

    It is visible within one network namespace only, and has no permissions. So both sides ask the
    kernel whose process is at the other end (SO_PEERCRED).

    Args:
        name: of the socket, without the leading zero byte.
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


class ForkAware(Protocol):
    """Has descriptors that a forked child inherits."""

    def close_in_child(self) -> None:
        """Closes them; called in the child."""


def close_after_fork(owner: ForkAware) -> None:
    """Makes forked children close an object's descriptors.

    With a copy of a socket in a child, the other end wouldn't notice that this process has ended.
    """
    # Weak: functions that are registered can't be removed, and would keep the object for ever.
    reference = weakref.ref(owner)

    def close() -> None:
        found = reference()
        if found is not None:
            found.close_in_child()

    os.register_at_fork(after_in_child=close)
