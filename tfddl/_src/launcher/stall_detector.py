"""Detects workers that are alive and make no progress: the one that the others wait for."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tfddl._src.heartbeat import Stage, WorkerProgress

_WARNING_S = 60.0
_LOOKS = 5
_LONGEST_WAIT_S = 5.0


@dataclass(frozen=True)
class Stall:
    """A worker that makes no progress.

    Attributes:
        for_s: seconds without any progress, while others waited if any did.
        is_stopped: whether the process is stopped (by SIGSTOP, Ctrl-Z or a debugger), not running.
        waiting: the ranks that wait for it.
    """

    for_s: float
    is_stopped: bool
    waiting: tuple[int, ...]


def find_suspects(
    readings: Mapping[int, WorkerProgress], stopped: frozenset[int]
) -> tuple[int, ...]:
    """The ranks that the job would be waiting for, if it got no further from here.

    All ranks begin the same operations in the same order, so one that has begun fewer than another
    keeps that one waiting; so does one that isn't in an operation while others are.

    Args:
        readings: the progress page of each rank.
        stopped: the ranks whose process is stopped.

    Returns:
        In their order. All, where nothing tells them apart.
    """
    if stopped:
        return tuple(sorted(stopped & set(readings)))
    # Read one after the other, while workers run: an exact snapshot isn't needed, as what is found
    # has to stay so for long.
    fewest = min((reading.begun for reading in readings.values()), default=0)
    behind = [rank for rank, reading in readings.items() if reading.begun == fewest]
    busy = [rank for rank in behind if not readings[rank].is_waiting]
    return tuple(sorted(busy or behind))


class StallDetector:
    """Detects from the workers' progress pages that a job makes no progress.

    A worker is watched from its first step on, within `fit`, `evaluate` and `predict`; in a loop by
    hand, which exchanges gradients, as long as others wait for it.
    """

    def __init__(self, timeout_s: float, *, has_all_workers: bool = True) -> None:
        """Begins.

        Args:
            timeout_s: seconds without progress after which a worker has stalled; 0 is never.
            has_all_workers: whether all workers of the job are read here. Otherwise one that
                waits may wait for another host's, and isn't to blame.
        """
        self._timeout_s = timeout_s
        self._has_all_workers = has_all_workers
        self._last: dict[int, tuple[WorkerProgress, float]] = {}
        self._warned: frozenset[int] = frozenset()

    @property
    def period_s(self) -> float:
        """How often to look."""
        wanted_s = min(self._timeout_s or _WARNING_S, _WARNING_S)
        return min(wanted_s / _LOOKS, _LONGEST_WAIT_S)

    def find(
        self, readings: Mapping[int, WorkerProgress], *, stopped: frozenset[int], now_s: float
    ) -> dict[int, Stall]:
        """The workers that have stalled: those that others wait for, with no progress for long.

        Args:
            readings: the progress page of each living rank.
            stopped: the ranks whose process is stopped.
            now_s: on a clock that only goes forward.
        """
        found = self._without_progress(readings, stopped, now_s)
        if not self._timeout_s or any(stall.for_s < self._timeout_s for stall in found.values()):
            return {}
        return found

    def warning(
        self, readings: Mapping[int, WorkerProgress], *, stopped: frozenset[int], now_s: float
    ) -> str:
        """A message about ranks that keep others waiting for a minute; each time once."""
        found = self._without_progress(readings, stopped, now_s)
        late = frozenset(
            rank for rank, stall in found.items() if stall.for_s >= _WARNING_S and stall.waiting
        )
        if late <= self._warned:
            self._warned = late
            return ""
        self._warned = late
        return "\n".join(
            f"rank {rank} has made no progress for {found[rank].for_s:.0f} s"
            f"{' (its process is stopped)' if found[rank].is_stopped else ''}, and others wait "
            f"for it: rank {', '.join(map(str, found[rank].waiting))}"
            for rank in sorted(late)
        )

    def _without_progress(
        self, readings: Mapping[int, WorkerProgress], stopped: frozenset[int], now_s: float
    ) -> dict[int, Stall]:
        """Those that others wait for, and since when they have got no further."""
        for rank, reading in readings.items():
            if rank not in self._last or self._last[rank][0] != reading:
                self._last[rank] = (reading, now_s)
        if not (_in_keras(readings) or _in_loop_by_hand(readings)):
            return {}
        if not all(r.stage is Stage.OUTSIDE or _has_begun(r) for r in readings.values()):
            return {}
        suspects = find_suspects(readings, stopped)
        if not self._has_all_workers:
            suspects = tuple(r for r in suspects if r in stopped or not readings[r].is_waiting)
        waiting = tuple(sorted(r for r in readings if readings[r].is_waiting and r not in suspects))
        # Whoever waits has begun to when it got on for the last time.
        waited_since_s = min((self._last[rank][1] for rank in waiting), default=-math.inf)
        return {
            rank: Stall(
                for_s=now_s - max(self._last[rank][1], waited_since_s),
                is_stopped=rank in stopped,
                waiting=waiting,
            )
            for rank in suspects
        }


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by a signal or by a debugger."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    return False


def _in_keras(readings: Mapping[int, WorkerProgress]) -> bool:
    return any(r.beats and r.stage is not Stage.OUTSIDE for r in readings.values())


def _in_loop_by_hand(readings: Mapping[int, WorkerProgress]) -> bool:
    """Whether all have exchanged gradients, and some wait for others."""
    all_have = all(reading.rounds for reading in readings.values())
    return all_have and any(reading.is_waiting for reading in readings.values())


def _has_begun(reading: WorkerProgress) -> bool:
    """Whether a first step was done, which takes much longer than others."""
    return reading.steps > 0 or reading.stage is not Stage.TRAINING
