"""A trace of all ranks' collectives, for Perfetto or chrome://tracing.

Usage::

    start_timeline("timeline.json")
    model.fit(…)
    stop_timeline()
"""

import atexit
import collections
import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfddl._src.collectives.objects import allgather_object
from tfddl._src.collectives.process_sets import ProcessSet
from tfddl._src.comm.instrumentation import Event
from tfddl._src.runtime import PerRuntime, Runtime
from tfddl.errors import StalledError, UnsupportedError

# The Trace Event Format counts in microseconds; "X" is an event with a duration, "M" names a row.
_US = 1e6
_RANKS = "tfddl/timeline/{}"
"""The note that says whose events a trace of rank 0 has."""

_NOTE, _OFF = "tfddl/records/{}", "0 0"
"""The note that says which trace a rank records, and since when."""


class _Timeline:
    """What this rank records, and whether others do.

    Ranks tell each other by notes of the rendezvous, which are no collectives: only some may
    record.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.rank, self._size = runtime.cluster.rank, runtime.cluster.size
        self.path: Path | None = None
        """Where the trace that is running will be written, if one is."""
        self._recorded = runtime.instrumentation
        self._notes = runtime.job.rendezvous if runtime.job is not None else None
        self._timeout_s = runtime.options.timeout_s
        self._number = 0
        """How many traces have been begun."""
        self._joined = 0
        """Which trace of rank 0 this rank has been in last, counted from 1."""

    def start(self, path: Path) -> None:
        """Starts recording; the trace is written to `path` at the end."""
        self.path = path
        self._number += 1
        self._recorded.start_tracing()
        self.tell(self._recorded.counts()[0])

    def stop(self) -> tuple[Path, list[Event]]:
        """Ends the trace: where it is to be written, and what is in it."""
        assert self.path is not None
        path, self.path = self.path, None
        return path, self._recorded.stop_tracing()

    def tell(self, at: int | None) -> None:
        """Notes that this rank records.

        Args:
            at: After how many operations of all ranks it began to; None where it doesn't.
        """
        if self._notes is not None:
            text = _OFF if at is None else f"{self._number} {at}"
            self._notes.put(_NOTE.format(self.rank), text)

    def find_members(self) -> list[int]:
        """Whose events come together: of all ranks that record when rank 0 ends its record.

        Rank 0 says who these are; it is off only once they are together, the others before: so
        nobody takes an older record for the one that is being ended. Nor a later one, of a rank
        that is ahead: operations of all ranks are counted.

        Raises:
            StalledError: Rank 0 doesn't say it in time.
        """
        if self._notes is None:
            return [0]
        now, _ = self._recorded.counts()
        if self.rank == 0:
            others = range(1, self._size)
            members = [0, *(rank for rank in others if self._trace_of(rank, before=now))]
            self._notes.put(_RANKS.format(self._number), json.dumps(members))
            return members
        of_root, members = self._trace_of(0, before=now), []
        if of_root > self._joined:
            wait_s = self._timeout_s or math.inf
            text = self._notes.get(_RANKS.format(of_root), wait_s=wait_s)
            if not text:
                raise StalledError(
                    f"rank 0 hasn't called stop_timeline() within {wait_s:g} s. HINT: all ranks "
                    "that record a timeline must call it together"
                )
            members = json.loads(text)
        self._joined = max(of_root, self._joined)
        self.tell(None)
        return members if self.rank in members else [self.rank]

    def _trace_of(self, rank: int, *, before: int) -> int:
        """The number of the trace that a rank records; 0 where it records none.

        One that was begun after so many operations of all ranks is none: that rank is ahead.
        """
        assert self._notes is not None
        number, at = map(int, (self._notes.get(_NOTE.format(rank)) or _OFF).split())
        return number if at < before else 0


_TIMELINES = PerRuntime(_Timeline)


def start_timeline(file_path: str | os.PathLike[str]) -> None:
    """Begins to record this rank's collectives.

    Nothing travels. The ranks that call it are in the trace; rank 0 should be one of them.

    Args:
        file_path: What rank 0 writes at `stop_timeline`. Where that is never called, each rank
            writes its own part when it ends: rank 0 this file, rank 1 "timeline.rank1.json" beside
            it, and so on.

    Raises:
        UnsupportedError: A timeline is being recorded already, or there is no such folder.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    timeline, path = _TIMELINES.current(), Path(file_path).absolute()
    if timeline.path is not None:
        raise UnsupportedError(
            f"A timeline is being recorded to {timeline.path}; call stop_timeline() first."
        )
    if not path.parent.is_dir():
        raise UnsupportedError(f"The timeline {path} can't be written: there is no such folder.")
    timeline.start(path)
    atexit.register(_write_at_exit, timeline, os.getpid())


def is_recording() -> bool:
    """Whether this rank records a timeline.

    Raises:
        NotInitializedError: `tfddl.init()` has not been called.
    """
    return _TIMELINES.current().path is not None


def stop_timeline() -> None:
    """Ends the recording; rank 0 writes the events of all ranks that have begun one.

    These ranks must call it together. Each event tells the operation, its bytes, how long it took,
    and for which rank it waited how long: the one that came last, as far as the clocks of the hosts
    agree. A rank that records while rank 0 doesn't writes its own part.

    Raises:
        UnsupportedError: No timeline is being recorded on this rank.
        StalledError: Rank 0 doesn't call it in time.
        NotInitializedError: `tfddl.init()` has not been called.
        OSError: The file can't be written; the other ranks go on.
    """
    timeline = _TIMELINES.current()
    if timeline.path is None:
        raise UnsupportedError("No timeline is being recorded; call start_timeline(file) first.")
    atexit.unregister(_write_at_exit)
    ranks = timeline.find_members()
    if 0 not in ranks:
        _write_own(timeline)
        return
    path, events = timeline.stop()
    mine = [dataclasses.astuple(event) for event in events]
    parts = allgather_object(mine, name="timeline", process_set=ProcessSet(ranks))
    if timeline.rank == 0:
        timeline.tell(None)
        by_rank: list[list[Event]] = [[] for _ in range(ranks[-1] + 1)]
        for member, part in zip(ranks, parts, strict=True):
            by_rank[member] = [Event(*fields) for fields in part]
        _write(path, trace(by_rank))


def trace(by_rank: Sequence[Sequence[Event]]) -> dict[str, Any]:
    """A trace in Chrome's format.

    Args:
        by_rank: The events of each rank, in the order in which they ended. The ranks may have
            begun to record at different times, but ended together.
    """
    waits = _waits(by_rank)
    found: list[dict[str, Any]] = []
    for rank, events in enumerate(by_rank):
        found.append(_fact("process_name", rank, {"name": f"rank {rank}"}))
        found.append(_fact("process_sort_index", rank, {"sort_index": rank}))
        for event, wait in zip(events, waits[rank], strict=True):
            found.extend(_entries(rank, event, wait))
    return {"traceEvents": found, "displayTimeUnit": "ms"}


def _waits(by_rank: Sequence[Sequence[Event]]) -> list[list[tuple[int, float] | None]]:
    """For each event the rank that came last, and when; None where that isn't known."""
    # The nth from the end of those of one set of ranks is the same collective on all of them.
    came: dict[Any, dict[int, float]] = collections.defaultdict(dict)
    keys: list[list[Any]] = []
    for rank, events in enumerate(by_rank):
        seen: collections.Counter[tuple[int, ...]] = collections.Counter()
        mine = []
        for event in reversed(events):
            seen[event.ranks] += 1
            mine.append((event.ranks, seen[event.ranks]))
            came[mine[-1]][rank] = event.begin_s
        keys.append(mine[::-1])
    return [[_last(came[key]) if len(came[key]) > 1 else None for key in mine] for mine in keys]


def _last(begins: dict[int, float]) -> tuple[int, float]:
    return max(begins.items(), key=lambda item: item[1])


def _entries(rank: int, event: Event, wait: tuple[int, float] | None) -> list[dict[str, Any]]:
    arguments: dict[str, Any] = {"bytes": event.num_bytes, "ranks": list(event.ranks)}
    entry = {
        "name": event.name,
        "cat": "collective",
        "ph": "X",
        "pid": rank,
        "tid": 0,
        "ts": event.begin_s * _US,
        "dur": (event.end_s - event.begin_s) * _US,
        "args": arguments,
    }
    if wait is None or wait[0] == rank:
        return [entry]
    last, came_s = wait
    waited_us = max(0.0, min(came_s, event.end_s) - event.begin_s) * _US
    arguments.update(waited_for_rank=last, waited_us=waited_us)
    waiting = {"name": f"waiting for rank {last}", "cat": "waiting", "dur": waited_us, "args": {}}
    return [entry, {**entry, **waiting}]


def _fact(name: str, rank: int, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "ph": "M", "pid": rank, "tid": 0, "args": arguments}


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f".writing-{path.name}")
    try:
        temporary.write_text(json.dumps(content))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_at_exit(timeline: _Timeline, pid: int) -> None:
    """At the end of a process that never called `stop_timeline`; not of one that it has forked."""
    if os.getpid() == pid:
        _write_own(timeline)


def _write_own(timeline: _Timeline) -> None:
    """For a process that never called `stop_timeline`, or for which rank 0 doesn't."""
    path, events = timeline.stop()
    if timeline.rank:
        path = path.with_name(f"{path.stem}.rank{timeline.rank}{path.suffix}")
    others: list[list[Event]] = [[]] * timeline.rank
    _write(path, trace([*others, events]))
