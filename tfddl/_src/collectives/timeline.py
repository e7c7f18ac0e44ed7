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
from tfddl._src.comm import Event, Tracer
from tfddl._src.runtime import current
from tfddl.errors import StalledError, UnsupportedError

_US = 1e6
_RANKS = "tfddl/timeline/{}"
"""The note that says whose events a trace of rank 0 has."""


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
    runtime = current()
    tracer, rank = runtime.tracer, runtime.cluster.rank
    path = Path(file_path).absolute()
    if tracer.path is not None:
        raise UnsupportedError(
            f"A timeline is being recorded to {tracer.path}; call stop_timeline() first."
        )
    if not path.parent.is_dir():
        raise UnsupportedError(f"The timeline {path} can't be written: there is no such folder.")
    tracer.path = path
    tracer.start(runtime.transport.counts()[0])
    atexit.register(_write_at_exit, tracer, rank, os.getpid())


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
    tracer, rank = current().tracer, current().cluster.rank
    if tracer.path is None:
        raise UnsupportedError("No timeline is being recorded; call start_timeline(file) first.")
    atexit.unregister(_write_at_exit)
    ranks = _recording(tracer)
    if 0 not in ranks:
        _write_own(tracer, rank)
        return
    path, tracer.path = tracer.path, None
    mine = [dataclasses.astuple(event) for event in tracer.stop()]
    parts = allgather_object(mine, name="timeline", process_set=ProcessSet(ranks))
    if rank == 0:
        tracer.tell(None)
        by_rank: list[list[Event]] = [[] for _ in range(ranks[-1] + 1)]
        for member, part in zip(ranks, parts, strict=True):
            by_rank[member] = [Event(*fields) for fields in part]
        _write(path, trace(by_rank))


def _recording(tracer: Tracer) -> list[int]:
    """Whose events come together: those of all ranks that record when rank 0 ends its record.

    Rank 0 says who these are; it is off only once they are together, the others before: so nobody
    takes an older record for the one that is being ended. Nor a later one, of a rank that is ahead:
    operations of all ranks are counted.
    """
    cluster, (now, _) = current().cluster, current().transport.counts()
    if tracer.notes is None:
        return [0]
    if cluster.rank == 0:
        ranks = [0, *(r for r in range(1, cluster.size) if tracer.of(r, before=now))]
        tracer.notes.put(_RANKS.format(tracer.number), json.dumps(ranks))
        return ranks
    of_root = tracer.of(0, before=now)
    ranks = []
    if of_root > tracer.joined:
        wait_s = current().options.timeout_s or math.inf
        text = tracer.notes.get(_RANKS.format(of_root), wait_s=wait_s)
        if not text:
            raise StalledError(
                f"rank 0 hasn't called stop_timeline() within {wait_s:g} s. HINT: all ranks that "
                "record a timeline must call it together"
            )
        ranks = json.loads(text)
    tracer.joined = max(of_root, tracer.joined)
    tracer.tell(None)
    return ranks if cluster.rank in ranks else [cluster.rank]


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


def _write_at_exit(tracer: Tracer, rank: int, pid: int) -> None:
    """At the end of a process that never called `stop_timeline`; not of one that it has forked."""
    if os.getpid() == pid:
        _write_own(tracer, rank)


def _write_own(tracer: Tracer, rank: int) -> None:
    """For a process that never called `stop_timeline`, or for which rank 0 doesn't."""
    path, tracer.path = tracer.path, None
    if rank:
        path = path.with_name(f"{path.stem}.rank{rank}{path.suffix}")
    others: list[list[Event]] = [[]] * rank
    _write(path, trace([*others, tracer.stop()]))
