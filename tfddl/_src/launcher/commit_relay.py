"""Carries the newest commit of a job on several hosts from one start to the next.

The agent of each host keeps what the first worker there commits, as long as the agent lives, which
is one start. Before it ends `tfddlrun` takes the newest commit of all hosts that are still there,
and gives it to all hosts of the next start: so it outlives any host, but not all of them, and hosts
count their commits from the same number on.
"""

from __future__ import annotations

from collections.abc import Sequence

from tfddl._src.launcher.agent_client import AgentClient
from tfddl._src.launcher.fleet import UnreachableError, answers_of, ask
from tfddl._src.launcher.host_store import HostStore
from tfddl._src.launcher.signals import Interrupted, Signals

_PIECE_BYTES = 4 << 20
_ANSWER_S = 20.0


class CommitRelay:
    """Keeps one commit, in memory without a name."""

    def __init__(self) -> None:
        """Begins with none.

        Raises:
            LaunchError: descriptors or memory are used up.
        """
        self._store = HostStore()

    def fetch(self, clients: Sequence[AgentClient], *, signals: Signals) -> str:
        """Takes the newest commit of these hosts, if it is newer than what is kept.

        Args:
            clients: the hosts' agents; the workers have ended.
            signals: interrupts the waiting.

        Returns:
            What went wrong, and a commit may be lost for; nothing where all went well.
        """
        there = [client for client in clients if client.lost is None]
        try:
            for client in there:
                client.send({"do": "describe commit"})
            answers = answers_of(there, signals=signals, wait_s=_ANSWER_S)
            # Hosts may differ: a worker was killed before, or while, it wrote its own.
            newest = max(answers, key=lambda client: answers[client]["number"], default=None)
            if newest is None or answers[newest]["number"] <= self._store.newest:
                return ""
            self._read(newest, answers[newest]["size"], signals)
        except UnreachableError as error:
            return f"can't fetch the newest commit, and an earlier one is used: {error}"
        except Interrupted:
            pass  # Nothing starts again.
        return ""

    def hand_out(self, clients: Sequence[AgentClient]) -> None:
        """Gives these hosts what is kept, before their workers start."""
        for offset in range(0, self._store.size, _PIECE_BYTES):
            data = self._store.read(offset, _PIECE_BYTES)
            for client in clients:
                client.send({"do": "take commit", "offset": offset}, data)
            for client in clients:  # it takes long, and none may be taken for lost meanwhile
                client.beat()

    def close(self) -> None:
        """Frees the memory."""
        self._store.close()

    def _read(self, client: AgentClient, size: int, signals: Signals) -> None:
        """Takes a host's store whole, or leaves what is kept as it is."""
        taken = HostStore()
        try:
            for offset in range(0, size, _PIECE_BYTES):
                client.send({"do": "give commit", "offset": offset, "length": _PIECE_BYTES})
                (piece,) = ask([client], signals=signals, wait_s=_ANSWER_S)
                taken.write(piece["data"], offset)
        except (UnreachableError, Interrupted):
            taken.close()
            raise
        self._store.close()
        self._store = taken
