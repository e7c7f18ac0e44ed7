"""Two processes, each of which kills all that a job has started if the other one is killed.

The kernel ends a child of ours with us (PR_SET_PDEATHSIG), but not the child's children: the Python
that a shell has started for a worker would live on. They can be found only by an ancestor that
outlives them (PR_SET_CHILD_SUBREAPER). So tfddlrun is two processes. The outer one is what was
started, and passes signals on; the inner one does the work. If the outer one is killed, the kernel
tells the inner one, which kills all workers and what they have started; if the inner one is killed,
the outer one does. What kills both at once is made unlikely: the inner one has a process group of
its own (`kill -9 %1` of a shell kills a group), and another name (`pkill -9 tfddlrun`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from tfddl._src.launcher.report import describe_exit
from tfddl._src.launcher.signals import FORWARDED, OUTER_DIED, Signals
from tfddl._src.launcher.system import PR_SET_NAME, PR_SET_PDEATHSIG, load_prctl
from tfddl._src.launcher.worker_process import adopt_orphans, kill_orphans
from tfddl.errors import LaunchError

_NAME = b"tfddl-workers"
# In /proc/PID/stat, after the name in parentheses: where the command line is in memory.
_ARG_START, _ARG_END = 45, 46


def guarded(work: Callable[[Signals], int], *, program: str) -> int:
    """Does the work in a child process, and leaves nothing behind, whichever of both is killed.

    The calling process must have no other children and no threads.

    Args:
        work: is given the signals that come to either process, and returns an exit status.
        program: the command, for messages.

    Returns:
        That; where the process was killed, 128 and the number of the signal.

    Raises:
        LaunchError: the work has raised it, or there can be no other process.
    """
    to_inner, from_outer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)[::-1]
    # Not a pipe, which nobody reads before the end, and which would fill up.
    why = os.memfd_create("tfddl-error")
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        adopt_orphans()
        outer = os.getpid()
        with Signals() as signals:
            try:
                inner = os.fork()
            except OSError as error:
                raise LaunchError(
                    f"can't start a process: {error.strerror}. HINT: ulimit -u, or the limit of "
                    "processes (pids.max) or memory of a container"
                ) from error
            if inner == 0:
                _work(work, outer=outer, pipe=(from_outer, to_inner), why=why)
            status = _wait(inner, signals, to_inner)
        if status < 0:
            kill_orphans()
            how = describe_exit(status)
            say(program, f"its process {inner} was {how}, and all workers with it")
            return 128 - status
        if text := os.pread(why, os.fstat(why).st_size, 0):
            raise LaunchError(text.decode(errors="surrogateescape"))
        return status
    finally:
        for fd in (to_inner, from_outer, why):
            os.close(fd)


def die_with_caller(pid: int) -> None:
    """Has the kernel kill this process when the one that has started it ends, however it does.

    Args:
        pid: the process that has started this one. If it has ended already, so does this one.
    """
    load_prctl()(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != pid:
        os.kill(os.getpid(), signal.SIGKILL)


def say(program: str, text: str) -> None:
    """Writes lines to stderr; that it can't be written doesn't change the exit status."""
    with contextlib.suppress(OSError):
        sys.stderr.write("".join(f"{program}: {line}\n" for line in text.splitlines()))
        sys.stderr.flush()


def _wait(inner: int, signals: Signals, to_inner: int) -> int:
    """Passes signals on until the inner process has ended; its status, or minus a signal."""
    poll = select.poll()
    poll.register(signals.fileno(), select.POLLIN)
    while True:
        pid, status = os.waitpid(inner, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        # No race: SIGCHLD makes `signals` readable, also where it has come since the child was
        # asked for.
        poll.poll()
        signals.read()
        for number in signals.take_ending():
            # A pipe that is full holds more of them than anybody counts.
            with contextlib.suppress(BlockingIOError):
                os.write(to_inner, bytes([number | FORWARDED]))


def _work(
    work: Callable[[Signals], int], *, outer: int, pipe: tuple[int, int], why: int
) -> NoReturn:
    """What the inner process does, from its beginning to its end."""
    status = 1
    try:
        # To write to the terminal, which is the outer process's group's, it ignores SIGTTOU.
        os.setpgid(0, 0)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        _rename(outer)
        with Signals(pipe) as signals:
            load_prctl()(PR_SET_PDEATHSIG, OUTER_DIED)
            if os.getppid() == outer:  # it hasn't died before it could be asked for
                status = work(signals)
    except LaunchError as error:
        os.write(why, str(error).encode(errors="surrogateescape"))
    except BaseException:  # noqa: BLE001 - it must not go on as the outer one does
        traceback.print_exc()
    finally:
        for file in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                file.flush()
        # Not sys.exit: atexit functions, and what stands above this call, are the outer process's.
        os._exit(status)


def _rename(outer: int) -> None:
    """Changes the name and the arguments that `ps`, `pgrep` and `pkill` see."""
    load_prctl()(PR_SET_NAME, _NAME)
    with contextlib.suppress(OSError, IndexError, ValueError):
        # As setproctitle does: prctl's PR_SET_MM would take CAP_SYS_RESOURCE (prctl(2)). The first
        # of these fields is the third of proc(5), since the name may have spaces and parentheses in
        # it.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
        text = _NAME + f" of process {outer}".encode()
        if start and end > start:
            ctypes.memset(start, 0, end - start)
            ctypes.memmove(start, text, min(len(text), end - start - 1))
