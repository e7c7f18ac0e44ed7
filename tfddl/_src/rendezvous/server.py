"""The server of a rendezvous, on rank 0: admits the others, compares them, and has the store."""

from __future__ import annotations

import ipaddress
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tfddl._src.cluster.cluster import Cluster, join_address
from tfddl._src.rendezvous.base import (
    RETRY_S,
    START_ERRORS,
    Identity,
    Rendezvous,
    check_timer,
    dial,
    port_taken_error,
    split_address,
)
from tfddl._src.rendezvous.endpoint import Client, Endpoint, RefuseError, listen_tcp, listen_unix
from tfddl._src.rendezvous.json_connection import JsonConnection
from tfddl._src.wait_timer import WaitTimer
from tfddl.errors import (
    ClusterError,
    ConnectError,
    DisagreementError,
    PeerLostError,
    StartError,
    TfddlError,
)

SECRET_BYTES = 32

# How long rank 0 stays after a start that has failed, to tell ranks that connect only then.
_LINGER_S = 2.0

# For how long after the start a second process of one rank ends the job, and not only itself: of
# two jobs with the same addresses that start together, ranks may already be mixed.
_CONFLICT_WINDOW_S = 30.0

_MAX_RANKS_NAMED = 10

_LOG = logging.getLogger("tfddl")


@dataclass
class _Member:
    """A rank that is connected to rank 0."""

    connection: JsonConnection
    process: str
    request: dict[str, Any] = field(default_factory=dict)
    """Its request to join; empty until that has arrived."""

    host: str = ""
    """Its IP address as rank 0 sees it; "" if it is on the host of rank 0."""


class RendezvousServer(Rendezvous):
    """Rank 0. Requests are answered by the endpoint's thread, whatever rank 0 does meanwhile."""

    def __init__(
        self, identity: Identity, listener: socket.socket, key: bytes, metadata: dict[str, Any]
    ) -> None:
        """Begins to accept connections; `start` completes the construction.

        Args:
            identity: of rank 0.
            listener: a listening socket; it is taken over.
            key: the job's secret, as its launcher has made it.
            metadata: of rank 0.
        """
        self._identity = identity
        self._own_metadata = metadata
        # Guards all that follows; notified when any of it has changed.
        self._changed = threading.Condition()
        self._members: dict[int, _Member] = {}
        self._store: dict[str, str] = {}
        # Why the start has failed, or the job is in conflict with another one.
        self._failure: TfddlError | None = None
        # How many have been told of the failure because they connected after it.
        self._num_refused = 0
        # By key of a gather, the ranks that have got its texts.
        self._gathered: dict[str, set[int]] = {}
        # Who has ended after the start, for people.
        self._lost: str | None = None
        self._started_s: float | None = None
        # The address of rank 0 by which workers of other hosts have found it.
        self._own_host = ""
        self._abort: Callable[[str], None] | None = None
        self._endpoint = Endpoint(listener, key, check=self._check, admit=self._admit)
        self._endpoint.start()

    def start(self, timer: WaitTimer) -> None:
        """Waits for all others, and tells them to begin.

        Raises:
            StartError: not all have connected in time.
            DisagreementError: the workers have different descriptions of the cluster.
            ClusterError: where they are contradicts what their launcher said.
        """
        with self._changed:
            while self._failure is None and len(self._joined) < self._identity.size - 1:
                try:
                    check_timer(timer, self._describe_missing)
                except StartError as error:
                    self._failure = error
                    break
                self._changed.wait(RETRY_S)
            self._started_s = time.monotonic()
            failure, joined = self._failure, self._joined
        members = list(joined.values())
        if failure is None:
            try:
                cluster = self._make_cluster(joined)
            except ClusterError as error:
                failure = error
        if failure is not None:
            with self._changed:
                self._failure = failure
            self._send_all(members, _failed(failure))
            if isinstance(failure, DisagreementError):
                self._linger()
            self.close()
            raise failure
        metadata = [
            self._own_metadata,
            *(joined[rank].request["facts"] for rank in range(1, cluster.size)),
        ]
        super().__init__(cluster, tuple(metadata), secrets.token_bytes(SECRET_BYTES))
        begin = {"begin": self.secret.hex(), "addresses": cluster.addresses, "facts": metadata}
        self._send_all(members, begin)

    def _linger(self) -> None:
        """Waits for ranks that connect only now, so that they are told of the failure, too."""
        with self._changed:
            num_joined = len(self._joined)
            self._changed.wait_for(
                lambda: num_joined + self._num_refused >= self._identity.size - 1,
                timeout=_LINGER_S,
            )

    def put(self, key: str, text: str) -> None:
        with self._changed:
            self._store[key] = text

    def _read(self, key: str) -> str | None:
        with self._changed:
            return self._store.get(key)

    def _read_gathered(self, key: str) -> list[str] | None:
        with self._changed:
            texts = self._texts(key)
            if len(self._gathered.get(key, ())) == self._identity.size - 1:
                return texts
            self._raise_if_lost()
            return None

    def _texts(self, key: str) -> list[str] | None:
        found = [self._store.get(f"{key}/{rank}") for rank in range(self._identity.size)]
        if None in found:
            self._raise_if_lost()
            return None
        return [text or "" for text in found]

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise PeerLostError(f"{self._lost} has ended; its log says why")

    def on_conflict(self, abort: Callable[[str], None]) -> None:
        with self._changed:
            self._abort = abort
            failure = self._failure
        if failure is not None:
            abort(str(failure))

    def stop_listening(self) -> None:
        self._endpoint.stop_listening()

    def close(self) -> None:
        self._endpoint.close()

    @property
    def _joined(self) -> dict[int, _Member]:
        return {rank: member for rank, member in self._members.items() if member.request}

    def _check(self, hello: Mapping[str, Any]) -> None:
        """Refuses clients that aren't a rank that is missing; see `Endpoint`."""
        rank = hello.get("rank")
        if hello.get("for") != "rendezvous" or type(rank) is not int or rank < 0:
            raise RefuseError("this is the rendezvous of a job of tfddl")
        if hello.get("job") != self._identity.job:
            raise RefuseError(
                f"this is rank 0 of job {self._identity.job!r}, and you are of job "
                f"{hello.get('job')!r}. HINT: give each job a port of its own"
            )
        with self._changed:
            if self._failure is not None and self._started_s is not None:
                self._num_refused += 1
                self._changed.notify_all()
                raise RefuseError(str(self._failure))
            other = self._process_of(rank)
            if other is None:
                return  # A rank beyond the last is refused when the addresses are compared.
            text = (
                f"two processes say that they are rank {rank} of this job: {other}, and "
                f"{hello.get('process')}. HINT: were two jobs started with the same addresses "
                "(TF_CONFIG), or a worker twice? Give each job ports of its own. A worker that has "
                "ended can't come back: start all of them again"
            )
            since_s = 0.0 if self._started_s is None else time.monotonic() - self._started_s
            if since_s < _CONFLICT_WINDOW_S:
                self._fail(DisagreementError(text))
        raise RefuseError(text)

    def _process_of(self, rank: int) -> str | None:
        """The process that is this rank; None where a client may become it."""
        if rank == 0:
            return str(self._identity.hello()["process"])
        if rank in self._members:
            return self._members[rank].process
        return None if self._started_s is None else "one that has ended, or of another job"

    def _fail(self, error: TfddlError) -> None:
        """Ends the start, or what has started. The caller holds `_changed`."""
        if self._failure is None:
            self._failure = error
            self._changed.notify_all()
            if self._started_s is not None and self._abort is not None:
                self._abort(str(error))

    def _admit(self, client: Client) -> None:
        connected = client.connection
        member = _Member(JsonConnection(connected), str(client.hello.get("process")))
        rank = client.hello["rank"]
        member.host = self._host_of(connected)
        with self._changed:
            self._members[rank] = member
        # The member is passed along: by the time of a call, the rank may have connected again.
        self._endpoint.serve(connected, lambda: self._serve(rank, member))

    def _host_of(self, connected: socket.socket) -> str:
        """Where a worker is; "" on this host. Keeps the address by which it has found rank 0."""
        if connected.family == socket.AF_UNIX:
            return ""
        peer, own = (_ip_address(name()) for name in (connected.getpeername, connected.getsockname))
        # A client that connects to an address of its own host has that address itself.
        if peer == own or ipaddress.ip_address(peer.partition("%")[0]).is_loopback:
            return ""
        self._own_host = self._own_host or own
        return peer

    def _serve(self, rank: int, member: _Member) -> bool:
        """Answers the requests of a worker that have arrived; False once it has ended."""
        requests = member.connection.receive(wait_s=0)
        for request in requests or []:
            try:
                self._answer(rank, member, request)
            except (OSError, KeyError, TypeError):
                # It has ended; or it is no worker, which is possible where there is no secret.
                requests = None
                break
        if requests is not None:
            return True
        with self._changed:
            if self._members.get(rank) is not member:  # It has connected again meanwhile.
                pass
            elif self._started_s is None:
                del self._members[rank]  # It may connect again.
            else:
                self._lost = self._lost or f"rank {rank} ({member.process})"
        member.connection.socket.close()
        return False

    def _answer(self, rank: int, member: _Member, request: dict[str, Any]) -> None:
        connection = member.connection
        with self._changed:
            if "join" in request and self._started_s is not None:
                # Admitted before the start, and too late to be told with the others.
                self._num_refused += 1
                self._changed.notify_all()
                connection.send(_failed(self._failure or StartError("the job runs already")))
            elif "join" in request:
                self._compare(rank, request)
                member.request = {name: request[name] for name in ("facts", "port", "local_rank")}
                self._changed.notify_all()
            elif "put" in request:
                self._store[request["put"]] = request["text"]
                connection.send({"text": None})
            elif "get" in request:
                connection.send({"text": self._store.get(request["get"])})
            elif "gather" in request:
                try:
                    texts = self._texts(request["gather"])
                except PeerLostError as error:
                    connection.send({"lost": str(error)})
                    return
                connection.send({"texts": texts})
                if texts is not None:
                    self._gathered.setdefault(request["gather"], set()).add(rank)

    def _compare(self, rank: int, request: Mapping[str, Any]) -> None:
        own, theirs = self._identity.addresses, request["addresses"]
        if request["size"] == self._identity.size and theirs == (own and list(own)):
            return
        mine = list(own) if own else f"{self._identity.size} workers, at {self._identity.master}"
        other = theirs or f"{request['size']} workers, at {request['master']}"
        self._fail(
            DisagreementError(
                "the workers have different descriptions of the cluster:\n"
                f"  rank 0: {mine}\n"
                f"  rank {rank}: {other}\n"
                "HINT: give every worker the same list of addresses, and each a task.index of its "
                "own"
            )
        )

    def _make_cluster(self, joined: Mapping[int, _Member]) -> Cluster:
        """All workers, from what they were told, or from where they have connected from."""
        identity = self._identity
        if identity.addresses is not None:
            return Cluster(identity.addresses, 0, identity.job)
        # Rank 0 by the address that the other hosts have found it at, not by its own name of it.
        own = self._own_host or "127.0.0.1"
        addresses = [join_address(own, split_address(identity.master)[1])]
        for rank in range(1, identity.size):
            member = joined[rank]
            addresses.append(join_address(member.host or own, member.request["port"]))
        cluster = Cluster(tuple(addresses), 0, identity.job)
        told = [identity.local_rank, *(joined[rank].request["local_rank"] for rank in joined)]
        for rank, local_rank in zip([0, *joined], told, strict=True):
            found = Cluster(cluster.addresses, rank).local_rank
            if local_rank is not None and local_rank != found:
                raise ClusterError(
                    f"rank {rank} has local rank {local_rank} by its launcher, but "
                    f"{found} by the addresses that the workers have connected from: "
                    f"{', '.join(addresses)}. HINT: name all workers in "
                    "TF_CONFIG where hosts share an address (NAT), or ranks are dealt out in turn"
                )
        return cluster

    def _send_all(self, members: list[_Member], message: Mapping[str, Any]) -> None:
        for member in members:
            try:
                member.connection.send(message)
            except OSError as error:
                _LOG.warning("%s connected, and has ended: %s", member.process, error)

    def _describe_missing(self) -> str:
        addresses = self._identity.addresses
        missing = [rank for rank in range(1, self._identity.size) if rank not in self._joined]
        named = missing[:_MAX_RANKS_NAMED]
        who = ", ".join(f"rank {r} ({addresses[r]})" if addresses else f"rank {r}" for r in named)
        if len(missing) > len(named):
            who += f" and {len(missing) - len(named)} more"
        return (
            f"rank 0 of {self._identity.size} is waiting for {who}; check that each has been "
            f"started, with the same list of addresses, and can reach {self._identity.master}"
        )


def serve(
    identity: Identity, secret: bytes, metadata: dict[str, Any], timer: WaitTimer
) -> Rendezvous:
    """Listens, and waits until all ranks have connected; see `rendezvous.join`."""
    host, port = split_address(identity.master)
    try:
        if identity.is_one_host:
            listener = listen_unix(identity.socket_name(secret), socket.SOCK_STREAM)
        else:
            listener = listen_tcp(port)
    except OSError as error:
        _refuse_second_job(identity, secret)
        raise port_taken_error(0, host, port, error.strerror) from error
    server = RendezvousServer(identity, listener, secret, metadata)
    server.start(timer)
    return server


def _refuse_second_job(identity: Identity, secret: bytes) -> None:
    """If rank 0 of another job has the address, both jobs are told.

    Raises:
        DisagreementError: that is so.
    """
    try:
        dial(identity, secret, by_unix=identity.is_one_host).close()
    except ConnectError as error:
        if error.is_refused:
            raise DisagreementError(str(error)) from None


def _failed(error: TfddlError) -> dict[str, Any]:
    kind = next(k for k in START_ERRORS.values() if isinstance(error, k))
    return {"failed": kind.__name__, "text": str(error)}


def _ip_address(name: tuple[Any, ...]) -> str:
    """The IP address in a socket's name; IPv4 that was mapped into IPv6 loses its prefix."""
    return str(name[0]).removeprefix("::ffff:")
