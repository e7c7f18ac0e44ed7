"""What is done to a training: where a worker is struck, and by what. Pure, without TensorFlow."""

import dataclasses
import enum

EPOCHS = 3
STEPS = 40
"""Of an epoch."""

EXAMPLES = 317
"""Neither the steps nor the workers divide it."""

GLOBAL_BATCH = 8
SAVE_EVERY = 8
EPOCH, STEP = 1, 20
"""The second epoch, within its 21st step: five after a save."""

FILL_STEP = 15
"""Within its 16th step the disk becomes full, so that the save after it fails."""


class Place(enum.Enum):
    """In the middle of what the worker is struck."""

    STEP = "a step"
    WRITING = "a checkpoint's writing"
    VALIDATION = "validation"


class Act(enum.Enum):
    """What then happens."""

    KILL = "SIGKILL of the worker"
    STOP = "SIGSTOP of the worker"
    HANG = "a loop without end"
    CRASH = "an exception"
    TERM = "SIGTERM to the worker"
    KILL_LAUNCHER = "SIGKILL of tfddlrun"
    TERM_LAUNCHER = "SIGTERM to tfddlrun"
    CUT_OFF = "the cable of the worker's host cut"


class Trouble(enum.Enum):
    """What else was wrong before."""

    NONE = "nothing"
    FULL_DISK = "the disk took no more"
    DAMAGED = "the newest checkpoint was damaged"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blow:
    """One case."""

    ranks: tuple[int, ...] = (1,)
    """Whom it strikes, all at the same step."""

    place: Place = Place.STEP
    act: Act = Act.KILL
    trouble: Trouble = Trouble.NONE
    num_workers: int = 2
    min_workers: int | None = None
    """Where the number of workers is to change: each start with as many as at first is struck."""

    hosts: tuple[int, ...] = ()
    """How many of the workers each of two hosts has; none: all are on this machine."""

    heals: bool = False
    """Whether a host that was cut off is joined again once `tfddlrun` has told of the failure."""

    @property
    def is_repeated(self) -> bool:
        """Whether it strikes again and again, until fewer workers go on."""
        return self.min_workers is not None

    @property
    def step(self) -> int:
        """Steps of the epoch that are done when it strikes, a few after a save."""
        return SAVE_EVERY + 2 if self.is_repeated else STEP

    @property
    def ends_job(self) -> bool:
        """Whether the same command has to be given again."""
        return self.act in (Act.TERM, Act.KILL_LAUNCHER, Act.TERM_LAUNCHER)

    @property
    def saves(self) -> bool:
        """Whether it lets the training save before it ends."""
        return self.act in (Act.TERM, Act.TERM_LAUNCHER)

    @property
    def options(self) -> list[str]:
        """For `tfddlrun`."""
        options = ["-np", str(self.num_workers), "--max-restarts", "3"]
        if self.min_workers is not None:
            options += ["--min-np", str(self.min_workers)]
        if self.act in (Act.STOP, Act.HANG):
            options += ["--stall-timeout", "5"]
        return options


UNDISTURBED = "undisturbed"
BLOWS: dict[str, Blow] = {
    "SIGKILL of the chief": Blow(ranks=(0,)),
    "SIGKILL of another rank": Blow(),
    "SIGKILL of two at once": Blow(ranks=(0, 1)),
    "SIGKILL of tfddlrun, started again": Blow(act=Act.KILL_LAUNCHER),
    "SIGSTOP, --stall-timeout 5": Blow(act=Act.STOP),
    "a loop without end, --stall-timeout 5": Blow(act=Act.HANG),
    "SIGTERM to tfddlrun, started again": Blow(act=Act.TERM_LAUNCHER),
    "SIGTERM to a worker, started again": Blow(act=Act.TERM),
    "a crash inside a step": Blow(act=Act.CRASH),
    "a crash inside a checkpoint's writing": Blow(ranks=(0,), place=Place.WRITING),
    "a crash inside validation": Blow(place=Place.VALIDATION),
    "a full disk, then SIGKILL": Blow(trouble=Trouble.FULL_DISK),
    "a damaged newest checkpoint, after SIGKILL": Blow(ranks=(0,), trouble=Trouble.DAMAGED),
    "3 workers, one killed each time, --min-np 2": Blow(num_workers=3, min_workers=2, ranks=(2,)),
    "a host cut off by the network, then back": Blow(act=Act.CUT_OFF, hosts=(1, 1), heals=True),
    "a host cut off for good, --min-np 2": Blow(
        act=Act.CUT_OFF, num_workers=3, min_workers=2, ranks=(2,), hosts=(2, 1)
    ),
}
