"""The newest commit of a job on several hosts, between two starts.

The agent of each host keeps what the first worker there commits, as long as the agent lives, which
is one start. Before it ends `tfddlrun` takes the newest commit of all hosts that are still there,
and gives it to all hosts of the next start: so it outlives any host, but not all of them, and hosts
count their commits from the same number on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from tfddl._src.commits import CommitStore, write_all
from tfddl._src.launcher.fleet import UnreachableError, answers_of, ask, beat_all
from tfddl._src.launcher.link import Link
from tfddl._src.launcher.memory import make_store
from tfddl._src.launcher.signals import Interrupted, Signals

_PIECE_BYTES = 4 << 20
_ANSWER_S = 20.0


class Keeper:
    """Keeps one commit, in memory without a name."""

    def __init__(self) -> None:
        """Begins with none.

        Raises:
            LaunchError: descriptors or memory are used up.
        """
        self._fd = make_store()

    def fetch(self, links: Sequence[Link], *, signals: Signals) -> str:
        """Takes the newest commit of these hosts, if it is newer than what is kept.

        Args:
            links: their connections; the workers have ended.
            signals: interrupts the waiting.

        Returns:
            What went wrong, and a commit may be lost for; nothing where all went well.
        """
        there = [link for link in links if link.lost is None]
        try:
            for link in there:
                link.send({"do": "tell commit"})
            answers = answers_of(there, signals=signals, wait_s=_ANSWER_S)
            newest = max(answers, key=lambda link: answers[link]["number"], default=None)
            if newest is None or answers[newest]["number"] <= CommitStore(self._fd).newest:
                return ""
            self._read(newest, answers[newest]["size"], signals)
        except UnreachableError as error:
            return f"can't fetch the newest commit, and an earlier one is gone on with: {error}"
        except Interrupted:
            pass  # Nothing starts again.
        return ""

    def hand_out(self, links: Sequence[Link]) -> None:
        """Gives these hosts what is kept, before their workers start."""
        size = os.fstat(self._fd).st_size
        for offset in range(0, size, _PIECE_BYTES):
            data = os.pread(self._fd, _PIECE_BYTES, offset)
            for link in links:
                link.send({"do": "take commit", "offset": offset}, data)
            beat_all(links)

    def close(self) -> None:
        """Lets go of it."""
        os.close(self._fd)

    def _read(self, link: Link, size: int, signals: Signals) -> None:
        """Takes a host's store whole, or leaves what is kept as it is."""
        taken = make_store()
        try:
            for offset in range(0, size, _PIECE_BYTES):
                link.send({"do": "give commit", "offset": offset, "length": _PIECE_BYTES})
                (piece,) = ask([link], signals=signals, wait_s=_ANSWER_S)
                write_all(taken, piece["data"], offset)
        except (UnreachableError, Interrupted):
            os.close(taken)
            raise
        os.close(self._fd)
        self._fd = taken
