"""What a worker is to whoever supervises it, wherever it runs."""

from __future__ import annotations

import abc
import signal
import time
from collections.abc import Sequence
from typing import Protocol

from tfddl._src.launcher.attendance import Attendance, FarAttendance
from tfddl._src.launcher.display import Sink
from tfddl._src.launcher.report import WorkerExit
from tfddl._src.launcher.stalls import Stall


class Output(Protocol):
    """One of the two outputs of a worker."""

    @property
    def is_open(self) -> bool:
        """Whether more may come."""

    def close(self) -> None:
        """There will be no more."""


class Handle(abc.ABC):
    """A running worker, and what is known of its end.

    Attributes:
        rank: its rank.
        host: where it runs; "" for this machine.
        streams: its stdout and its stderr.
        ended_s: when it was found to have ended (`time.monotonic`), or None.
        returncode: then its exit code, or the negative number of the signal that killed it.
        lost: why nothing more is known of it, since its host can't be reached; or None.
        attendance: how far it has come, and what may be asked of it.
        stall: what was found when it got no further, or None.
        drain_s: how long its outputs may stay open after its end.
    """

    streams: Sequence[Output]
    attendance: Attendance | FarAttendance
    drain_s: float

    def __init__(
        self, rank: int, sinks: Sequence[Sink], *, attendance: Attendance | FarAttendance, host: str
    ) -> None:
        """Begins, when it has been started.

        Args:
            rank: its rank.
            sinks: take its stdout and its stderr.
            attendance: how far it has come, and what may be asked of it.
            host: where it runs; "" for this machine.
        """
        self.rank, self.host = rank, host
        self.attendance = attendance
        self.ended_s: float | None = None
        self.returncode = 0
        self.lost: str | None = None
        self.stall: Stall | None = None
        self._sinks = sinks
        self._started_s = time.monotonic()
        self._ended_with: signal.Signals | None = None

    @abc.abstractmethod
    def look(self) -> bool:
        """Whether it has just been found to have ended, or to be lost with its host."""

    @abc.abstractmethod
    def reap(self) -> None:
        """Kills what is left of its group, and takes leave of it."""

    @abc.abstractmethod
    def _send(self, number: signal.Signals) -> None:
        """Sends a signal to its group."""

    def was_lost_before(self, when_s: float) -> bool:
        """Whether it is lost with its host, from which nothing was heard after this moment."""
        return False

    def signal_group(self, number: signal.Signals) -> None:
        """Sends a signal to the worker and all processes of its group."""
        if self.ended_s is None:
            self._ended_with = number
        self._send(number)

    def ask_to_save(self) -> bool:
        """Makes it save and end, if it can."""
        if self.ended_s is not None or not self.attendance.ask_to_save():
            return False
        self._ended_with = signal.SIGTERM
        return True

    def describe_end(self) -> WorkerExit:
        """How it ended, once it has."""
        assert self.ended_s is not None
        return WorkerExit(
            rank=self.rank,
            returncode=self.returncode,
            after_s=self.ended_s - self._started_s,
            stderr_lines=tuple(self._sinks[-1].tail()),
            ended_with=self._ended_with,
            reading=self.attendance.read(),
            stall=self.stall,
            host=self.host,
            lost=self.lost,
        )
