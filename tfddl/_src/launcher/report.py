"""How a job ended, and the report of a failure."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tfddl._src.heartbeat import SAVED_STATUS, Stage, WorkerFlags, WorkerProgress
from tfddl._src.launcher.stall_detector import Stall

_REPORTED_LINES = 20
# Of a worker that stalled: the stacks of all its threads are the report.
_STACKS_LINES = 100
# Of the stack that TensorFlow's abort writes; it hides the line that says why.
_FRAME = re.compile(r"\s*@\s+0x[0-9a-f]+\b")
# Messages about limits that no counter shows, as those of `ulimit`; then what to do.
_SIGNS = (
    (
        re.compile(r"can't start new thread|pthread_create\(\) failed|unable to fork"),
        "HINT: no more threads or processes could be started; ulimit -u says how many a user may "
        "have, and a container may have a limit of its own (pids.max)",
    ),
    (
        re.compile(r"std::bad_alloc|\bMemoryError\b|Cannot allocate memory"),
        "HINT: memory could not be allocated; ulimit -v says how much a process may have. A "
        "smaller batch, fewer workers, or data read from disk",
    ),
)


@dataclass(frozen=True)
class WorkerExit:
    """How one worker ended.

    Attributes:
        rank: whose end.
        returncode: the exit code; the negative number of the signal that killed it.
        after_s: seconds from its start.
        stderr_lines: the last lines of its stderr.
        ended_with: the signal that we had sent before, or None if it ended by itself.
        reading: its last progress report.
        stall: why it was killed, where it made no progress; or None.
        host: where it ran; "" for this machine.
        lost: why nothing more is known of it, since its host can't be reached; or None.
    """

    rank: int
    returncode: int
    after_s: float
    stderr_lines: tuple[str, ...]
    ended_with: signal.Signals | None
    reading: WorkerProgress = WorkerProgress()
    stall: Stall | None = None
    host: str = ""
    lost: str | None = None

    @property
    def has_saved(self) -> bool:
        """Whether it was asked to end, and has saved before."""
        return self.returncode == SAVED_STATUS and WorkerFlags.PREEMPTED in self.reading.flags

    @property
    def was_ended_by_us(self) -> bool:
        """Whether our signal killed it, or made it leave."""
        return self.ended_with is not None and (
            self.returncode in (0, 128 + self.ended_with, -self.ended_with, -signal.SIGKILL)
        )


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        exits: the workers' ends, in their order.
        root: the root cause, the first failure; None if there was none.
        interrupted_by: the signal that ended the job from outside, or None. SIGPIPE if nobody
            reads our output any more.
        num_oom_kills: processes that the kernel's OOM killer ended meanwhile, on the whole
            machine.
        limits: those of cgroups that were reached meanwhile, see `LimitMonitor`.
        goes_on: whether there is another start, where that was decided and said before its last
            workers have ended; otherwise None.
    """

    exits: tuple[WorkerExit, ...]
    root: WorkerExit | None
    interrupted_by: signal.Signals | None
    num_oom_kills: int
    limits: tuple[str, ...] = ()
    goes_on: bool | None = None

    @property
    def has_saved(self) -> bool:
        """Whether SIGTERM has asked the job to end, and it has saved before."""
        if self.interrupted_by not in (None, signal.SIGTERM):
            return False  # Nor does Ctrl-C wait for it, though workers may have saved by then.
        ends = self.exits if self.root is None else (self.root,)
        return bool(ends) and all(end.has_saved for end in ends)

    @property
    def is_failure(self) -> bool:
        """Whether a worker has failed by itself, so that another start may help."""
        return self.root is not None and self.interrupted_by is None and not self.has_saved

    @property
    def status(self) -> int:
        """The exit status of the job, as a shell would give it."""
        if self.has_saved:
            return SAVED_STATUS
        if self.root is not None:
            code = self.root.returncode
            return code if code >= 0 else 128 - code
        return 0 if self.interrupted_by is None else 128 + self.interrupted_by


def describe_exit(returncode: int) -> str:
    """Says "exit code 3" or "killed by SIGKILL"."""
    if returncode >= 0:
        return f"exit code {returncode}"
    return f"killed by {signal_name(-returncode)}"


def signal_name(number: int) -> str:
    """The name of a signal; its number for one that has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def outcome_report(outcome: Outcome, *, broken: OSError | None = None) -> str:
    """The last message of a job; "" where all workers ended well.

    Args:
        outcome: how it ended.
        broken: why nobody reads the job's output any more, if that has ended it.
    """
    if outcome.has_saved:
        return (
            "ended by SIGTERM, after the training was saved at "
            f"{describe_progress(outcome.exits[0].reading)}; the same command resumes from there"
        )
    if outcome.root is not None:
        return failure_report(outcome)
    if outcome.interrupted_by is None:
        return ""
    why = "" if broken is None else f" ({broken.strerror})"
    text = f"ended by {outcome.interrupted_by.name}{why}, and all workers with it"
    if outcome.interrupted_by == signal.SIGTERM and any(
        WorkerFlags.SAVES_ON_SIGTERM in end.reading.flags for end in outcome.exits
    ):
        text += "\nthe workers did not save in time. HINT: --grace-period is how long that may take"
    return text


def failure_report(outcome: Outcome) -> str:
    """The root cause with the last lines of its stderr, and in brief what followed.

    Args:
        outcome: one with a root.
    """
    root = outcome.root
    assert root is not None
    where = f" on {root.host}" if root.host else ""
    stall = "" if root.stall is None else f"no progress for {root.stall.for_s:.0f} s, "
    how = describe_exit(root.returncode) if root.lost is None else "lost with its host"
    lines = [f"rank {root.rank}{where} failed: {stall}{how} after {root.after_s:.1f} s"]
    if root.reading.beats or root.reading.rounds:
        lines.append(f"its progress: {describe_progress(root.reading)}")
    lines += [f"meanwhile a limit was reached: {limit}" for limit in outcome.limits]
    hint = root.lost or _hint(root, outcome)
    if root.stall is not None:
        hint = _describe_stall(root.stall)
    if hint:
        lines.append(hint)
    if root.stderr_lines:
        lines.append("the last lines of its stderr:")
        count = _REPORTED_LINES if root.stall is None else _STACKS_LINES
        lines += [f"  {line}" for line in _without_frames(root.stderr_lines)[-count:]]
    else:
        lines.append("it wrote nothing to stderr")
    lines += _others(outcome, root)
    return "\n".join(lines)


def describe_progress(reading: WorkerProgress) -> str:
    """Says "step 37 of epoch 2, training": the last step that was done, counted from 1."""
    place = "before the first step"
    if reading.rounds and not reading.steps:
        place = f"about step {reading.rounds} of a loop by hand"
    if reading.steps:
        place = f"step {reading.step} of epoch {reading.epoch + 1}"
    stage = "" if reading.stage is Stage.OUTSIDE else f", {reading.stage.name.lower()}"
    return place + stage


def _describe_stall(stall: Stall) -> str:
    waiting = ", ".join(map(str, stall.waiting))
    others = f"rank {waiting} waited for it; " if waiting else ""
    if stall.is_stopped:
        return f"{others}its process was stopped, by SIGSTOP, Ctrl-Z or a debugger, and was killed"
    return f"{others}it was running, was asked for the stacks of its threads, and was killed"


def _without_frames(lines: Sequence[str]) -> list[str]:
    """Lines with only a word of the stack that native code has written."""
    found: list[str] = []
    count = 0
    for line in lines:
        if _FRAME.match(line):
            found = found[:-1] if count else found
            count += 1
            found.append(f"    ({count} frames of native code)")
        else:
            count = 0
            found.append(line)
    return found


def _hint(root: WorkerExit, outcome: Outcome) -> str:
    returncode = root.returncode
    for sign, hint in _SIGNS:
        if any(sign.search(line) for line in root.stderr_lines):
            return "" if outcome.limits else hint
    if returncode == -signal.SIGKILL:
        if outcome.num_oom_kills:
            return (
                "out of memory: the kernel killed a process on the machine meanwhile. "
                "HINT: a smaller batch, fewer workers, or data read from disk"
            )
        return (
            "HINT: if nobody killed it, the machine may have run out of memory (dmesg tells); "
            "then a smaller batch or fewer workers help"
        )
    if returncode in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGFPE, -signal.SIGILL):
        return "HINT: native code crashed; python -X faulthandler shows where"
    return ""


def _others(outcome: Outcome, root: WorkerExit) -> list[str]:
    """What the other workers did before and after, a line per kind."""
    before = outcome.exits[: outcome.exits.index(root)]
    after = [
        end for end in outcome.exits if end is not root and (end not in before or end.returncode)
    ]
    done = _ranks(end for end in before if end.returncode == 0)
    failed = [f"{e.rank} ({describe_exit(e.returncode)})" for e in after if _failed_too(e)]
    ended = _ranks(end for end in after if end.was_ended_by_us)
    lines = []
    if done:
        lines.append(f"before that, ended normally: rank {done} (the others can't go on alone)")
    if failed:
        lines.append(f"after that, failed as well: rank {', '.join(failed)}")
    if ended:
        lines.append(f"after that, ended by tfddlrun: rank {ended}")
    return lines


def _ranks(ends: Iterable[WorkerExit]) -> str:
    return ", ".join(map(str, sorted(end.rank for end in ends)))


def _failed_too(end: WorkerExit) -> bool:
    return end.returncode != 0 and not end.was_ended_by_us
