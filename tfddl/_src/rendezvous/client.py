"""The side of all other ranks: they find rank 0, and ask it for notes."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from tfddl._src.cluster.cluster import Cluster
from tfddl._src.cluster.ports import free_ports
from tfddl._src.rendezvous.base import KINDS, RETRY_S, Identity, Rendezvous, StartDeadline, dial
from tfddl._src.rendezvous.endpoint import close_after_fork
from tfddl._src.rendezvous.json_connection import ANSWER_S, JsonConnection
from tfddl.errors import ConnectError, DisagreementError, PeerLostError, StalledError

_LONGER_S = 5.0
"""How much longer than rank 0 the others wait: it knows more, and says it when it gives up."""


class RendezvousClient(Rendezvous):
    """Any other rank."""

    def __init__(
        self,
        cluster: Cluster,
        facts: tuple[Mapping[str, Any], ...],
        secret: bytes,
        channel: JsonConnection,
    ) -> None:
        super().__init__(cluster, facts, secret)
        self._channel = channel
        self._lock = threading.Lock()
        close_after_fork(self)

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
            until_s = time.monotonic() + ANSWER_S
            answers: list[dict[str, Any]] | None = []
            with contextlib.suppress(TimeoutError):
                try:
                    self._channel.send(question)
                    while answers == [] and time.monotonic() < until_s:
                        answers = self._channel.receive(wait_s=RETRY_S)
                except TimeoutError:
                    raise
                except OSError:
                    answers = None
            if answers is None:
                raise PeerLostError("rank 0, which keeps the notes of all, has ended")
            if not answers:
                # What comes later would be taken for the answer to the next question.
                self.close()
                raise StalledError(f"rank 0 hasn't answered for {ANSWER_S:g} s")
            return answers[0]


def visit(
    identity: Identity, secret: bytes, facts: dict[str, Any], patience: StartDeadline
) -> Rendezvous:
    """Tells rank 0 who we are, and waits for its word; see `tfddl._src.rendezvous.join`."""
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
                connection = dial(identity, secret, by_unix=by_unix)
            except ConnectError as error:
                if error.is_refused:
                    raise DisagreementError(str(error)) from None
                problem = str(error) if number == 0 else problem
                continue
            with contextlib.ExitStack() as stack:
                stack.callback(connection.close)
                found = _converse(identity, JsonConnection(connection), said, patience)
                if found is not None:
                    stack.pop_all()
                    return found
            problem = "it has hung up"
        time.sleep(RETRY_S)


def _converse(
    identity: Identity, channel: JsonConnection, said: Mapping[str, Any], patience: StartDeadline
) -> Rendezvous | None:
    """Says who we are, and waits for rank 0's word; None if it goes away without one."""
    try:
        channel.send(said)
        while (heard := channel.receive(wait_s=RETRY_S)) == []:
            patience.check(
                lambda: (
                    f"rank {identity.rank} of {identity.size} has found rank 0, which is waiting "
                    "for other workers; its log says for whom"
                ),
                longer_s=_LONGER_S,
            )
    except OSError:
        return None
    if heard is None:
        return None
    [word, *_] = heard
    if "failed" in word:
        raise KINDS[word["failed"]](word["text"])
    cluster = Cluster(tuple(word["addresses"]), identity.rank, identity.job)
    return RendezvousClient(cluster, tuple(word["facts"]), bytes.fromhex(word["begin"]), channel)
