"""One worker process: started in its own session, its output read, its end noticed."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from tfddl.errors import LaunchError
from tfddl.launcher.output import Console, LineAssembler, Outlet, without_chatter
from tfddl.launcher.plan import LOG_LEVEL, ProcessPlan
from tfddl.launcher.report import WorkerExit
from tfddl.launcher.stalls import Stall
from tfddl.progress import STACKS_SIGNAL, Ability, Reading

_KEPT_LINES = 200
_PROGRESS_S = 10.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


class Stream:
    """One of the two outputs of a worker."""

    def __init__(
        self,
        pipe: IO[bytes],
        *,
        plan: ProcessPlan,
        outlet: Outlet,
        console: Console,
        log: IO[bytes] | None,
    ) -> None:
        self.tail: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
        self._pipe, self._rank, self._outlet = pipe, plan.rank, outlet
        self._console, self._log = console, log
        self._hides_chatter = outlet is Outlet.STDERR and plan.environment.get(LOG_LEVEL) in (
            "1",
            "2",
            "3",
        )
        live = console.shows_live(plan.rank, outlet)
        self._assembler = LineAssembler(progress_s=None if live else _PROGRESS_S)
        os.set_blocking(pipe.fileno(), False)

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._pipe.fileno()

    @property
    def is_open(self) -> bool:
        """Whether more may come."""
        return not self._pipe.closed

    def pump(self) -> bool:
        """Passes on what there is; False at the end of the stream."""
        try:
            data = os.read(self.fileno(), 1 << 16)
        except BlockingIOError:
            return True
        if not data:
            return False
        self._write_log(data)
        self._show(self._assembler.feed(data, now_s=time.monotonic()))
        return True

    def close(self) -> None:
        """Passes on an unfinished last line, and closes the pipe and the log."""
        self._show(self._assembler.finish())
        self._pipe.close()
        if self._log is not None:
            self._log.close()

    def _show(self, lines: list[str]) -> None:
        if self._hides_chatter:
            lines = without_chatter(lines)
        self.tail.extend(lines)
        self._console.show(self._rank, self._outlet, lines=lines, pending=self._assembler.pending)

    def _write_log(self, data: bytes) -> None:
        if self._log is None:
            return
        try:
            self._log.write(data)
        except OSError as error:
            raise LaunchError(f"can't write the log {self._log.name}: {error.strerror}") from error


class Worker:
    """A running worker, and what is known of its end.

    Attributes:
        rank: its rank.
        pid: its process, process group and session.
        ended_s: when it was found to have ended (`time.monotonic`), or None.
        returncode: then its exit code, or the negative number of the signal that killed it.
        stall: what was found when it got no further, or None.
    """

    def __init__(
        self,
        plan: ProcessPlan,
        *,
        console: Console,
        log_folder: Path | None,
        appends_logs: bool = False,
    ) -> None:
        """Starts it.

        Args:
            plan: what to start.
            console: takes its output.
            log_folder: where its whole output is written besides, or None.
            appends_logs: whether to what an earlier start has written there.

        Raises:
            LaunchError: the command can't be started, or a log can't be opened.
        """
        self.rank = plan.rank
        self.stall: Stall | None = None
        self._board = plan.board
        self.ended_s: float | None = None
        self.returncode = 0
        self._ended_with: signal.Signals | None = None
        logs = [_open_log(log_folder, outlet, appends=appends_logs) for outlet in Outlet]
        self._process = _start(plan)
        self.pid = self._process.pid
        self._started_s = time.monotonic()
        pipes = (self._process.stdout, self._process.stderr)
        self.streams = tuple(
            Stream(pipe, plan=plan, outlet=outlet, console=console, log=log)
            for pipe, outlet, log in zip(pipes, Outlet, logs, strict=True)
            if pipe is not None
        )

    def look(self) -> bool:
        """Whether it has just been found to have ended.

        It is not reaped yet: as long as it isn't, its number and its process group's can't
        belong to somebody else.
        """
        if self.ended_s is not None:
            return False
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return False
        self.ended_s = time.monotonic()
        by_itself = found.si_code == os.CLD_EXITED
        self.returncode = found.si_status if by_itself else -found.si_status
        return True

    def signal_group(self, number: signal.Signals) -> None:
        """Sends a signal to the worker and all processes of its group."""
        if self.ended_s is None:
            self._ended_with = number
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def read_board(self) -> Reading:
        """How far it has come."""
        return Reading() if self._board is None else self._board.read()

    @property
    def training_pid(self) -> int:
        """The process that trains: the worker itself, or one that its command has started."""
        pid = self.read_board().pid
        with contextlib.suppress(ProcessLookupError):
            if pid and os.getsid(pid) == self.pid:
                return pid
        return self.pid

    def ask_for_stacks(self) -> None:
        """Makes it write the stacks of its threads to stderr, if it can."""
        if Ability.SHOWS_STACKS in self.read_board().abilities:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.training_pid, STACKS_SIGNAL)

    def ask_to_save(self) -> bool:
        """Makes it save and end, if it can.

        Only the process that trains is asked: a shell around it would end at once, and the worker
        with it.
        """
        if self.ended_s is not None or Ability.SAVES not in self.read_board().abilities:
            return False
        self._ended_with = signal.SIGTERM
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.training_pid, signal.SIGTERM)
        return True

    def reap(self) -> None:
        """Kills what is left of its group, and takes leave of it."""
        self.signal_group(signal.SIGKILL)
        self._process.wait()
        for stream in self.streams:
            if stream.is_open:
                stream.close()

    def describe_end(self) -> WorkerExit:
        """How it ended, once it has."""
        assert self.ended_s is not None
        return WorkerExit(
            rank=self.rank,
            returncode=self.returncode,
            after_s=self.ended_s - self._started_s,
            stderr_lines=tuple(self.streams[-1].tail),
            ended_with=self._ended_with,
            reading=self.read_board(),
            stall=self.stall,
        )


def adopt_orphans() -> None:
    """Makes this process the parent of what its workers leave behind (until `kill_orphans`)."""
    _load_prctl()(_PR_SET_CHILD_SUBREAPER, 1)


def kill_orphans() -> None:
    """Kills all children of this process, and their children as they come to us."""
    while children := _children():
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _children() -> list[int]:
    lists = Path("/proc/self/task").glob("*/children")
    return [int(pid) for path in lists for pid in path.read_text().split()]


def _start(plan: ProcessPlan) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            plan.argv,
            env=dict(plan.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=plan.descriptors,
            preexec_fn=_die_with_parent(),  # safe: this process has one thread
        )
    except OSError as error:
        raise LaunchError(
            f"can't start {plan.argv[0]!r}: {error.strerror}. HINT: it must be a program; a line "
            "for the shell goes through sh -c '…'"
        ) from error


def _die_with_parent() -> Callable[[], None]:
    """What a child does before its exec, so that even our SIGKILL leaves no worker."""
    prctl, parent = _load_prctl(), os.getpid()

    def ask_for_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before it could be asked for
            os._exit(1)

    return ask_for_signal


def _load_prctl() -> Callable[[int, int], int]:
    prctl: Callable[[int, int], int] = ctypes.CDLL(None).prctl
    return prctl


def _open_log(folder: Path | None, outlet: Outlet, *, appends: bool) -> IO[bytes] | None:
    if folder is None:
        return None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return (folder / outlet.name.lower()).open("ab" if appends else "wb", buffering=0)
    except OSError as error:
        raise LaunchError(
            f"can't write logs to {folder}: {error.strerror}. HINT: --output-filename names a "
            "folder, made if it is missing"
        ) from error
