"""What came of a call: the results of its workers, or the first failure."""

from __future__ import annotations

import dataclasses
import io
import pickle
from collections.abc import Iterator, Mapping
from typing import IO, Any

from tfddl._src.launcher.call_relay import CallOutcome, RankResult
from tfddl._src.launcher.report import describe_exit
from tfddl._src.remote_call.pickling import Answer


@dataclasses.dataclass(frozen=True)
class Failure:
    """The first failure of a job.

    Attributes:
        text: which rank, with its traceback, or how its process has ended.
        exception: what it has raised, pickled, where it can be.
        blames_peer: whether it may only say that another rank has failed.
    """

    text: str
    exception: bytes | None = None
    blames_peer: bool = False


@dataclasses.dataclass(frozen=True)
class CallEnd:
    """What came of a call.

    Attributes:
        results: pickled, by rank, of the workers that this launcher has started.
        failure: if any has failed.
    """

    results: Mapping[int, bytes]
    failure: Failure | None = None


def read_records(file: IO[bytes]) -> Iterator[RankResult | CallOutcome | str]:
    """What the launcher has written: results, then how the job ended, or why it couldn't start."""
    while (record := _load(file)) is not None:
        yield record


def _load(file: IO[bytes]) -> Any:
    """The next object of a file; None where there is none, or its end is missing.

    Who wrote it may have been killed meanwhile.
    """
    try:
        return pickle.load(file)
    except Exception:  # noqa: BLE001 - what is cut off raises almost anything, as pickle's pages say
        return None


def read_end(records: Iterator[RankResult | CallOutcome | str], status: int) -> CallEnd:
    """What came of a call, by the launcher's records and its exit status."""
    found: dict[int, RankResult] = {}
    outcome = None
    for record in records:
        if isinstance(record, RankResult):
            found[record.rank] = record
        elif isinstance(record, CallOutcome):
            outcome = record
        else:
            return CallEnd({}, Failure(record))
    if outcome is None:
        return CallEnd(
            {},
            Failure(
                f"the launcher of the workers ended early: {describe_exit(status)}. HINT: see its "
                "last output above"
            ),
        )
    answers = {
        rank: answer
        for rank, record in found.items()
        if isinstance(answer := _load(io.BytesIO(record.data)), Answer)
    }
    results = {rank: answer.result for rank, answer in answers.items() if answer.result is not None}
    return CallEnd(results, find_failure(outcome, found, answers))


def find_failure(
    outcome: CallOutcome, found: Mapping[int, RankResult], answers: Mapping[int, Answer]
) -> Failure | None:
    """The first failure, if any.

    The launcher knows whose process ended first. Another exception may be older, whose process took
    longer to end; clocks of hosts can't be compared. A root without an exception was killed, or has
    left the function without returning.
    """
    raised = {rank: answer for rank, answer in answers.items() if answer.result is None}
    if raised and not outcome.is_interrupted and (outcome.root is None or outcome.root in raised):

        def order(rank: int) -> tuple[bool, bool, float]:
            is_elsewhere = found[rank].host != outcome.root_host
            return raised[rank].blames_peer, is_elsewhere, raised[rank].at_s

        rank = min(raised, key=order)
        where = f" on {found[rank].host}" if found[rank].host else ""
        first = raised[rank]
        return Failure(
            f"rank {rank}{where} failed:\n{first.error}", first.exception, first.blames_peer
        )
    if outcome.report:
        return Failure(outcome.report)
    missing = sorted(set(outcome.ranks) - answers.keys())
    if absent := [rank for rank in missing if rank not in found]:
        return Failure(
            f"all workers ended well, but no result has come of rank "
            f"{', '.join(map(str, absent))}; one of each of {len(outcome.ranks)} workers was "
            "expected. HINT: was the connection to a host lost at the end?"
        )
    if missing:
        return Failure(
            f"rank {missing[0]} ended with exit code 0 before the function has returned. HINT: "
            "something has called os._exit, or has replaced the process"
        )
    return None
