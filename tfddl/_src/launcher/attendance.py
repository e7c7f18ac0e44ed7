"""What is known of a worker that runs, and what may be asked of it, by way of its board.

On another host the agent reads the board, and tells of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable
from typing import Any

from tfddl._src.heartbeat import STACKS_SIGNAL, ProgressPage, Stage, WorkerFlags, WorkerProgress
from tfddl._src.launcher.stalls import is_stopped


class Attendance:
    """Of one worker on this machine.

    Without a board it knows of no progress, and can ask for nothing.
    """

    def __init__(self, board: ProgressPage | None, session: int) -> None:
        """Begins.

        Args:
            board: where the worker writes how far it has come, or None.
            session: the worker's process, and the session of all that it has started.
        """
        self._board, self._session = board, session

    def read(self) -> WorkerProgress:
        """How far it has come."""
        return WorkerProgress() if self._board is None else self._board.read()

    @property
    def training_pid(self) -> int:
        """The process that trains: the worker itself, or one that its command has started."""
        pid = self.read().pid
        with contextlib.suppress(ProcessLookupError):
            if pid and os.getsid(pid) == self._session:
                return pid
        return self._session

    @property
    def is_stopped(self) -> bool:
        """Whether the process that trains is stopped, by a signal or by a debugger."""
        return is_stopped(self.training_pid)

    def report(self) -> dict[str, Any]:
        """What there is to tell of it to another host: see `FarAttendance.receive`."""
        return {"reading": dataclasses.asdict(self.read()), "is_stopped": self.is_stopped}

    def ask_for_stacks(self) -> None:
        """Makes it write the stacks of its threads to stderr, if it can."""
        if WorkerFlags.DUMPS_STACKS in self.read().flags:
            self._signal(STACKS_SIGNAL)

    def ask_to_save(self) -> bool:
        """Makes it save and end, if it can.

        Only the process that trains is asked: a shell around it would end at once, and the worker
        with it.
        """
        if WorkerFlags.SAVES_ON_SIGTERM not in self.read().flags:
            return False
        self._signal(signal.SIGTERM)
        return True

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.training_pid, number)


class FarAttendance:
    """Of one worker on another host, as its agent has told last.

    Attributes:
        is_stopped: whether the process that trains is stopped.
    """

    def __init__(self, order: Callable[[str], None]) -> None:
        """Begins, with nothing known.

        Args:
            order: tells the agent what to do with the worker.
        """
        self.is_stopped = False
        self._order = order
        self._reading = WorkerProgress()

    def receive(self, report: dict[str, Any]) -> None:
        """Takes what `Attendance.report` says there."""
        fields = report["reading"]
        enums = {"stage": Stage(fields["stage"]), "flags": WorkerFlags(fields["flags"])}
        self._reading = WorkerProgress(**{**fields, **enums})
        self.is_stopped = report["is_stopped"]

    def read(self) -> WorkerProgress:
        """How far it has come."""
        return self._reading

    def ask_for_stacks(self) -> None:
        """Makes it write the stacks of its threads to stderr, if it can."""
        self._order("show stacks")

    def ask_to_save(self) -> bool:
        """Makes it save and end, if it can."""
        if WorkerFlags.SAVES_ON_SIGTERM not in self._reading.flags:
            return False
        self._order("save")
        return True
