"""Heartbeat and progress of a worker, in a page of memory shared with its launcher.

`tfddlrun` passes every worker an anonymous page (a memfd) as an inherited descriptor. The worker
stores a few counters in it; the launcher reads them at any time, also of a worker that is stopped
or dead. So it knows who is stuck, at which step one died, and whether a worker saves at SIGTERM.

Memory ordering: one process writes each word. Each is an aligned word of 8 bytes, whose loads and
stores are single-copy atomic on x86-64 and arm64: a reader never sees half of a number. There is no
seqlock: words that are read together may be of different moments, and need not fit, since the
launcher compares reads that are seconds apart and acts on what has stayed the same.

References:
    memfd_create(2), https://man7.org/linux/man-pages/man2/memfd_create.2.html.

Usage::

    with ProgressPage.create() as page:                                 # the launcher
        environment[VARIABLE] = str(page.fileno())
        ...
        page.read().step

    page = ProgressPage.from_environment(os.environ)                    # the worker
    with page.in_stage(Stage.TRAINING):
        page.count_step(epoch=0, step=1)
"""

from __future__ import annotations

import contextlib
import enum
import faulthandler
import mmap
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType

VARIABLE = "TFDDL_PROGRESS_FD"
STACKS_SIGNAL = signal.SIGUSR1
SAVED_STATUS = os.EX_TEMPFAIL
"""The exit status of a worker that saved, because it was asked to, and then ended: 75."""

_NAME = "tfddl-progress"
_SIZE = mmap.PAGESIZE
_REPORT_INTERVAL_S = 0.5
_STDERR = 2


class Stage(enum.IntEnum):
    """Which of Keras' methods a worker is in."""

    OUTSIDE = 0
    """None of the following."""

    TRAINING = 1
    EVALUATING = 2
    PREDICTING = 3


class WorkerFlags(enum.IntFlag):
    """What the launcher may ask of a worker, and why it ends."""

    SAVES_ON_SIGTERM = 1
    """At SIGTERM it saves a checkpoint and ends with `SAVED_STATUS`."""

    DUMPS_STACKS = 2
    """At `STACKS_SIGNAL` it writes the Python stacks of its threads to stderr."""

    PREEMPTED = 4
    """It ends because some worker of the job was asked to save."""

    SAVES_ON_REQUEST = 8
    """When `ProgressPage.request_save` was called, it saves and ends with `SAVED_STATUS`."""

    GOT_SIGTERM = 16
    """It is one of those that SIGTERM came to."""

    REGROUPS = 32
    """Where workers are lost, or `ProgressPage.request_save` was called, it doesn't end: it waits
    to be told who takes part now."""

    WAITS_FOR_MEMBERS = 64
    """It waits for that: it has left the others, and has saved if it was asked to."""

    JOINS = 128
    """It waits for the others, at its start."""


class _Word(enum.IntEnum):
    """The index of each 8-byte word in the page."""

    PID = 0
    BEATS = 1
    POSITION = 2  # epoch << 32 | step: one store for both, so that they fit each other
    STEPS = 3
    STAGE = 4
    FLAGS = 5
    BEGUN = 6
    ENDED = 7
    ROUNDS = 8
    SAVE_REQUEST = 9  # written by the launcher alone


@dataclass(frozen=True)
class WorkerProgress:
    """What a worker has written last; zeros where it has written nothing.

    Attributes:
        pid: the process that writes: the worker, or a child that its command has started.
        beats: grows with each step, batch and change of stage.
        epoch: of the step, from 0.
        step: completed steps of the epoch, those before a restart included.
        steps: training steps that this process has completed.
        stage: where it is.
        flags: what may be asked of it.
        begun: collective operations that it has begun.
        ended: collective operations that it has ended.
        rounds: gradient exchanges outside of `fit`, in custom training loops.
    """

    pid: int = 0
    beats: int = 0
    epoch: int = 0
    step: int = 0
    steps: int = 0
    stage: Stage = Stage.OUTSIDE
    flags: WorkerFlags = WorkerFlags(0)
    begun: int = 0
    ended: int = 0
    rounds: int = 0

    @property
    def is_waiting(self) -> bool:
        """Whether it is in a collective operation."""
        return self.begun > self.ended


class ProgressPage:
    """A page that one worker writes and its launcher reads."""

    def __init__(self, descriptor: int | None) -> None:
        """Maps a memfd of `create`; None maps a private page."""
        self._descriptor = descriptor
        self._memory = mmap.mmap(-1 if descriptor is None else descriptor, _SIZE)
        self._words = memoryview(self._memory).cast("Q")

    @classmethod
    def create(cls) -> ProgressPage:
        """A new page; its descriptor is close-on-exec until it is passed on.

        Raises:
            OSError: no descriptors or no memory are left.
        """
        descriptor = os.memfd_create(_NAME)
        os.ftruncate(descriptor, _SIZE)
        return cls(descriptor)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> ProgressPage:
        """The page that the launcher has passed on; without a launcher, a private page.

        A child of a worker may inherit the variable without the descriptor: the number may then be
        that of another file. So the name of the memfd is checked.
        """
        number = environment.get(VARIABLE, "")
        link = ""
        with contextlib.suppress(OSError):
            link = os.readlink(f"/proc/self/fd/{number}") if number.isdecimal() else ""
        return cls(int(number) if link.startswith(f"/memfd:{_NAME}") else None)

    @property
    def is_shared(self) -> bool:
        """Whether a launcher can read it."""
        return self._descriptor is not None

    def fileno(self) -> int:
        """The descriptor of a page of `create`, to pass on to a child."""
        assert self._descriptor is not None
        return self._descriptor

    def close(self) -> None:
        """Unmaps the page and closes its descriptor."""
        self._words.release()
        self._memory.close()
        if self._descriptor is not None:
            os.close(self._descriptor)

    def __enter__(self) -> ProgressPage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def detach(self) -> None:
        """Switches to a private page, in a forked child. The descriptor stays open."""
        self._descriptor = None
        self._memory = mmap.mmap(-1, _SIZE)
        self._words = memoryview(self._memory).cast("Q")

    def read(self) -> WorkerProgress:
        words = {word: self._words[word] for word in _Word}
        return WorkerProgress(
            pid=words[_Word.PID],
            beats=words[_Word.BEATS],
            epoch=words[_Word.POSITION] >> 32,
            step=words[_Word.POSITION] & 0xFFFFFFFF,
            steps=words[_Word.STEPS],
            stage=Stage(words[_Word.STAGE]),
            flags=WorkerFlags(words[_Word.FLAGS]),
            begun=words[_Word.BEGUN],
            ended=words[_Word.ENDED],
            rounds=words[_Word.ROUNDS],
        )

    def record_pid(self) -> None:
        """Names this process as the writer."""
        self._words[_Word.PID] = os.getpid()

    def enable_stack_dumps(self) -> None:
        """Lets `STACKS_SIGNAL` write the stacks of all threads, unless the signal is in use."""
        if not self.is_shared or signal.getsignal(STACKS_SIGNAL) is not signal.SIG_DFL:
            return
        # faulthandler writes from C, in the signal handler: also while the GIL is held forever.
        faulthandler.register(STACKS_SIGNAL, file=_STDERR, all_threads=True)
        self.set_flags(WorkerFlags.DUMPS_STACKS)

    def set_flags(self, flags: WorkerFlags) -> None:
        self._words[_Word.FLAGS] |= flags

    def clear_flags(self, flags: WorkerFlags) -> None:
        self._words[_Word.FLAGS] &= ~flags

    def request_save(self) -> None:
        """Asks the worker to save and end; for the launcher.

        A signal would kill a worker whose training has ended in the meantime; it ignores this.
        """
        self._words[_Word.SAVE_REQUEST] = 1

    def withdraw_request(self) -> None:
        """Takes `request_save` back, which was answered; for the launcher."""
        self._words[_Word.SAVE_REQUEST] = 0

    @property
    def save_is_requested(self) -> bool:
        """Whether the launcher has called `request_save`."""
        return bool(self._words[_Word.SAVE_REQUEST])

    def beat(self) -> None:
        """Records that a step, a batch or a stage was completed."""
        # Not atomic: of two threads that beat at once, one beat may be lost. Only that it grows
        # counts.
        self._words[_Word.BEATS] += 1

    def count_step(self, *, epoch: int, step: int) -> None:
        """Records a completed training step.

        Args:
            epoch: from 0.
            step: completed steps of the epoch, this one included.
        """
        self._words[_Word.POSITION] = (epoch << 32) + step
        self._words[_Word.STEPS] += 1
        self.beat()

    @contextlib.contextmanager
    def in_stage(self, stage: Stage) -> Iterator[None]:
        """A context in which the worker is in a stage; the one before comes back at its end."""
        before = self._words[_Word.STAGE]
        self._words[_Word.STAGE] = stage
        self.beat()
        try:
            yield
        finally:
            self._words[_Word.STAGE] = before
            self.beat()

    def record_operations(self, counts: tuple[int, int], rounds: int = 0) -> None:
        """Records how many collective operations have begun and ended.

        Args:
            counts: begun, ended.
            rounds: gradient exchanges outside of `fit`.
        """
        # Begun first: a reader in between sees an operation too many under way, never too few.
        self._words[_Word.BEGUN], self._words[_Word.ENDED] = counts
        self._words[_Word.ROUNDS] = rounds


class ProgressReporter:
    """A daemon thread that copies the counts of operations to a page, twice a second.

    The counts are kept in native code and in graphs, which don't write the page themselves.
    """

    def __init__(
        self, page: ProgressPage, counts: Callable[[], tuple[int, int]], rounds: Callable[[], int]
    ) -> None:
        """Starts the thread.

        Args:
            page: where the counts are written.
            counts: returns begun, ended.
            rounds: returns the gradient exchanges outside of `fit`.
        """
        self._page, self._counts, self._rounds = page, counts, rounds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tfddl-progress", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(_REPORT_INTERVAL_S):
            self._page.record_operations(self._counts(), self._rounds())

    def stop(self) -> None:
        """Stops the thread. At exit it must, before the interpreter frees what it calls."""
        self._stop.set()
        self._thread.join(timeout=5)
