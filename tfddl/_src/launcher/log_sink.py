"""Where one output of one worker goes: to the console line by line, to its log as it is."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterable
from pathlib import Path

from tfddl._src import startup_logs
from tfddl._src.launcher.log_file import LogFile
from tfddl._src.launcher.output import Console, LineAssembler, Stream
from tfddl._src.launcher.plan import ProcessPlan

# For the report: more than it shows, since frames of native code are left out there.
_KEPT_LINES = 200
_PROGRESS_S = 10.0


class LogSink:
    """Takes an output of a worker, shows it with the rank in front, and writes it to a log.

    Attributes:
        is_open: whether more may come.
        has_gpu: whether the worker's host has a GPU; until that is known, it may have one.
    """

    def __init__(
        self,
        plan: ProcessPlan,
        stream: Stream,
        *,
        console: Console,
        log_folder: Path | None,
        appends_log: bool = False,
    ) -> None:
        """Opens the log.

        Args:
            plan: whose output.
            stream: which of them.
            console: where it is shown.
            log_folder: a folder for files stdout and stderr, or None.
            appends_log: whether to what an earlier start has written there.

        Raises:
            LaunchError: the log can't be opened.
        """
        self.is_open = self.has_gpu = True
        self._tail: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
        self._rank, self._outlet, self._console = plan.rank, stream, console
        self._log = None
        if log_folder is not None:
            name = stream.name.lower()
            self._log = LogFile(
                log_folder, name, appends=appends_log, report_loss=console.report_loss
            )
        self._is_stderr = stream is Stream.STDERR
        self._shows_startup_logs = not startup_logs.are_hidden(plan.environment)
        self._is_live = console.shows_live(plan.rank, stream)
        self._assembler = LineAssembler(progress_s=None if self._is_live else _PROGRESS_S)

    def take(self, data: bytes) -> None:
        """Shows the lines that are finished by this, and logs it as it is; nothing once closed."""
        if not self.is_open:
            return
        if self._log is not None:
            self._log.write(data)
        self._show(self._assembler.feed(data, now_s=time.monotonic()))

    def rename(self, rank: int) -> None:
        """Shows what comes from now on with another rank in front; its log stays where it is."""
        self._rank = rank

    def close(self) -> None:
        """Shows an unfinished last line, and closes the log. Closing twice does nothing."""
        if not self.is_open:
            return
        self.is_open = False
        self._show(self._assembler.finish())
        if self._log is not None:
            self._log.close()

    def tail(self) -> Iterable[str]:
        """The last 200 lines of a stderr, without TensorFlow's startup logs."""
        return self._tail

    def _show(self, lines: list[str]) -> None:
        if self._is_stderr:
            kept = startup_logs.without_startup_logs(lines, has_gpu=self.has_gpu)
            self._tail.extend(kept)
            lines = lines if self._shows_startup_logs else kept
        pending = self._assembler.pending() if self._is_live else ""
        self._console.show(self._rank, self._outlet, lines=lines, pending=pending)
