"""One worker process: started in its own session, its output read, its end noticed."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from tfddl._src.cluster import CORES
from tfddl._src.cpu import num_quota_cores
from tfddl._src.launcher.attendance import Attendance
from tfddl._src.launcher.cores import Binding, bind_to, share_of_cores, usable_cores
from tfddl._src.launcher.display import Sink
from tfddl._src.launcher.handle import Handle
from tfddl._src.launcher.plan import ProcessPlan
from tfddl._src.launcher.system import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, load_prctl
from tfddl.errors import LaunchError

DRAIN_S = 1.0
"""What a worker that has ended may leave to its children: a `tee` that still has lines to write."""

# A pipe holds 64 KiB, as much as is read at a time; what is written meanwhile is another's.
_PIECES_IN_PIPE = 2
# MAX_ARG_STRLEN of Linux, which counts a zero at the end.
_LONGEST_VARIABLE = 2**17 - 1


class Stream:
    """One of the two outputs of a worker."""

    def __init__(self, pipe: IO[bytes], sink: Sink) -> None:
        self._pipe, self._sink = pipe, sink
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
        self._sink.take(data)
        return True

    def close(self) -> None:
        """Passes on what the pipe still holds, closes it, and says so."""
        for _ in range(_PIECES_IN_PIPE):
            if not self.pump():
                break
        self._pipe.close()
        self._sink.finish()


class Worker(Handle):
    """A worker on this machine.

    Attributes:
        pid: its process, process group and session.
    """

    streams: Sequence[Stream]
    attendance: Attendance
    drain_s = DRAIN_S

    def __init__(self, plan: ProcessPlan, sinks: Sequence[Sink]) -> None:
        """Starts it.

        Args:
            plan: what to start.
            sinks: take its stdout and its stderr.

        Raises:
            LaunchError: the command can't be started.
        """
        self._process = _start(plan)
        self.pid = self._process.pid
        super().__init__(
            plan.rank, sinks, attendance=Attendance(plan.board, session=self.pid), host=""
        )
        pipes = (self._process.stdout, self._process.stderr)
        self.streams = tuple(
            Stream(pipe, sink) for pipe, sink in zip(pipes, sinks, strict=True) if pipe is not None
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

    def reap(self) -> None:
        """Kills what is left of its group, and takes leave of it."""
        self.signal_group(signal.SIGKILL)
        self._process.wait()
        for stream in self.streams:
            if stream.is_open:
                stream.close()

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def adopt_orphans() -> None:
    """Makes this process the parent of what its children leave behind (until `kill_orphans`)."""
    load_prctl()(PR_SET_CHILD_SUBREAPER, 1)


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
    environment = dict(plan.environment)
    bind = None
    if plan.binding is Binding.CORES:
        cores = share_of_cores(
            usable_cores(), local_rank=plan.local_rank, local_size=plan.local_size
        )
        environment.pop(CORES, None)
        if cores:
            environment[CORES] = str(min(len(cores), num_quota_cores(among=plan.local_size)))
            bind = bind_to(cores)
    try:
        return subprocess.Popen(
            plan.argv,
            cwd=plan.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=plan.descriptors,
            preexec_fn=die_with_parent(bind),  # safe: this process has one thread
        )
    except OSError as error:
        hint = "it must be a program; a line for the shell goes through sh -c '…'"
        if error.errno == errno.E2BIG:
            name = max(environment, key=lambda name: len(environment[name]))
            hint = (
                f"its arguments and variables are too long. The longest variable, {name}, has "
                f"{len(os.fsencode(environment[name]))} bytes; the system takes {_LONGEST_VARIABLE}"
                " in one, name included. TF_CONFIG gets shorter by shorter names of hosts"
            )
        if error.errno in (errno.EAGAIN, errno.ENOMEM):
            hint = (
                "a limit was reached: of the user's processes and threads (ulimit -u), or of a "
                "container's processes or memory (pids.max, memory.max)"
            )
        raise LaunchError(
            f"can't start {plan.argv[0]!r}: {error.strerror}. HINT: {hint}"
        ) from error


def die_with_parent(then: Callable[[], None] | None = None) -> Callable[[], None]:
    """What a child does before its exec, so that even our SIGKILL leaves no worker."""
    prctl, parent = load_prctl(), os.getpid()

    def ask_for_signal() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before it could be asked for
            os._exit(1)
        if then is not None:
            then()

    return ask_for_signal
