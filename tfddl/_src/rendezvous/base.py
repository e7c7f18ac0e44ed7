"""The interface of a rendezvous, and what its server and its clients have in common."""

from __future__ import annotations

import abc
import hashlib
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tfddl._src.cluster.cluster import Cluster, PartialCluster
from tfddl._src.rendezvous.handshake import dial_tcp, dial_unix
from tfddl._src.wait_timer import WaitTimer
from tfddl.errors import ClusterError, DisagreementError, StalledError, StartError, TfddlError

PORT_TAKEN = "can't listen on port"
"""In the error if another program has a worker's port; `tfddlrun` then chooses other ports."""

WARN_S = 15.0
RETRY_S = 0.1
_POLL_S, _MAX_POLL_S, _POLL_GROWTH = 0.005, 0.25, 1.2
_DIAL_S = 5.0

START_ERRORS: Mapping[str, type[TfddlError]] = {
    kind.__name__: kind for kind in (StartError, DisagreementError, ClusterError)
}
"""The errors that rank 0 sends to the others, where a start fails for all."""

_LOG = logging.getLogger("tfddl")


class Rendezvous(abc.ABC):
    """One worker's connection to all others, made by `join`.

    Attributes:
        cluster: all workers.
        metadata: of each worker, in rank order.
        secret: `SECRET_BYTES` that the workers of this job have, and nobody else.
    """

    def __init__(self, cluster: Cluster, metadata: tuple[Mapping[str, Any], ...], secret: bytes):
        self.cluster, self.metadata, self.secret = cluster, metadata, secret

    @abc.abstractmethod
    def put(self, key: str, text: str) -> None:
        """Sets a key of the store.

        Raises:
            PeerLostError: rank 0, which has the store, has ended.
            StalledError: it doesn't answer.
        """

    def get(self, key: str, *, wait_s: float = 0.0) -> str:
        """Reads a key of the store.

        Args:
            key: which.
            wait_s: how long to wait until it is set.

        Returns:
            Its text; "" if it isn't set.

        Raises:
            PeerLostError: rank 0, which has the store, has ended.
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
        """The text of a key; None if it isn't set."""

    def gather(self, key: str, text: str, *, timeout_s: float) -> tuple[str, ...]:
        """Collects a text of each rank. All ranks must call it together.

        Args:
            key: identifies this call; a key is used once.
            text: of this rank.
            timeout_s: seconds after which to give up; 0 waits for ever.

        Returns:
            The texts in rank order. On rank 0 it returns after all others have got theirs: rank 0
            may then hold the interpreter (TensorFlow's server does while it waits for the others),
            and couldn't answer them.

        Raises:
            StalledError: ranks, which are named, haven't called it in time.
            PeerLostError: one of them has ended.
        """
        timer = WaitTimer(warn_s=WARN_S, abort_s=timeout_s)
        poll_s = _POLL_S
        self.put(f"{key}/{self.cluster.rank}", text)

        def describe() -> str:
            ranks = range(self.cluster.size)
            missing = ", ".join(str(r) for r in ranks if self._read(f"{key}/{r}") is None)
            return (
                f"rank {self.cluster.rank} waits in {key}, which all ranks must call together; "
                f"these haven't: {missing or 'they have now'}"
            )

        while (texts := self._read_gathered(key)) is None:
            check_timer(timer, describe, error=StalledError)
            time.sleep(poll_s)
            # All others ask rank 0: a thousand of them had better ask less and less often.
            poll_s = min(_MAX_POLL_S, _POLL_GROWTH * poll_s)
        return tuple(texts)

    @abc.abstractmethod
    def _read_gathered(self, key: str) -> list[str] | None:
        """The texts of all ranks; None until all are there."""

    def on_conflict(self, abort: Callable[[str], None]) -> None:
        """Sets what to do if it turns out after the start that two jobs have been mixed.

        Args:
            abort: called in another thread, with what happened.
        """
        del abort

    @abc.abstractmethod
    def stop_listening(self) -> None:
        """Frees the port of rank 0, for TensorFlow's server; connections stay."""

    @abc.abstractmethod
    def close(self) -> None:
        """Closes the connection; this rank can no longer read or write the store."""


@dataclass(frozen=True)
class Identity:
    """Who this worker is, and what it was told of the job."""

    rank: int
    size: int
    job: str
    master: str
    """"host:port" of rank 0."""

    addresses: tuple[str, ...] | None
    """Of all workers; None where only that of rank 0 is known."""

    local_rank: int | None
    """As the launcher says; None where it doesn't, or where the addresses are known."""

    is_one_host: bool
    """Whether all workers are known to be on this host."""

    @classmethod
    def of(cls, cluster: Cluster | PartialCluster) -> Identity:
        """The identity of a worker."""
        if isinstance(cluster, Cluster):
            # Abstract Unix sockets are Linux'.
            is_one_host = len(cluster.hosts) == 1 and sys.platform.startswith("linux")
            master, addresses, local_rank = cluster.addresses[0], cluster.addresses, None
        else:
            is_one_host, master, addresses = False, cluster.master, None
            local_rank = cluster.local_rank
        return cls(
            cluster.rank, cluster.size, cluster.job, master, addresses, local_rank, is_one_host
        )

    def socket_name(self, secret: bytes) -> str:
        """The abstract name at which rank 0 listens if all are on its host.

        It depends on the secret, so that a stranger can't listen there before.
        """
        text = f"{self.master} {self.job}".encode()
        # A key of blake2b has 64 bytes at most; longer secrets are cut here, not in the handshake.
        digest = hashlib.blake2b(text, key=secret[:64], digest_size=16).hexdigest()
        return f"tfddl-{os.getuid()}-{digest}"

    def hello(self) -> dict[str, Any]:
        """What a client says of itself in the handshake."""
        return {
            "for": "rendezvous",
            "rank": self.rank,
            "job": self.job,
            "process": f"process {os.getpid()} on {socket.gethostname()}",
        }


def check_timer(
    timer: WaitTimer,
    describe: Callable[[], str],
    *,
    error: type[TfddlError] = StartError,
    grace_s: float = 0.0,
) -> None:
    """Logs what is waited for when that is due; raises when the time is over.

    Args:
        timer: of the wait.
        describe: says what is waited for.
        error: what to raise.
        grace_s: how much later than the timer to raise.
    """
    if timer.is_expired(grace_s=grace_s):
        raise error(f"gave up after {timer.abort_s:g} s: {describe()}")
    if timer.should_warn():
        _LOG.warning("%s", describe())


def dial(identity: Identity, secret: bytes, *, by_unix: bool) -> socket.socket:
    """Connects to rank 0, by a Unix socket of this host or by TCP.

    Raises:
        ConnectError: it isn't there, or refuses.
    """
    hello = identity.hello()
    if by_unix:
        name, kind = identity.socket_name(secret), socket.SOCK_STREAM
        return dial_unix(name, kind, secret, hello, timeout_s=_DIAL_S)
    host, port = split_address(identity.master)
    return dial_tcp(host, port, secret, hello, timeout_s=_DIAL_S)


def port_taken_error(rank: int, host: str, port: int, why: str | None) -> StartError:
    """The error to raise where another program has a worker's port."""
    return StartError(
        f"rank {rank} {PORT_TAKEN} {port} ({host}): {why}. HINT: another program has it, perhaps a "
        "worker of an earlier job; end that, or choose another port"
    )


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port"; an IPv6 host loses its brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
