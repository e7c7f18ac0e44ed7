"""The faults that are injected into a training: what, in which ranks, at which point."""

import dataclasses
import enum

EPOCHS = 3
STEPS = 40
"""Steps per epoch."""

EXAMPLES = 317
"""A multiple neither of the steps nor of the workers."""

GLOBAL_BATCH = 8
SAVE_EVERY = 8
EPOCH, STEP = 1, 20
"""The fault comes in the second epoch, within its 21st step: five steps after a save."""

RESIZES = {2: (3, 4), 4: (8, 3)}
"""By the number of workers: within which step of the epoch it changes, and to what."""

HOSTS = 'cat "$TMPDIR/../hosts"'
"""The host discovery script of a training whose number of workers changes."""

FILL_STEP = 15
"""The disk becomes full within the 16th step, so that the save after it fails."""


class Point(enum.Enum):
    """What the worker is doing when the fault comes."""

    STEP = "a step"
    CHECKPOINT = "writing a checkpoint"
    VALIDATION = "validation"


class Action(enum.Enum):
    """What happens to the worker, its launcher or its host."""

    KILL = "SIGKILL of the worker"
    STOP = "SIGSTOP of the worker"
    HANG = "an endless loop"
    CRASH = "an exception"
    TERM = "SIGTERM to the worker"
    KILL_LAUNCHER = "SIGKILL of tfddlrun"
    TERM_LAUNCHER = "SIGTERM to tfddlrun"
    DISCONNECT = "the network link of the worker's host set down"
    RESIZE = "another number of slots from the host discovery script"


class Precondition(enum.Enum):
    """What was wrong already before the fault."""

    NONE = "nothing"
    FULL_DISK = "the disk was full"
    DAMAGED = "the newest checkpoint was damaged"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """One case."""

    ranks: tuple[int, ...] = (1,)
    """The ranks it comes to, all at the same step."""

    point: Point = Point.STEP
    action: Action = Action.KILL
    precondition: Precondition = Precondition.NONE
    num_workers: int = 2
    min_workers: int | None = None
    """Where the job is to shrink: every start with `num_workers` has the fault."""

    hosts: tuple[int, ...] = ()
    """Workers on each of two hosts; empty: all run on this machine."""

    reconnects: bool = False
    """Whether a disconnected host comes back once `tfddlrun` has reported the failure."""

    @property
    def is_repeated(self) -> bool:
        """Whether it comes again and again, until fewer workers go on."""
        return self.min_workers is not None

    @property
    def trained_like(self) -> tuple[bool, int]:
        """What a training without a fault has to have in common, to be compared in every bit.

        Of another number of workers it would be another one, to rounding.
        """
        return self.is_repeated, self.num_workers

    @property
    def step(self) -> int:
        """Steps of the epoch that are done when it comes, a few after a save."""
        return SAVE_EVERY + 2 if self.is_repeated else STEP

    @property
    def ends_job(self) -> bool:
        """Whether the same command has to be given again."""
        return self.action in (Action.TERM, Action.KILL_LAUNCHER, Action.TERM_LAUNCHER)

    @property
    def saves(self) -> bool:
        """Whether the training can save before it ends."""
        return self.action in (Action.TERM, Action.TERM_LAUNCHER, Action.RESIZE)

    @property
    def options(self) -> list[str]:
        """Options of `tfddlrun`."""
        options = ["-np", str(self.num_workers), "--max-restarts", "3"]
        if self.min_workers is not None:
            options += ["--min-np", str(self.min_workers)]
        if self.action in (Action.STOP, Action.HANG):
            options += ["--stall-timeout", "5"]
        if self.action is Action.RESIZE:
            options += ["--host-discovery-script", HOSTS, "--resize-interval", "0"]
        return options


NO_FAULT = "none"
FAULTS: dict[str, Fault] = {
    "SIGKILL of the chief": Fault(ranks=(0,)),
    "SIGKILL of another rank": Fault(),
    "SIGKILL of two at once": Fault(ranks=(0, 1)),
    "SIGKILL of tfddlrun, started again": Fault(action=Action.KILL_LAUNCHER),
    "SIGSTOP, --stall-timeout 5": Fault(action=Action.STOP),
    "an endless loop, --stall-timeout 5": Fault(action=Action.HANG),
    "SIGTERM to tfddlrun, started again": Fault(action=Action.TERM_LAUNCHER),
    "SIGTERM to a worker, started again": Fault(action=Action.TERM),
    "a crash inside a step": Fault(action=Action.CRASH),
    "a crash while writing a checkpoint": Fault(ranks=(0,), point=Point.CHECKPOINT),
    "a crash inside validation": Fault(point=Point.VALIDATION),
    "a full disk, then SIGKILL": Fault(precondition=Precondition.FULL_DISK),
    "a damaged newest checkpoint, after SIGKILL": Fault(
        ranks=(0,), precondition=Precondition.DAMAGED
    ),
    "3 workers, one killed each time, --min-np 2": Fault(num_workers=3, min_workers=2, ranks=(2,)),
    "a host disconnected, then back": Fault(
        action=Action.DISCONNECT, hosts=(1, 1), reconnects=True
    ),
    "a host disconnected for good, --min-np 2": Fault(
        action=Action.DISCONNECT, num_workers=3, min_workers=2, ranks=(2,), hosts=(2, 1)
    ),
    "2 workers, then 4, then 3, --host-discovery-script": Fault(
        action=Action.RESIZE, min_workers=2, ranks=(0,)
    ),
}
