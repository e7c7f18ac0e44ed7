"""How far a worker has come, where its launcher can read it.

`tfddlrun` gives every worker a page of shared memory without a name (a memfd) as an inherited
descriptor. The worker writes a few numbers on it, which costs nothing that could be measured; the
launcher reads them whenever it likes, also of a worker that is stopped or dead. So it knows who is
stuck, at which step one died, and whether a worker can save when it is asked to end.

Usage::

    with ProgressPage.create() as board:                                # the launcher
        environment[VARIABLE] = str(board.fileno())
        ...
        board.read().step

    board = ProgressPage.given(os.environ)                              # the worker
    board.enter(Stage.TRAINING)
    board.count_step(epoch=0, step=1)
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
"""The exit status of a worker that SIGTERM has asked to end, and that has saved: 75."""

_NAME = "tfddl-progress"
_SIZE = mmap.PAGESIZE
_TELL_S = 0.5
_STDERR = 2


class Stage(enum.IntEnum):
    """What a worker is about."""

    OUTSIDE = 0
    """Anything but the following."""

    TRAINING = 1
    EVALUATING = 2
    PREDICTING = 3


class WorkerFlags(enum.IntFlag):
    """What can be done with a worker, and what it has done."""

    SAVES_ON_SIGTERM = 1
    """At SIGTERM it saves, and then ends."""

    DUMPS_STACKS = 2
    """At `STACKS_SIGNAL` it writes the stacks of its threads to stderr."""

    PREEMPTED = 4
    """It ends because SIGTERM has asked some worker of the job to."""


class _Word(enum.IntEnum):
    """The place of each number, in words of 8 bytes. A word is written by one store."""

    PID = 0
    BEATS = 1
    POSITION = 2
    STEPS = 3
    STAGE = 4
    ABILITIES = 5
    BEGUN = 6
    ENDED = 7
    ROUNDS = 8


@dataclass(frozen=True)
class WorkerProgress:
    """What a worker has written last; zeros where it has written nothing.

    Attributes:
        pid: the process that writes; a worker's command may have started it.
        beats: grows with each step, batch and change of stage.
        epoch: of the step, from 0.
        step: steps of the epoch that are done, those before a restart included.
        steps: training steps that this process has done.
        stage: what it is about.
        flags: what can be done with it.
        begun: operations with the other workers that it has begun.
        ended: and ended.
        rounds: how often gradients were exchanged outside of `fit`, in a loop by hand.
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
    def waits(self) -> bool:
        """Whether it waits for the other workers."""
        return self.begun > self.ended


class ProgressPage:
    """The page: one worker writes, its launcher reads."""

    def __init__(self, descriptor: int | None) -> None:
        """Takes a memfd of `create`; None is a page that nobody else sees."""
        self._descriptor = descriptor
        self._memory = mmap.mmap(-1 if descriptor is None else descriptor, _SIZE)
        self._words = memoryview(self._memory).cast("Q")

    @classmethod
    def create(cls) -> ProgressPage:
        """A new one, which children get only if its descriptor is passed on.

        Raises:
            OSError: no descriptors or no memory are left.
        """
        descriptor = os.memfd_create(_NAME)
        os.ftruncate(descriptor, _SIZE)
        return cls(descriptor)

    @classmethod
    def given(cls, environment: Mapping[str, str]) -> ProgressPage:
        """The one that the launcher has passed on; otherwise one that nobody else sees.

        A child of a worker may inherit the variable, and not the descriptor: then the number is
        that of nothing, or of another file, which isn't touched.
        """
        number = environment.get(VARIABLE, "")
        link = ""
        with contextlib.suppress(OSError):
            link = os.readlink(f"/proc/self/fd/{number}") if number.isdecimal() else ""
        return cls(int(number) if link.startswith(f"/memfd:{_NAME}") else None)

    @property
    def is_shared(self) -> bool:
        """Whether a launcher reads it."""
        return self._descriptor is not None

    def fileno(self) -> int:
        """The descriptor to pass on."""
        assert self._descriptor is not None
        return self._descriptor

    def close(self) -> None:
        """Lets go of it."""
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

    def forget(self) -> None:
        """For a forked child: goes on with a page that nobody else sees."""
        self._descriptor = None
        self._memory = mmap.mmap(-1, _SIZE)
        self._words = memoryview(self._memory).cast("Q")

    def read(self) -> WorkerProgress:
        """What is written now."""
        words = {word: self._words[word] for word in _Word}
        return WorkerProgress(
            pid=words[_Word.PID],
            beats=words[_Word.BEATS],
            epoch=words[_Word.POSITION] >> 32,
            step=words[_Word.POSITION] & 0xFFFFFFFF,
            steps=words[_Word.STEPS],
            stage=Stage(words[_Word.STAGE]),
            flags=WorkerFlags(words[_Word.ABILITIES]),
            begun=words[_Word.BEGUN],
            ended=words[_Word.ENDED],
            rounds=words[_Word.ROUNDS],
        )

    def sign(self) -> None:
        """Says which process writes here."""
        self._words[_Word.PID] = os.getpid()

    def enable_stack_dumps(self) -> None:
        """Lets the launcher ask for the stacks of all threads, unless the signal is in use."""
        if not self.is_shared or signal.getsignal(STACKS_SIGNAL) is not signal.SIG_DFL:
            return
        faulthandler.register(STACKS_SIGNAL, file=_STDERR, all_threads=True)
        self.set(WorkerFlags.DUMPS_STACKS)

    def set(self, ability: WorkerFlags) -> None:
        """Adds an ability."""
        self._words[_Word.ABILITIES] |= ability

    def unset(self, ability: WorkerFlags) -> None:
        """Takes an ability away."""
        self._words[_Word.ABILITIES] &= ~ability

    def beat(self) -> None:
        """Says that something was done."""
        self._words[_Word.BEATS] += 1

    def count_step(self, *, epoch: int, step: int) -> None:
        """Says that a training step was done.

        Args:
            epoch: from 0.
            step: how many of the epoch are done with it.
        """
        self._words[_Word.POSITION] = (epoch << 32) + step
        self._words[_Word.STEPS] += 1
        self.beat()

    @contextlib.contextmanager
    def during(self, stage: Stage) -> Iterator[None]:
        """Says what the worker is about, and in the end what it was about before."""
        before = self._words[_Word.STAGE]
        self._words[_Word.STAGE] = stage
        self.beat()
        try:
            yield
        finally:
            self._words[_Word.STAGE] = before
            self.beat()

    def tell(self, counts: tuple[int, int], rounds: int = 0) -> None:
        """Says how many operations with the other workers have begun and ended.

        Args:
            counts: begun, ended.
            rounds: how often gradients were exchanged outside of `fit`.
        """
        self._words[_Word.BEGUN], self._words[_Word.ENDED] = counts
        self._words[_Word.ROUNDS] = rounds


class ProgressReporter:
    """A thread that looks how many operations have begun and ended, and writes it on a board."""

    def __init__(
        self, board: ProgressPage, counts: Callable[[], tuple[int, int]], rounds: Callable[[], int]
    ) -> None:
        """Begins.

        Args:
            board: where it is written.
            counts: what is written: begun, ended.
            rounds: and how often gradients were exchanged outside of `fit`.
        """
        self._board, self._counts, self._rounds = board, counts, rounds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tfddl-progress", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(_TELL_S):
            self._board.tell(self._counts(), self._rounds())

    def end(self) -> None:
        """Ends, before the interpreter does."""
        self._stop.set()
        self._thread.join(timeout=5)
