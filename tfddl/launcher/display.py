"""What becomes of one output of one worker: shown line by line, its end kept, all of it logged."""

from __future__ import annotations

import collections
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Protocol

from tfddl.errors import LaunchError
from tfddl.launcher.output import Console, LineAssembler, Outlet, without_chatter
from tfddl.launcher.plan import LOG_LEVEL, ProcessPlan

_KEPT_LINES = 200
_PROGRESS_S = 10.0


class Sink(Protocol):
    """Takes what a worker writes to one of its outputs."""

    def take(self, data: bytes) -> None:
        """Takes what was read."""

    def finish(self) -> None:
        """There will be no more."""

    def tail(self) -> Iterable[str]:
        """The last lines, as far as they are kept."""


class Display:
    """Shows an output on the console, with the rank in front, and writes it to a log."""

    def __init__(
        self,
        plan: ProcessPlan,
        outlet: Outlet,
        *,
        console: Console,
        log_folder: Path | None,
        appends_log: bool = False,
    ) -> None:
        """Opens the log.

        Args:
            plan: whose output.
            outlet: which of them.
            console: where it is shown.
            log_folder: a folder for files stdout and stderr, or None.
            appends_log: whether to what an earlier start has written there.

        Raises:
            LaunchError: the log can't be opened.
        """
        self._tail: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
        self._rank, self._outlet, self._console = plan.rank, outlet, console
        self._log = _open_log(log_folder, outlet, appends=appends_log)
        self._hides_chatter = outlet is Outlet.STDERR and plan.environment.get(LOG_LEVEL) in (
            "1",
            "2",
            "3",
        )
        live = console.shows_live(plan.rank, outlet)
        self._assembler = LineAssembler(progress_s=None if live else _PROGRESS_S)

    def take(self, data: bytes) -> None:
        """Shows the lines that are finished by this, and logs it as it is."""
        self._write_log(data)
        self._show(self._assembler.feed(data, now_s=time.monotonic()))

    def finish(self) -> None:
        """Shows an unfinished last line, and closes the log."""
        self._show(self._assembler.finish())
        if self._log is not None:
            self._log.close()

    def tail(self) -> Iterable[str]:
        """The last lines."""
        return self._tail

    def _show(self, lines: list[str]) -> None:
        if self._hides_chatter:
            lines = without_chatter(lines)
        self._tail.extend(lines)
        self._console.show(self._rank, self._outlet, lines=lines, pending=self._assembler.pending)

    def _write_log(self, data: bytes) -> None:
        if self._log is None:
            return
        try:
            self._log.write(data)
        except OSError as error:
            raise LaunchError(f"can't write the log {self._log.name}: {error.strerror}") from error


def _open_log(folder: Path | None, outlet: Outlet, *, appends: bool) -> IO[bytes] | None:
    if folder is None:
        return None
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        mode = "ab" if appends else "wb"
        return open(folder / outlet.name.lower(), mode, buffering=0, opener=_open_privately)
    except OSError as error:
        raise LaunchError(
            f"can't write logs to {folder}: {error.strerror}. HINT: --output-filename names a "
            "folder, made if it is missing"
        ) from error


def _open_privately(path: str, flags: int) -> int:
    """Only the user may read it: logs show arguments and environments. Old files included."""
    fd = os.open(path, flags, 0o600)
    os.fchmod(fd, 0o600)
    return fd
