"""What a rendezvous is to the rest of tfddl, and who takes part in it."""

from __future__ import annotations

import abc
import hashlib
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tfddl._src.cluster.cluster import Cluster, PartialCluster
from tfddl._src.rendezvous.handshake import dial_tcp, dial_unix
from tfddl.errors import ClusterError, DisagreementError, StalledError, StartError, TfddlError

PORT_TAKEN = "can't listen on port"
"""Said when another program has the port of a worker; `tfddlrun` then chooses others."""

REPORT_S = 15.0
RETRY_S = 0.1
_LOOK_S, _SLOWEST_LOOK_S, _LOOK_GROWTH = 0.005, 0.25, 1.2
_DIAL_S = 5.0

KINDS: Mapping[str, type[TfddlError]] = {
    kind.__name__: kind for kind in (StartError, DisagreementError, ClusterError)
}
"""The errors by which a start fails on all ranks."""

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
            time.sleep(min(RETRY_S, wait_s))
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
        patience = StartDeadline(timeout_s, REPORT_S)
        look_s = _LOOK_S
        self.put(f"{key}/{self.cluster.rank}", text)

        def waiting() -> str:
            ranks = range(self.cluster.size)
            names = ", ".join(str(r) for r in ranks if self._read(f"{key}/{r}") is None)
            return (
                f"rank {self.cluster.rank} waits in {key}, which all ranks must call together; "
                f"these haven't: {names or 'they have now'}"
            )

        while (texts := self._gathered(key)) is None:
            try:
                patience.check(waiting)
            except StartError as error:
                raise StalledError(str(error)) from None
            time.sleep(look_s)
            # All others ask rank 0, too: a thousand of them less and less often.
            look_s = min(_SLOWEST_LOOK_S, _LOOK_GROWTH * look_s)
        return tuple(texts)

    @abc.abstractmethod
    def _gathered(self, key: str) -> list[str] | None:
        """The texts of all ranks, once they are there."""

    def on_conflict(self, end: Callable[[str], None]) -> None:
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


@dataclass(frozen=True)
class Identity:
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
    def of(cls, cluster: Cluster | PartialCluster) -> Identity:
        """That of a worker."""
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
class StartDeadline:
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


def dial(identity: Identity, secret: bytes, *, by_unix: bool) -> socket.socket:
    """Connects to rank 0, by a Unix socket of this host or by TCP.

    Raises:
        ConnectError: It isn't there, or refuses.
    """
    hello = identity.hello()
    if by_unix:
        name, kind = identity.socket_name(secret), socket.SOCK_STREAM
        return dial_unix(name, kind, secret, hello, timeout_s=_DIAL_S)
    host, port = host_and_port(identity.master)
    return dial_tcp(host, port, secret, hello, timeout_s=_DIAL_S)


def port_taken(rank: int, host: str, port: int, why: str | None) -> StartError:
    """What to raise where another program has a worker's port."""
    return StartError(
        f"rank {rank} {PORT_TAKEN} {port} ({host}): {why}. HINT: another program has it, perhaps a "
        "worker of an earlier job; end that, or choose another port"
    )


def host_and_port(address: str) -> tuple[str, int]:
    """Parts "host:port"; an IPv6 host loses its brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
