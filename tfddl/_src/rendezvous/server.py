"""Rank 0's side of a rendezvous: it lets the others in, compares them, and keeps the notes."""

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
    KINDS,
    RETRY_S,
    Identity,
    Rendezvous,
    StartDeadline,
    dial,
    host_and_port,
    port_taken,
)
from tfddl._src.rendezvous.endpoint import Client, Endpoint, RefuseError, listen_tcp, listen_unix
from tfddl._src.rendezvous.json_connection import JsonConnection
from tfddl.errors import (
    ClusterError,
    ConnectError,
    DisagreementError,
    PeerLostError,
    StartError,
    TfddlError,
)

SECRET_BYTES = 32

_LINGER_S = 2.0
"""How long rank 0 stays after a start that has failed, for those who haven't come yet."""

_SETTLE_S = 30.0
"""How long after the start somebody who claims a rank that is taken ends the job, and not only
himself: of two jobs with the same addresses that start together, ranks may already be mixed."""

_LOG = logging.getLogger("tfddl")


@dataclass
class _Member:
    """A rank that has come to rank 0."""

    channel: JsonConnection
    process: str
    said: dict[str, Any] = field(default_factory=dict)
    """What it has joined with; empty until it has."""

    host: str = ""
    """Its address, as rank 0 sees it; "" if it is on the host of rank 0."""


class RendezvousServer(Rendezvous):
    """Rank 0: lets the others in, and keeps the notes."""

    def __init__(
        self, identity: Identity, listener: socket.socket, key: bytes, facts: dict[str, Any]
    ) -> None:
        self._identity = identity
        self._own_facts = facts
        self._members: dict[int, _Member] = {}
        self._notes: dict[str, str] = {}
        self._changed = threading.Condition()
        self._failure: TfddlError | None = None
        self._num_refused = 0
        """How many have heard of the failure because they came after it."""

        self._heard: dict[str, set[int]] = {}
        """By key of a gather, who has got its texts."""

        self._lost: str | None = None
        """Who has ended after the start."""

        self._begun_s: float | None = None
        self._own_host = ""
        self._end: Callable[[str], None] | None = None
        self._endpoint = Endpoint(listener, key, check=self._check, admit=self._admit)
        self._endpoint.start()

    def wait(self, patience: StartDeadline) -> None:
        """Waits for all others, and tells them that they can begin."""
        with self._changed:
            while self._failure is None and len(self._known) < self._identity.size - 1:
                try:
                    patience.check(self._missing)
                except StartError as error:
                    self._failure = error
                    break
                self._changed.wait(RETRY_S)
            self._begun_s = time.monotonic()
            failure, known = self._failure, self._known
        members = list(known.values())
        if failure is None:
            try:
                cluster = self._cluster(known)
            except ClusterError as error:
                failure = error
        if failure is not None:
            with self._changed:
                self._failure = failure
            self._tell(members, _failed(failure))
            if isinstance(failure, DisagreementError):
                self._linger()
            self.close()
            raise failure
        facts = [self._own_facts, *(known[r].said["facts"] for r in range(1, cluster.size))]
        super().__init__(cluster, tuple(facts), secrets.token_bytes(SECRET_BYTES))
        begin = {
            "begin": self.secret.hex(),
            "addresses": cluster.addresses,
            "facts": facts,
        }
        self._tell(members, begin)

    def _linger(self) -> None:
        """Lets those who come only now hear, too, that the start has failed."""
        with self._changed:
            there = len(self._known)
            self._changed.wait_for(
                lambda: there + self._num_refused >= self._identity.size - 1, timeout=_LINGER_S
            )

    def put(self, key: str, text: str) -> None:
        """See `Rendezvous.put`."""
        with self._changed:
            self._notes[key] = text

    def _read(self, key: str) -> str | None:
        with self._changed:
            return self._notes.get(key)

    def _gathered(self, key: str) -> list[str] | None:
        with self._changed:
            texts = self._texts(key)
            if len(self._heard.get(key, ())) == self._identity.size - 1:
                return texts
            self._refuse_lost()
            return None

    def _texts(self, key: str) -> list[str] | None:
        found = [self._notes.get(f"{key}/{rank}") for rank in range(self._identity.size)]
        if None in found:
            self._refuse_lost()
            return None
        return [text or "" for text in found]

    def _refuse_lost(self) -> None:
        if self._lost is not None:
            raise PeerLostError(f"{self._lost} has ended; its log says why")

    def on_conflict(self, end: Callable[[str], None]) -> None:
        """See `Rendezvous.on_conflict`."""
        with self._changed:
            self._end = end
            failure = self._failure
        if failure is not None:
            end(str(failure))

    def stop_listening(self) -> None:
        """See `Rendezvous.stop_listening`."""
        self._endpoint.stop_listening()

    def close(self) -> None:
        """See `Rendezvous.close`."""
        self._endpoint.close()

    @property
    def _known(self) -> dict[int, _Member]:
        return {rank: member for rank, member in self._members.items() if member.said}

    def _check(self, hello: Mapping[str, Any]) -> None:
        """Refuses who isn't a worker that is missing; see `Endpoint`."""
        rank = hello.get("rank")
        if hello.get("for") != "rendezvous" or type(rank) is not int or rank < 0:
            raise RefuseError("this is the rendezvous of a job of tfddl")
        if hello.get("job") != self._identity.job:
            raise RefuseError(
                f"this is rank 0 of job {self._identity.job!r}, and you are of job "
                f"{hello.get('job')!r}. HINT: give each job a port of its own"
            )
        with self._changed:
            if self._failure is not None and self._begun_s is not None:
                self._num_refused += 1
                self._changed.notify_all()
                raise RefuseError(str(self._failure))
            there = self._process_of(rank)
            if there is None:
                return  # A rank beyond the last is refused when the addresses are compared.
            text = (
                f"two processes say that they are rank {rank} of this job: {there}, and "
                f"{hello.get('process')}. HINT: were two jobs started with the same addresses "
                "(TF_CONFIG), or a worker twice? Give each job ports of its own. A worker that has "
                "ended can't come back: start all of them again"
            )
            if self._begun_s is None or time.monotonic() - self._begun_s < _SETTLE_S:
                self._fail(DisagreementError(text))
        raise RefuseError(text)

    def _process_of(self, rank: int) -> str | None:
        """Who is this rank; None where it is free to be taken."""
        if rank == 0:
            return str(self._identity.hello()["process"])
        if rank in self._members:
            return self._members[rank].process
        return None if self._begun_s is None else "one that has ended, or of another job"

    def _fail(self, error: TfddlError) -> None:
        """Ends the start, or what has started; `_changed` is held."""
        if self._failure is None:
            self._failure = error
            self._changed.notify_all()
            if self._begun_s is not None and self._end is not None:
                self._end(str(error))

    def _admit(self, caller: Client) -> None:
        member = _Member(JsonConnection(caller.connection), str(caller.hello.get("process")))
        rank = caller.hello["rank"]
        member.host = self._host_of(caller.connection)
        with self._changed:
            self._members[rank] = member
        self._endpoint.serve(caller.connection, lambda: self._serve(rank, member))

    def _host_of(self, connection: socket.socket) -> str:
        """Where a worker is; "" on this host. Remembers by which address it has found us."""
        if connection.family == socket.AF_UNIX:
            return ""
        peer, own = (_address(name()) for name in (connection.getpeername, connection.getsockname))
        if peer == own or ipaddress.ip_address(peer.partition("%")[0]).is_loopback:
            return ""
        self._own_host = self._own_host or own
        return peer

    def _serve(self, rank: int, member: _Member) -> bool:
        """Does what a worker asks for; False once it has gone."""
        messages = member.channel.receive(wait_s=0)
        for message in messages or []:
            try:
                self._answer(rank, member, message)
            except (OSError, KeyError, TypeError):  # Gone; or no worker, where there is no secret.
                messages = None
                break
        if messages is not None:
            return True
        with self._changed:
            if self._members.get(rank) is not member:
                pass
            elif self._begun_s is None:
                del self._members[rank]  # It may come again.
            else:
                self._lost = self._lost or f"rank {rank} ({member.process})"
        member.channel.connection.close()
        return False

    def _answer(self, rank: int, member: _Member, message: dict[str, Any]) -> None:
        with self._changed:
            if "join" in message and self._begun_s is not None:
                # It was let in before, and has said so too late to be told with the others.
                self._num_refused += 1
                self._changed.notify_all()
                member.channel.send(_failed(self._failure or StartError("the job has begun")))
            elif "join" in message:
                self._compare(rank, message)
                member.said = {name: message[name] for name in ("facts", "port", "local_rank")}
                self._changed.notify_all()
            elif "put" in message:
                self._notes[message["put"]] = message["text"]
                member.channel.send({"text": None})
            elif "get" in message:
                member.channel.send({"text": self._notes.get(message["get"])})
            elif "gather" in message:
                try:
                    texts = self._texts(message["gather"])
                except PeerLostError as error:
                    member.channel.send({"lost": str(error)})
                    return
                member.channel.send({"texts": texts})
                if texts is not None:
                    self._heard.setdefault(message["gather"], set()).add(rank)

    def _compare(self, rank: int, said: Mapping[str, Any]) -> None:
        own, theirs = self._identity.addresses, said["addresses"]
        if said["size"] == self._identity.size and theirs == (own and list(own)):
            return
        mine = list(own) if own else f"{self._identity.size} workers, at {self._identity.master}"
        other = theirs or f"{said['size']} workers, at {said['master']}"
        self._fail(
            DisagreementError(
                "the workers were told of different clusters:\n"
                f"  rank 0: {mine}\n"
                f"  rank {rank}: {other}\n"
                "HINT: give every worker the same list of addresses, and each a task.index of its "
                "own"
            )
        )

    def _cluster(self, known: Mapping[int, _Member]) -> Cluster:
        """All workers, from what each was told, or from where they have called from."""
        identity = self._identity
        if identity.addresses is not None:
            return Cluster(identity.addresses, 0, identity.job)
        # Rank 0 as the other hosts have found it; it may know itself by another name.
        own = self._own_host or "127.0.0.1"
        addresses = [join_address(own, host_and_port(identity.master)[1])]
        for rank in range(1, identity.size):
            member = known[rank]
            addresses.append(join_address(member.host or own, member.said["port"]))
        cluster = Cluster(tuple(addresses), 0, identity.job)
        told = [identity.local_rank, *(known[r].said["local_rank"] for r in known)]
        for rank, local_rank in zip([0, *known], told, strict=True):
            found = Cluster(cluster.addresses, rank).local_rank
            if local_rank is not None and local_rank != found:
                raise ClusterError(
                    f"rank {rank} is number {local_rank} on its host, as its launcher says, but "
                    f"number {found} by the addresses that the workers have called from: "
                    f"{', '.join(addresses)}. HINT: do hosts share an address (NAT), or ranks go "
                    "round the hosts? TF_CONFIG can name all workers"
                )
        return cluster

    def _tell(self, members: list[_Member], message: Mapping[str, Any]) -> None:
        for member in members:
            try:
                member.channel.send(message)
            except OSError as error:
                _LOG.warning("%s came and went: %s", member.process, error)

    def _missing(self) -> str:
        addresses = self._identity.addresses
        missing = [rank for rank in range(1, self._identity.size) if rank not in self._known]
        names = [f"rank {r} ({addresses[r]})" if addresses else f"rank {r}" for r in missing[:10]]
        who = ", ".join(names) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        return (
            f"rank 0 of {self._identity.size} is waiting for {who}; check that each has been "
            f"started, with the same list of addresses, and can reach {self._identity.master}"
        )


def host(
    identity: Identity, secret: bytes, facts: dict[str, Any], patience: StartDeadline
) -> Rendezvous:
    """Waits for all other ranks; see `tfddl._src.rendezvous.join`."""
    name, port = host_and_port(identity.master)
    try:
        if identity.one_host:
            listener = listen_unix(identity.socket_name(secret), socket.SOCK_STREAM)
        else:
            listener = listen_tcp(port)
    except OSError as error:
        _refuse_second_job(identity, secret)
        raise port_taken(0, name, port, error.strerror) from error
    found = RendezvousServer(identity, listener, secret, facts)
    found.wait(patience)
    return found


def _refuse_second_job(identity: Identity, secret: bytes) -> None:
    """Somebody has our address: if it is rank 0 of another job, both hear of it."""
    try:
        dial(identity, secret, by_unix=identity.one_host).close()
    except ConnectError as error:
        if error.is_refused:
            raise DisagreementError(str(error)) from None


def _failed(error: TfddlError) -> dict[str, Any]:
    kind = next(k for k in KINDS.values() if isinstance(error, k))
    return {"failed": kind.__name__, "text": str(error)}


def _address(name: tuple[Any, ...]) -> str:
    """An IP address as text, without the prefix of IPv4 in IPv6."""
    return str(name[0]).removeprefix("::ffff:")
