"""Carries a pickled function call to the hosts of a job, and the workers' results back.

Of what is pickled nothing is loaded here: the launcher moves bytes.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass

from tfddl._src.launcher.agent_client import AgentClient
from tfddl._src.launcher.fleet import UnreachableError, answers_of, ask, require_answers
from tfddl._src.launcher.report import Outcome, outcome_report
from tfddl._src.launcher.signals import Interrupted, Signals

_PIECE_BYTES = 4 << 20
_ANSWER_S = 20.0


@dataclass(frozen=True)
class RankResult:
    """What a worker has written to its result file.

    Attributes:
        rank: whose.
        host: where it ran; "" for this machine.
        data: empty where it has written nothing.
    """

    rank: int
    host: str
    data: bytes


@dataclass(frozen=True)
class CallOutcome:
    """How the last start of the job ended.

    Attributes:
        root: the rank that failed first, or None.
        root_host: where it ran; "" for this machine.
        is_interrupted: whether a signal to the launcher ended the job.
        report: the launcher's report of the end; "" where all workers ended well.
        ranks: those of the workers that this launcher has started.
    """

    root: int | None
    root_host: str
    is_interrupted: bool
    report: str
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class CallRelay:
    """The caller's two files.

    Attributes:
        call_fd: of the pickled call.
        results_fd: where a `RankResult` per worker is pickled, then a `CallOutcome`.
    """

    call_fd: int
    results_fd: int

    def hand_out(self, clients: Sequence[AgentClient]) -> None:
        """Gives other hosts the call, before their workers start."""
        for offset in range(0, os.fstat(self.call_fd).st_size, _PIECE_BYTES):
            data = os.pread(self.call_fd, _PIECE_BYTES, offset)
            for client in clients:
                client.send({"do": "take call", "offset": offset}, data)
            for client in clients:  # A large one takes long, and none may be taken for lost.
                client.beat()

    def fetch(self, outcome: Outcome, clients: Sequence[AgentClient], *, signals: Signals) -> str:
        """Replaces what an earlier start has written by the results of this one.

        Args:
            outcome: how this start ended.
            clients: the hosts' agents; the workers have ended.
            signals: interrupts the waiting.

        Returns:
            Why results are missing; nothing where all were fetched.

        Raises:
            OSError: no space is left for them here.
        """
        problem = ""
        with open(os.dup(self.results_fd), "wb") as file:
            file.seek(0)
            file.truncate()
            there = [client for client in clients if client.lost is None]
            try:
                for client in there:
                    client.send({"do": "describe results"})
                answers = answers_of(there, signals=signals, wait_s=_ANSWER_S)
                for client, answer in answers.items():
                    for rank, size in answer["sizes"]:
                        data = _read(client, rank, size, beat=there, signals=signals)
                        pickle.dump(RankResult(rank, client.host, data), file)
                if not outcome.is_failure:  # Its report names the hosts that were lost.
                    require_answers(clients, answers, wait_s=_ANSWER_S)
            except UnreachableError as error:
                problem = f"can't fetch the results: {error}"
            except Interrupted:
                pass  # Nobody reads them.
            root = outcome.root
            ended = CallOutcome(
                root=None if root is None else root.rank,
                root_host="" if root is None else root.host,
                is_interrupted=outcome.interrupted_by is not None,
                report=outcome_report(outcome) or problem,
                ranks=tuple(end.rank for end in outcome.exits),
            )
            pickle.dump(ended, file)
        return problem

    def report_problem(self, text: str) -> None:
        """Adds why the job could not be started, or started again."""
        with open(os.dup(self.results_fd), "wb") as file:
            file.seek(0, os.SEEK_END)
            pickle.dump(text, file)


def _read(
    client: AgentClient,
    rank: int,
    size: int,
    *,
    beat: Sequence[AgentClient],
    signals: Signals,
) -> bytes:
    """A rank's result; meanwhile the other hosts hear of us."""
    data = bytearray()
    while len(data) < size:
        # Not "worker": reports with one are for its handle.
        piece = {"do": "give result", "of": rank, "offset": len(data), "length": _PIECE_BYTES}
        client.send(piece)
        (answer,) = ask([client], signals=signals, wait_s=_ANSWER_S)
        data += answer["data"]
        for other in beat:
            other.beat()
    return bytes(data)
