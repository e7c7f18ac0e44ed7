"""The client of a rendezvous: all ranks but 0."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from tfddl._src.cluster.cluster import Cluster
from tfddl._src.cluster.ports import free_ports
from tfddl._src.rendezvous.base import (
    RETRY_S,
    START_ERRORS,
    Identity,
    Rendezvous,
    check_timer,
    dial,
)
from tfddl._src.rendezvous.endpoint import close_after_fork
from tfddl._src.rendezvous.json_connection import ANSWER_S, JsonConnection
from tfddl._src.wait_timer import WaitTimer
from tfddl.errors import ConnectError, DisagreementError, PeerLostError, StalledError

# How much longer than rank 0 the others wait: it knows who is missing, and tells when it gives up.
_GRACE_S = 5.0


class RendezvousClient(Rendezvous):
    """A rank that is connected to rank 0."""

    def __init__(
        self,
        cluster: Cluster,
        metadata: tuple[Mapping[str, Any], ...],
        secret: bytes,
        connection: JsonConnection,
    ) -> None:
        super().__init__(cluster, metadata, secret)
        self._connection = connection
        self._lock = threading.Lock()
        close_after_fork(self)

    def put(self, key: str, text: str) -> None:
        self._request({"put": key, "text": text})

    def _read(self, key: str) -> str | None:
        text: str | None = self._request({"get": key})["text"]
        return text

    def _read_gathered(self, key: str) -> list[str] | None:
        answer = self._request({"gather": key})
        if "lost" in answer:
            raise PeerLostError(answer["lost"])
        texts: list[str] | None = answer["texts"]
        return texts

    def stop_listening(self) -> None:
        """Does nothing: rank 0 listens."""

    def close(self) -> None:
        self._connection.socket.close()

    def close_in_child(self) -> None:
        """In a forked child: the connection stays with the parent."""
        self._connection.socket.close()

    def _request(self, request: Mapping[str, str]) -> dict[str, Any]:
        """Sends a request, and returns its answer."""
        # One request at a time: answers have no numbers.
        with self._lock:
            until_s = time.monotonic() + ANSWER_S
            # [] is none yet, None the end of the connection.
            answers: list[dict[str, Any]] | None = []
            with contextlib.suppress(TimeoutError):
                try:
                    self._connection.send(request)
                    while answers == [] and time.monotonic() < until_s:
                        answers = self._connection.receive(wait_s=RETRY_S)
                except TimeoutError:  # An OSError, too.
                    raise
                except OSError:
                    answers = None
            if answers is None:
                raise PeerLostError("rank 0, which has the job's key-value store, has ended")
            if not answers:
                # An answer that comes later would be taken for that to the next request.
                self.close()
                raise StalledError(f"rank 0 hasn't answered for {ANSWER_S:g} s")
            return answers[0]


def connect(
    identity: Identity, secret: bytes, metadata: dict[str, Any], timer: WaitTimer
) -> Rendezvous:
    """Connects to rank 0, and waits until all ranks have; see `rendezvous.join`."""
    problem = "no answer"

    def describe() -> str:
        return (
            f"rank {identity.rank} of {identity.size} is waiting for rank 0 at {identity.master} "
            f"({problem}); check that it has been started, with the same list of addresses, and "
            "that the port is open to this host"
        )

    request = {
        "join": identity.rank,
        "size": identity.size,
        "master": identity.master,
        "addresses": identity.addresses and list(identity.addresses),
        "port": None if identity.addresses else free_ports(1)[0],
        "local_rank": identity.local_rank,
        "facts": metadata,
    }
    # The other kind of socket is tried, too: rank 0 may have been told of other hosts than this
    # rank, and then says so.
    is_linux = sys.platform.startswith("linux")
    kinds = [identity.is_one_host, *([not identity.is_one_host] * is_linux)]
    while True:
        check_timer(timer, describe)
        for number, by_unix in enumerate(kinds):
            try:
                connected = dial(identity, secret, by_unix=by_unix)
            except ConnectError as error:
                if error.is_refused:
                    raise DisagreementError(str(error)) from None
                problem = str(error) if number == 0 else problem
                continue
            with contextlib.ExitStack() as stack:
                stack.callback(connected.close)
                found = _join(identity, JsonConnection(connected), request, timer)
                if found is not None:
                    stack.pop_all()
                    return found
            problem = "it has closed the connection"
        time.sleep(RETRY_S)


def _join(
    identity: Identity, connection: JsonConnection, request: Mapping[str, Any], timer: WaitTimer
) -> Rendezvous | None:
    """Sends the request to join, and waits for the answer; None if the connection is closed."""
    try:
        connection.send(request)
        while (answers := connection.receive(wait_s=RETRY_S)) == []:
            check_timer(
                timer,
                lambda: (
                    f"rank {identity.rank} of {identity.size} has found rank 0, which is waiting "
                    "for other workers; its log says for whom"
                ),
                grace_s=_GRACE_S,
            )
    except OSError:
        return None
    if answers is None:
        return None
    [answer, *_] = answers
    if "failed" in answer:
        raise START_ERRORS[answer["failed"]](answer["text"])
    cluster = Cluster(tuple(answer["addresses"]), identity.rank, identity.job)
    secret = bytes.fromhex(answer["begin"])
    return RendezvousClient(cluster, tuple(answer["facts"]), secret, connection)
