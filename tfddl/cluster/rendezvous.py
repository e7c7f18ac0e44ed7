"""All workers meet before TensorFlow starts: who is missing, and do they mean the same job?

TensorFlow waits for missing workers in silence, holding the interpreter, so that nothing in the
process can say what it waits for. Here rank 0 therefore listens first, on the very port that its
server will use; every other rank tells it its number and the addresses it knows, and all go on
once rank 0 has heard the same from each of them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from tfddl.cluster.cluster import Cluster
from tfddl.errors import DisagreementError, StartError

PORT_TAKEN = "can't listen on port"
"""Said when another program has the port of a worker; `tfddlrun` then chooses others."""

_LOG = logging.getLogger("tfddl")
_REPORT_S = 15.0
_RETRY_S = 0.2
_ANSWER_S = 5.0
_MOST_BYTES = 2**20


def meet(cluster: Cluster, *, timeout_s: float, report_s: float = _REPORT_S) -> None:
    """Returns once all workers have come. All ranks must call it together.

    Args:
        cluster: who takes part, as this worker was told.
        timeout_s: after how many seconds to give up; 0 waits for ever.
        report_s: how often to log who is missing.

    Raises:
        StartError: another program has the port, or not all workers came in time.
        DisagreementError: the workers were told of different clusters.
    """
    if cluster.size == 1:
        return
    patience = _Patience(timeout_s, report_s)
    host, port = _host_and_port(cluster.addresses[cluster.rank])
    try:
        listener = _listen(port)
    except OSError as error:
        raise StartError(
            f"rank {cluster.rank} {PORT_TAKEN} {port} ({host}): {error.strerror}. HINT: another "
            "program has it, perhaps a worker of an earlier job; end that, or choose another port"
        ) from error
    if cluster.rank == 0:
        _host(cluster, listener, patience)
    else:
        listener.close()  # It was only to see whether the port is free.
        _visit(cluster, patience)


@dataclass
class _Patience:
    """How long to wait, and when to speak of it."""

    timeout_s: float
    report_s: float
    begin: float = field(default_factory=time.monotonic)
    reported: float = field(default_factory=time.monotonic)

    def check(self, what: Callable[[], str], *, longer_s: float = 0.0) -> None:
        """Logs what is waited for from time to time; raises when it takes too long."""
        now = time.monotonic()
        if self.timeout_s and now - self.begin > self.timeout_s + longer_s:
            raise StartError(f"gave up after {self.timeout_s:g} s: {what()}")
        if now - self.reported > self.report_s:
            self.reported = now
            _LOG.warning("%s", what())


@dataclass(frozen=True)
class _Visitor:
    rank: int
    addresses: tuple[str, ...]
    connection: socket.socket


def _host(cluster: Cluster, listener: socket.socket, patience: _Patience) -> None:
    """Rank 0: hears every other rank, compares what they say, tells them what came of it."""
    visitors: dict[int, _Visitor] = {}
    with contextlib.ExitStack() as connections:
        try:
            with listener:
                for visitor in _visitors(cluster, listener, patience, visitors):
                    connections.enter_context(visitor.connection)
                    visitors[visitor.rank] = visitor
                    _compare(cluster, visitor)
        except (StartError, DisagreementError) as error:
            _send_all(visitors, {type(error).__name__: str(error)})
            raise
        _send_all(visitors, {"go": True})  # The listener is closed: the port is free again.


def _visitors(
    cluster: Cluster,
    listener: socket.socket,
    patience: _Patience,
    known: Mapping[int, _Visitor],
) -> Iterator[_Visitor]:
    """Those who come, until all are known; one that lost its connection comes again."""
    listener.settimeout(_RETRY_S)
    while len(known) < cluster.size - 1:
        patience.check(lambda: _missing(cluster, known))
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        visitor = _greet(connection)
        if visitor is None:
            connection.close()
        else:
            yield visitor


def _compare(cluster: Cluster, visitor: _Visitor) -> None:
    if visitor.addresses != cluster.addresses or not 0 < visitor.rank < cluster.size:
        raise DisagreementError(
            "the workers were told of different clusters:\n"
            f"  rank 0: {list(cluster.addresses)}\n"
            f"  rank {visitor.rank}: {list(visitor.addresses)}\n"
            "HINT: give every worker the same list of addresses, and each a task.index of its own"
        )


def _visit(cluster: Cluster, patience: _Patience) -> None:
    """Another rank: tells rank 0 who it is, and waits for its word."""
    host, port = _host_and_port(cluster.addresses[0])
    said = json.dumps({"rank": cluster.rank, "cluster": cluster.addresses}).encode() + b"\n"
    problem = "no answer"

    def waiting() -> str:
        return (
            f"rank {cluster.rank} of {cluster.size} is waiting for rank 0 at "
            f"{cluster.addresses[0]} ({problem}); check that it has been started, with the same "
            "list of addresses, and that the port is open to this host"
        )

    while True:
        patience.check(waiting)
        try:
            connection = socket.create_connection((host, port), timeout=_ANSWER_S)
        except OSError as error:
            problem = error.strerror or str(error)
            time.sleep(_RETRY_S)
            continue
        with connection:
            answer = _ask(connection, said, patience, cluster)
        if answer == {"go": True}:
            return
        for kind in (StartError, DisagreementError):
            if answer is not None and kind.__name__ in answer:
                raise kind(str(answer[kind.__name__]))
        problem = "something else answers there"
        time.sleep(_RETRY_S)


def _ask(
    connection: socket.socket, said: bytes, patience: _Patience, cluster: Cluster
) -> dict[str, object] | None:
    """Sends a line and waits for one; None if what comes is no word of rank 0."""
    connection.settimeout(_RETRY_S)
    received = b""
    try:
        connection.sendall(said)
        while not received.endswith(b"\n"):
            patience.check(
                lambda: (
                    f"rank {cluster.rank} of {cluster.size} has found rank 0, which is waiting for "
                    "other workers; its log says for whom"
                ),
                longer_s=_ANSWER_S,  # Rank 0 knows more, and says it when it gives up.
            )
            try:
                part = connection.recv(65536)
            except TimeoutError:
                continue
            received += part
            if not part or len(received) > _MOST_BYTES:
                return None
    except OSError:  # Rank 0 went away, or it wasn't rank 0: the caller tries again.
        return None
    return _object(received)


def _greet(connection: socket.socket) -> _Visitor | None:
    """Hears who has come; None for anything that isn't a worker."""
    connection.settimeout(_ANSWER_S)
    received = b""
    try:
        while not received.endswith(b"\n"):
            part = connection.recv(65536)
            received += part
            if not part or len(received) > _MOST_BYTES:
                return None
    except OSError:  # A stranger's connection; a worker of the job comes again.
        return None
    said = _object(received) or {}
    rank, addresses = said.get("rank"), said.get("cluster")
    if not isinstance(rank, int) or not isinstance(addresses, list):
        return None
    return _Visitor(rank, tuple(map(str, addresses)), connection)


def _object(line: bytes) -> dict[str, object] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _send_all(visitors: Mapping[int, _Visitor], answer: dict[str, object]) -> None:
    for visitor in visitors.values():
        try:
            visitor.connection.sendall(json.dumps(answer).encode() + b"\n")
        except OSError as error:
            _LOG.warning("rank %d came and went: %s", visitor.rank, error)


def _missing(cluster: Cluster, visitors: Mapping[int, _Visitor]) -> str:
    missing = [rank for rank in range(1, cluster.size) if rank not in visitors]
    who = ", ".join(f"rank {rank} ({cluster.addresses[rank]})" for rank in missing)
    return (
        f"rank 0 of {cluster.size} is waiting for {who}; check that each has been started, with "
        f"the same list of addresses, and can reach {cluster.addresses[0]}"
    )


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _listen(port: int) -> socket.socket:
    """On all interfaces, as TensorFlow's server will."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))
