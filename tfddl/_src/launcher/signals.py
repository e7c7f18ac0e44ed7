"""Signals as events of a descriptor, so that they interrupt nothing half done."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any

from tfddl._src.launcher.system import is_readable

FORWARDED = 0x80
"""Added to the number of a signal that another process of ours has got, and passes on."""

OUTER_DIED = signal.SIGCONT
"""What the kernel sends when the process that passes signals on is dead.

It is the one signal that a stopped process gets, too, and that cancels a stop which was sent before
and has not happened yet. Others may send it as well: only then the parent is the same as before.
"""

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A signal came that ends the job, before it had begun."""


class Signals:
    """Collects the signals that end a job; readable also when a child process has ended.

    Usage::

        with Signals() as signals:
            selector.select()  # among others, for `signals`
            signals.read()
            for number in signals.take_ending():
                ...

    A signal that was ignored from the start (by nohup, say) stays ignored. One that an engine sends
    to all processes of a job comes by two ways, and counts once.

    Attributes:
        ended_by: the first that has come and ends the job, whether it was taken or not; or None.
    """

    def __init__(self, pipe: tuple[int, int] | None = None) -> None:
        """Begins without any; as a context manager it handles signals.

        Args:
            pipe: where the parent process writes, too, what it passes on, and `OUTER_DIED` ends the
                job as SIGKILL; both ends, not blocking. None where no process does so.
        """
        self.ended_by: signal.Signals | None = None
        self._pipe = pipe
        self._parent = os.getppid()
        self._ending: list[signal.Signals] = []
        # How often each has come, by its number, and by that of one that is passed on.
        self._counts: collections.Counter[int] = collections.Counter()
        self._previous: dict[int, Any] = {}
        self._previous_wakeup = -1
        self._reader = self._writer = -1

    def __enter__(self) -> Signals:
        self._reader, self._writer = self._pipe or os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # The handler in C writes the number of a signal to the pipe, whatever Python is in. A full
        # pipe (64 KiB) drops signals: there are enough of them in it.
        self._previous_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in _ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, _nothing)
        for also in (signal.SIGCHLD, *([OUTER_DIED] if self._pipe else [])):
            self._previous[also] = signal.signal(also, _nothing)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_wakeup)
        if self._pipe is None:
            os.close(self._reader)
            os.close(self._writer)

    def fileno(self) -> int:
        """Readable when a signal has come."""
        return self._reader

    def read(self) -> None:
        """Takes the signals that have come; those that end the job stay until they are taken."""
        with contextlib.suppress(BlockingIOError):
            while numbers := os.read(self._reader, 4096):
                for number in numbers:
                    self._take(number)
                if self._ending and self.ended_by is None:
                    self.ended_by = self._ending[0]

    @property
    def have_ended_job(self) -> bool:
        """Whether one that ends the job has come."""
        return self.ended_by is not None

    def _take(self, number: int) -> None:
        if number == OUTER_DIED and os.getppid() != self._parent:
            self._ending.append(signal.SIGKILL)
        elif number & ~FORWARDED in _ENDING:
            # Sent to both processes, a signal comes here directly, and passed on. The nth by one
            # way is the nth by the other: only the first of both counts.
            self._counts[number] += 1
            if self._counts[number] > self._counts[number ^ FORWARDED]:
                self._ending.append(signal.Signals(number & ~FORWARDED))

    def sleep(self, duration_s: float) -> bool:
        """Waits so long; False, and sooner, where a signal has come that ends the job."""
        end_s = time.monotonic() + duration_s
        while not self.have_ended_job and (left_s := end_s - time.monotonic()) > 0:
            is_readable(self, within_s=left_s)
            self.read()
        return not self.have_ended_job

    def take_ending(self) -> list[signal.Signals]:
        """The signals that end the job, each given once, in the order they came.

        SIGKILL is among them where the process that passes signals on was killed.
        """
        taken, self._ending = self._ending, []
        return taken


def _nothing(number: int, frame: FrameType | None) -> None:
    """A handler must exist for the wake-up; the signal itself is read from there."""
