"""One worker process on its host: started in its own session, its output read, its end noticed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from tfddl._src import commits, heartbeat, membership
from tfddl._src.cluster import CORES
from tfddl._src.cpu import num_quota_cores
from tfddl._src.heartbeat import STACKS_SIGNAL, ProgressPage, WorkerFlags
from tfddl._src.launcher.cores import Binding, bind_to, share_of_cores, usable_cores
from tfddl._src.launcher.host_store import HostStore
from tfddl._src.launcher.output import Stream
from tfddl._src.launcher.plan import ProcessPlan
from tfddl._src.launcher.preloading import ForkedProcess, Preloader
from tfddl._src.launcher.stall_detector import is_stopped
from tfddl._src.launcher.system import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, load_prctl
from tfddl._src.membership import MembershipFile
from tfddl.errors import LaunchError

# MAX_ARG_STRLEN of Linux, which counts a zero at the end.
_LONGEST_VARIABLE = 2**17 - 1


class OutputPipe:
    """The reading end of a worker's stdout or stderr.

    Attributes:
        stream: which of the two.
    """

    def __init__(self, pipe: IO[bytes], stream: Stream) -> None:
        self.stream = stream
        self._pipe = pipe
        os.set_blocking(pipe.fileno(), False)

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._pipe.fileno()

    @property
    def is_open(self) -> bool:
        """Whether more may come."""
        return not self._pipe.closed

    def read(self) -> bytes | None:
        """What is there, at most 64 KiB; None where nothing is, b"" where no more will come."""
        try:
            return os.read(self.fileno(), 1 << 16)
        except BlockingIOError:
            return None

    def close(self) -> None:
        """Closes it: a process that still writes gets SIGPIPE."""
        self._pipe.close()


class WorkerProcess:
    """A worker, and all that it starts in its process group.

    Attributes:
        rank: its rank at its start.
        number: its own, whatever its rank becomes.
        pid: its process, process group and session.
        outputs: its stdout and its stderr.
        ended_s: when it was found to have ended (`time.monotonic`), or None.
        returncode: then its exit code, or the negative number of the signal that killed it.
    """

    def __init__(
        self,
        plan: ProcessPlan,
        *,
        store: HostStore | None = None,
        files: Mapping[str, int] = MappingProxyType({}),
        preloader: Preloader | None = None,
    ) -> None:
        """Starts it. The calling process must have no other threads.

        Args:
            plan: what to start.
            store: the host's, for the first worker of a job that keeps commits.
            files: descriptors that it inherits, by the names of their variables.
            preloader: what it is forked from, see `preloader_of`; None: it is a program of its own.

        Raises:
            LaunchError: the command can't be started, or a limit was reached.
        """
        self.rank, self.number = plan.rank, plan.worker
        self.ended_s: float | None = None
        self.returncode = 0
        try:
            self._page = ProgressPage.create()
        except OSError as error:
            raise LaunchError(
                f"can't make the memory that workers share with tfddlrun: {error.strerror}. HINT: "
                "a descriptor for each worker; ulimit -n says how many there may be"
            ) from error
        inherited = {heartbeat.VARIABLE: self._page.fileno(), **files}
        self._membership = _membership_file() if plan.may_stay else None
        if self._membership is not None:
            inherited[membership.VARIABLE] = self._membership.fileno()
        if store is not None and plan.keeps_commits and plan.local_rank == 0:
            inherited[commits.VARIABLE] = store.fd
        try:
            self._process = _start(plan, inherited, preloader)
        except BaseException:
            self._close_files()
            raise
        self.pid = self._process.pid
        pipes = (self._process.stdout, self._process.stderr)
        self.outputs = tuple(
            OutputPipe(pipe, stream)
            for pipe, stream in zip(pipes, Stream, strict=True)
            if pipe is not None
        )

    def look(self) -> bool:
        """Whether it has just been found to have ended.

        It is not reaped yet: as long as it isn't, its number and its process group's can't
        belong to another process.
        """
        if self.ended_s is not None:
            return False
        # Not `Popen.poll`, which reaps.
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return False
        self.ended_s = time.monotonic()
        by_itself = found.si_code == os.CLD_EXITED
        self.returncode = found.si_status if by_itself else -found.si_status
        return True

    def progress(self) -> dict[str, Any]:
        """Its progress page, and whether the process that trains is stopped."""
        return {
            "reading": dataclasses.asdict(self._page.read()),
            "is_stopped": is_stopped(self._training_pid),
        }

    def signal_group(self, number: signal.Signals) -> None:
        """Sends a signal to the worker and all processes of its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def ask_for_stacks(self) -> None:
        """Makes it write the stacks of its threads to stderr, if it can."""
        if WorkerFlags.DUMPS_STACKS in self._page.read().flags:
            self._signal_training(STACKS_SIGNAL)

    def ask_to_save(self) -> bool:
        """Makes it save and end; False where it can't.

        Only the process that trains is asked: a shell around it would end at once, and the worker
        with it.
        """
        if self.ended_s is not None or WorkerFlags.SAVES_ON_SIGTERM not in self._page.read().flags:
            return False
        self._signal_training(signal.SIGTERM)
        return True

    def request_save(self) -> None:
        """Asks it to save and end when it next can; see `ProgressPage.request_save`."""
        self._page.request_save()

    def tell_membership(self, variables: Mapping[str, str] | None) -> None:
        """Tells it who takes part now, which answers a request to save.

        Args:
            variables: see `Membership`.
        """
        self._page.withdraw_request()
        if self._membership is not None:
            self._membership.write(variables)

    def reap(self) -> None:
        """Kills what is left of its group, and waits for its end."""
        self.signal_group(signal.SIGKILL)
        self._process.wait()
        self._close_files()

    def _close_files(self) -> None:
        self._page.close()
        if self._membership is not None:
            self._membership.close()

    @property
    def _training_pid(self) -> int:
        """The process that trains: the worker itself, or one that its command has started."""
        pid = self._page.read().pid
        with contextlib.suppress(ProcessLookupError):
            # Its number may be another process's by now: only one of the worker's session is
            # signalled.
            if pid and os.getsid(pid) == self.pid:
                return pid
        return self.pid

    def _signal_training(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._training_pid, number)


def adopt_orphans() -> None:
    """Makes this process the parent of what its children leave behind (until `kill_orphans`)."""
    # prctl(2): orphans go to the nearest such ancestor. A forked child doesn't inherit it.
    load_prctl()(PR_SET_CHILD_SUBREAPER, 1)


def kill_orphans() -> None:
    """Kills all children of this process, and their children as they are reparented to it."""
    # Again until none is left: proc(5) calls the list reliable only where no child ends meanwhile.
    while children := _children():
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _membership_file() -> MembershipFile | None:
    """None where there is no memory for it: the worker then ends where others come or go."""
    with contextlib.suppress(OSError):
        return MembershipFile.create()
    return None


def _children() -> list[int]:
    lists = Path("/proc/self/task").glob("*/children")
    return [int(pid) for path in lists for pid in path.read_text().split()]


def preloader_of(plan: ProcessPlan) -> Preloader:
    """Starts what all workers of a host are forked from, with the first one's plan.

    Libraries that count the cores when they are imported find as many as that worker has.

    Raises:
        LaunchError: it can't be started, or a module can't be imported.
    """
    environment, cores = _environment_and_cores(plan)
    return Preloader(
        plan.argv,
        modules=plan.preload,
        environment=environment,
        directory=plan.directory,
        before=die_with_parent(bind_to(cores) if cores else None),
    )


def _environment_and_cores(plan: ProcessPlan) -> tuple[dict[str, str], Sequence[int]]:
    """The variables of a worker, and the cores that it is bound to; none of these: to no cores."""
    environment = dict(plan.environment)
    if plan.binding is not Binding.CORES:
        return environment, ()
    cores = share_of_cores(usable_cores(), local_rank=plan.local_rank, local_size=plan.local_size)
    environment.pop(CORES, None)
    if cores:
        environment[CORES] = str(min(len(cores), num_quota_cores(among=plan.local_size)))
    return environment, cores


def _start(
    plan: ProcessPlan, inherited: Mapping[str, int], preloader: Preloader | None
) -> subprocess.Popen[bytes] | ForkedProcess:
    """Starts a worker that inherits descriptors, whose numbers stand in these variables."""
    environment, cores = _environment_and_cores(plan)
    if preloader is not None:
        return preloader.fork(
            environment=environment, inherited=inherited, directory=plan.directory, cores=cores
        )
    environment |= {name: str(fd) for name, fd in inherited.items()}
    bind = bind_to(cores) if cores else None
    try:
        return subprocess.Popen(
            plan.argv,
            cwd=plan.directory,
            env=environment,
            stdin=subprocess.DEVNULL,  # of which N workers could each read a part
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C and Ctrl-Z reach tfddlrun alone
            pass_fds=tuple(inherited.values()),
            preexec_fn=die_with_parent(bind),  # safe: this process has one thread
        )
    except OSError as error:
        hint = _hint_at_failed_start(error, environment)
        raise LaunchError(
            f"can't start {plan.argv[0]!r}: {error.strerror}. HINT: {hint}"
        ) from error


def _hint_at_failed_start(error: OSError, environment: Mapping[str, str]) -> str:
    if error.errno == errno.E2BIG:
        name = max(environment, key=lambda name: len(environment[name]))
        return (
            f"its arguments and variables are too long. The longest variable, {name}, has "
            f"{len(os.fsencode(environment[name]))} bytes; the system takes {_LONGEST_VARIABLE}"
            " in one, name included. TF_CONFIG gets shorter by shorter names of hosts"
        )
    if error.errno in (errno.EAGAIN, errno.ENOMEM):
        return (
            "a limit was reached: of the user's processes and threads (ulimit -u), or of a "
            "container's processes or memory (pids.max, memory.max)"
        )
    return "it must be a program; a line for the shell goes through sh -c '…'"


def die_with_parent(then: Callable[[], None] | None = None) -> Callable[[], None]:
    """What a child does before its exec, so that even our SIGKILL leaves no worker."""
    # Before the fork: between fork and exec nothing may be loaded, and as little as possible done.
    prctl, parent = load_prctl(), os.getpid()

    def set_death_signal() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the signal was set
            os._exit(1)
        if then is not None:
            then()

    return set_death_signal
