"""The workers of a job find each other, compare what they are about to do, and keep notes.

Rank 0 listens at the first address of the job: by a Unix socket where all workers are on one host,
otherwise by TCP. Every other rank connects to it, says who it is, which addresses it was told, and
some *facts* about itself. Once all have come, each gets the facts of all, and a secret that only
they have, for what they open to each other later. Nothing of TensorFlow is needed for it.

The connections stay. Through them any rank can write *notes*, short texts that all can read,
whatever the others are doing: what a rank waits in, or that it records a timeline.

Who may join is decided by `tfddl.cluster.endpoint`: whoever knows the job's secret, where the
launcher has made one (TFDDL_SECRET); otherwise whoever speaks our protocol, or on one host any
process of this user. Then rank, job, and addresses are compared, and no rank can be there twice.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import hashlib
import ipaddress
import json
import logging
import os
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tfddl.cluster import endpoint
from tfddl.cluster.cluster import Cluster, PartialCluster, join_address
from tfddl.cluster.endpoint import Caller, Endpoint, RefuseError
from tfddl.cluster.parsing import parse_json
from tfddl.cluster.ports import free_ports, is_free
from tfddl.errors import (
    ClusterError,
    ConnectError,
    DisagreementError,
    PeerLostError,
    StalledError,
    StartError,
    TfddlError,
)

PORT_TAKEN = "can't listen on port"
"""Said when another program has the port of a worker; `tfddlrun` then chooses others."""

SECRET_BYTES = 32

_LENGTH = struct.Struct("<I")
_LONGEST_MESSAGE = 2**26
"""Bytes; a thousand workers' facts are less than one million. Only workers of the job send any."""

_REPORT_S = 15.0
_RETRY_S = 0.1
_LOOK_S = 0.005
_ANSWER_S = 5.0
_NOTE_S = 10.0
"""For rank 0 to answer about a note: its process may be busy, or stopped."""

_LINGER_S = 2.0
"""How long rank 0 stays after a start that has failed, for those who haven't come yet."""

_SETTLE_S = 30.0
"""How long after the start somebody who claims a rank that is taken ends the job, and not only
himself: of two jobs with the same addresses that start together, ranks may already be mixed."""

_LOG = logging.getLogger("tfddl")


class Rendezvous(abc.ABC):
    """The connection of one worker to all others that `join` has made.

    Attributes:
        cluster: all workers.
        facts: what each has said of itself, in rank order.
        secret: `SECRET_BYTES` that the workers of this job have, and nobody else.
    """

    def __init__(self, cluster: Cluster, facts: tuple[Mapping[str, Any], ...], secret: bytes):
        self.cluster, self.facts, self.secret = cluster, facts, secret

    @abc.abstractmethod
    def put(self, key: str, text: str) -> None:
        """Writes a note; what was under the key before is gone.

        Raises:
            PeerLostError: rank 0, which keeps the notes, has ended.
            StalledError: it doesn't answer.
        """

    def get(self, key: str, *, wait_s: float = 0.0) -> str:
        """Reads a note.

        Args:
            key: under which it was written.
            wait_s: how long to wait until somebody has written it.

        Returns:
            "" if nobody has.

        Raises:
            PeerLostError: rank 0, which keeps the notes, has ended.
            StalledError: it doesn't answer.
        """
        until_s = time.monotonic() + wait_s
        while (text := self._read(key)) is None:
            if time.monotonic() >= until_s:
                return ""
            time.sleep(min(_RETRY_S, wait_s))
        return text

    @abc.abstractmethod
    def _read(self, key: str) -> str | None:
        """A note; None if nobody has written it."""

    def gather(self, key: str, text: str, *, timeout_s: float) -> tuple[str, ...]:
        """Collects a text of each rank. All ranks must call it together.

        Args:
            key: tells this call from others; it is used once.
            text: this rank's.
            timeout_s: after how many seconds to give up; 0 waits for ever.

        Returns:
            Those of all, in rank order. Rank 0 returns last: where it then holds the interpreter,
            as TensorFlow's server does while it waits for the others, it could tell nobody.

        Raises:
            StalledError: ranks, which are named, haven't called it in time.
            PeerLostError: one of them has ended.
        """
        patience = _Patience(timeout_s, _REPORT_S)
        self.put(f"{key}/{self.cluster.rank}", text)
        while (texts := self._gathered(key)) is None:
            missing = [r for r in range(self.cluster.size) if self._read(f"{key}/{r}") is None]

            def waiting(missing: list[int] = missing) -> str:
                names = ", ".join(map(str, missing))
                return (
                    f"rank {self.cluster.rank} waits in {key}, which all ranks must call together; "
                    f"these haven't: {names}"
                )

            try:
                patience.check(waiting)
            except StartError as error:
                raise StalledError(str(error)) from None
            time.sleep(_LOOK_S)
        return tuple(texts)

    @abc.abstractmethod
    def _gathered(self, key: str) -> list[str] | None:
        """The texts of all ranks, once they are there."""

    def when_in_conflict(self, end: Callable[[str], None]) -> None:
        """Says what to do if it turns out soon that two jobs have been mixed.

        Args:
            end: is told what happened, in another thread.
        """
        del end

    @abc.abstractmethod
    def stop_listening(self) -> None:
        """Lets the port of rank 0 go, for TensorFlow's server; connections stay."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends the connection; nobody can read or write notes any more on this rank."""


def join(
    cluster: Cluster | PartialCluster,
    *,
    secret: bytes = b"",
    facts: Mapping[str, Any],
    timeout_s: float,
    report_s: float = _REPORT_S,
) -> Rendezvous:
    """Returns once all workers have come. All ranks must call it together.

    Args:
        cluster: who takes part, as this worker was told; at least two workers.
        secret: what the launcher has told all workers, and nobody else; b"" if it hasn't.
        facts: what to tell all others: a JSON object.
        timeout_s: after how many seconds to give up; 0 waits for ever.
        report_s: how often to log who is missing.

    Raises:
        StartError: another program has the port, or not all workers came in time.
        DisagreementError: the workers were told of different clusters, or two claim one rank.
        ClusterError: where the workers are contradicts what their launcher said.
    """
    patience = _Patience(timeout_s, report_s)
    identity = _Identity.of(cluster)
    if cluster.rank == 0:
        return _host(identity, secret, dict(facts), patience)
    return _visit(identity, secret, dict(facts), patience)


def require_free_port(cluster: Cluster) -> None:
    """Makes sure that TensorFlow's server can have this worker's port.

    Raises:
        StartError: another program has it.
    """
    host, port = _host_and_port(cluster.addresses[cluster.rank])
    if not is_free(port):
        raise _port_taken(cluster.rank, host, port, os.strerror(errno.EADDRINUSE))


@dataclass(frozen=True)
class _Identity:
    """Who this worker is, and what it was told of the job."""

    rank: int
    size: int
    job: str
    master: str
    addresses: tuple[str, ...] | None
    """None where the launcher hasn't said any but the master's."""

    local_rank: int | None
    one_host: bool

    @classmethod
    def of(cls, cluster: Cluster | PartialCluster) -> _Identity:
        if isinstance(cluster, Cluster):
            one_host = len(cluster.hosts) == 1 and sys.platform.startswith("linux")
            first, addresses, local_rank = cluster.addresses[0], cluster.addresses, None
        else:
            one_host, first, addresses = False, cluster.master, None
            local_rank = cluster.local_rank
        return cls(cluster.rank, cluster.size, cluster.job, first, addresses, local_rank, one_host)

    def socket_name(self, secret: bytes) -> str:
        """Where rank 0 listens if all are on its host."""
        text = f"{self.master} {self.job}".encode()
        digest = hashlib.blake2b(text, key=secret[:64], digest_size=16).hexdigest()
        return f"tfddl-{os.getuid()}-{digest}"

    def hello(self) -> dict[str, Any]:
        """Who is calling."""
        return {
            "for": "rendezvous",
            "rank": self.rank,
            "job": self.job,
            "process": f"process {os.getpid()} on {socket.gethostname()}",
        }


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


class _Channel:
    """JSON objects over a connection, each after its length."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._received = bytearray()
        self._is_over = False

    def send(self, message: Mapping[str, Any]) -> None:
        """Raises OSError where it can't be sent, or isn't taken for long."""
        self.connection.settimeout(_NOTE_S)
        text = json.dumps(message).encode()
        self.connection.sendall(_LENGTH.pack(len(text)) + text)

    def receive(self, *, wait_s: float) -> list[dict[str, Any]] | None:
        """What has come by then, which may be nothing; None when there will be no more."""
        self.connection.settimeout(wait_s)
        try:
            data = self.connection.recv(2**16)
        except (BlockingIOError, TimeoutError):
            return []
        except OSError:
            return None
        self._received += data
        messages = []
        while len(self._received) >= _LENGTH.size:
            [length] = _LENGTH.unpack_from(self._received)
            if length > _LONGEST_MESSAGE:
                return None
            stop = _LENGTH.size + length
            if len(self._received) < stop:
                break
            text = bytes(self._received[_LENGTH.size : stop])
            del self._received[:stop]
            try:
                message = parse_json(text, what="a message", most_bytes=_LONGEST_MESSAGE)
            except ClusterError:
                return None
            if not isinstance(message, dict):
                return None
            messages.append(message)
        return messages if data else None


@dataclass
class _Member:
    """A rank that has come to rank 0."""

    channel: _Channel
    process: str
    said: dict[str, Any] = field(default_factory=dict)
    """What it has joined with; empty until it has."""

    host: str = ""
    """Its address, as rank 0 sees it; "" if it is on the host of rank 0."""


class _Host(Rendezvous):
    """Rank 0: lets the others in, and keeps the notes."""

    def __init__(
        self, identity: _Identity, listener: socket.socket, key: bytes, facts: dict[str, Any]
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

    def wait(self, patience: _Patience) -> None:
        """Waits for all others, and tells them that they can begin."""
        with self._changed:
            while self._failure is None and len(self._known) < self._identity.size - 1:
                try:
                    patience.check(self._missing)
                except StartError as error:
                    self._failure = error
                    break
                self._changed.wait(_RETRY_S)
            self._begun_s = time.monotonic()
            failure, members = self._failure, list(self._known.values())
        if failure is None:
            try:
                cluster = self._cluster()
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
        facts = [self._own_facts, *(self._known[r].said["facts"] for r in range(1, cluster.size))]
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

    def when_in_conflict(self, end: Callable[[str], None]) -> None:
        """See `Rendezvous.when_in_conflict`."""
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

    def _admit(self, caller: Caller) -> None:
        member = _Member(_Channel(caller.connection), str(caller.hello.get("process")))
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

    def _cluster(self) -> Cluster:
        """All workers, from what each was told, or from where they have called from."""
        identity = self._identity
        if identity.addresses is not None:
            return Cluster(identity.addresses, 0, identity.job)
        # Rank 0 as the other hosts have found it; it may know itself by another name.
        own = self._own_host or "127.0.0.1"
        addresses = [join_address(own, _host_and_port(identity.master)[1])]
        for rank in range(1, identity.size):
            member = self._known[rank]
            addresses.append(join_address(member.host or own, member.said["port"]))
        cluster = Cluster(tuple(addresses), 0, identity.job)
        told = [identity.local_rank, *(self._known[r].said["local_rank"] for r in self._known)]
        for rank, local_rank in zip([0, *self._known], told, strict=True):
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


class _Visitor(Rendezvous):
    """Any other rank."""

    def __init__(
        self,
        cluster: Cluster,
        facts: tuple[Mapping[str, Any], ...],
        secret: bytes,
        channel: _Channel,
    ) -> None:
        super().__init__(cluster, facts, secret)
        self._channel = channel
        self._lock = threading.Lock()
        endpoint.close_in_children(self)

    def put(self, key: str, text: str) -> None:
        """See `Rendezvous.put`."""
        self._ask({"put": key, "text": text})

    def _read(self, key: str) -> str | None:
        text: str | None = self._ask({"get": key})["text"]
        return text

    def _gathered(self, key: str) -> list[str] | None:
        answer = self._ask({"gather": key})
        if "lost" in answer:
            raise PeerLostError(answer["lost"])
        texts: list[str] | None = answer["texts"]
        return texts

    def stop_listening(self) -> None:
        """See `Rendezvous.stop_listening`: it is rank 0 that listens."""

    def close(self) -> None:
        """See `Rendezvous.close`."""
        self._channel.connection.close()

    def forget(self) -> None:
        """For a forked child, whose parent's connection this is."""
        self._channel.connection.close()

    def _ask(self, question: Mapping[str, str]) -> dict[str, Any]:
        with self._lock:
            until_s = time.monotonic() + _NOTE_S
            answers: list[dict[str, Any]] | None = []
            with contextlib.suppress(TimeoutError):
                try:
                    self._channel.send(question)
                    while answers == [] and time.monotonic() < until_s:
                        answers = self._channel.receive(wait_s=_RETRY_S)
                except TimeoutError:
                    raise
                except OSError:
                    answers = None
            if answers is None:
                raise PeerLostError("rank 0, which keeps the notes of all, has ended")
            if not answers:
                # What comes later would be taken for the answer to the next question.
                self.close()
                raise StalledError(f"rank 0 hasn't answered for {_NOTE_S:g} s")
            return answers[0]


_KINDS: Mapping[str, type[TfddlError]] = {
    kind.__name__: kind for kind in (StartError, DisagreementError, ClusterError)
}


def _failed(error: TfddlError) -> dict[str, Any]:
    kind = next(k for k in _KINDS.values() if isinstance(error, k))
    return {"failed": kind.__name__, "text": str(error)}


def _host(
    identity: _Identity, secret: bytes, facts: dict[str, Any], patience: _Patience
) -> Rendezvous:
    host, port = _host_and_port(identity.master)
    try:
        if identity.one_host:
            listener = endpoint.listen_unix(identity.socket_name(secret), socket.SOCK_STREAM)
        else:
            listener = endpoint.listen_tcp(port)
    except OSError as error:
        _refuse_second_job(identity, secret)
        raise _port_taken(0, host, port, error.strerror) from error
    found = _Host(identity, listener, secret, facts)
    found.wait(patience)
    return found


def _refuse_second_job(identity: _Identity, secret: bytes) -> None:
    """Somebody has our address: if it is rank 0 of another job, both hear of it."""
    try:
        _dial(identity, secret, by_unix=identity.one_host).close()
    except ConnectError as error:
        if error.is_refused:
            raise DisagreementError(str(error)) from None


def _port_taken(rank: int, host: str, port: int, why: str | None) -> StartError:
    return StartError(
        f"rank {rank} {PORT_TAKEN} {port} ({host}): {why}. HINT: another program has it, perhaps a "
        "worker of an earlier job; end that, or choose another port"
    )


def _visit(
    identity: _Identity, secret: bytes, facts: dict[str, Any], patience: _Patience
) -> Rendezvous:
    """Another rank: tells rank 0 who it is, and waits for its word."""
    problem = "no answer"

    def waiting() -> str:
        return (
            f"rank {identity.rank} of {identity.size} is waiting for rank 0 at {identity.master} "
            f"({problem}); check that it has been started, with the same list of addresses, and "
            "that the port is open to this host"
        )

    said = {
        "join": identity.rank,
        "size": identity.size,
        "master": identity.master,
        "addresses": identity.addresses and list(identity.addresses),
        "port": None if identity.addresses else free_ports(1)[0],
        "local_rank": identity.local_rank,
        "facts": facts,
    }
    # The other way is tried, too: rank 0 may have been told of other hosts, and would say so.
    ways = [identity.one_host, *([not identity.one_host] * sys.platform.startswith("linux"))]
    while True:
        patience.check(waiting)
        for number, by_unix in enumerate(ways):
            try:
                connection = _dial(identity, secret, by_unix=by_unix)
            except ConnectError as error:
                if error.is_refused:
                    raise DisagreementError(str(error)) from None
                problem = str(error) if number == 0 else problem
                continue
            with contextlib.ExitStack() as stack:
                stack.callback(connection.close)
                found = _converse(identity, _Channel(connection), said, patience)
                if found is not None:
                    stack.pop_all()
                    return found
            problem = "it has hung up"
        time.sleep(_RETRY_S)


def _dial(identity: _Identity, secret: bytes, *, by_unix: bool) -> socket.socket:
    hello = identity.hello()
    if by_unix:
        name, kind = identity.socket_name(secret), socket.SOCK_STREAM
        return endpoint.dial_unix(name, kind, secret, hello, timeout_s=_ANSWER_S)
    host, port = _host_and_port(identity.master)
    return endpoint.dial_tcp(host, port, secret, hello, timeout_s=_ANSWER_S)


def _converse(
    identity: _Identity, channel: _Channel, said: Mapping[str, Any], patience: _Patience
) -> Rendezvous | None:
    """Says who we are, and waits for rank 0's word; None if it goes away without one."""
    try:
        channel.send(said)
        while (heard := channel.receive(wait_s=_RETRY_S)) == []:
            patience.check(
                lambda: (
                    f"rank {identity.rank} of {identity.size} has found rank 0, which is waiting "
                    "for other workers; its log says for whom"
                ),
                longer_s=_ANSWER_S,  # Rank 0 knows more, and says it when it gives up.
            )
    except OSError:
        return None
    if heard is None:
        return None
    [word, *_] = heard
    if "failed" in word:
        raise _KINDS[word["failed"]](word["text"])
    cluster = Cluster(tuple(word["addresses"]), identity.rank, identity.job)
    return _Visitor(cluster, tuple(word["facts"]), bytes.fromhex(word["begin"]), channel)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _address(name: tuple[Any, ...]) -> str:
    """An IP address as text, without the prefix of IPv4 in IPv6."""
    return str(name[0]).removeprefix("::ffff:")
