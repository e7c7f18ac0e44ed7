"""How busy machines are with what isn't ours, while we measure."""

import dataclasses
import os
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

from tfddl.bench.machines import Machine

_PROC = Path("/proc")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
# user, nice, system, steal. Interrupts are left out: they also serve what we send to ourselves.
_BUSY_COLUMNS = (0, 1, 2, 7)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moment:
    """The counters of a kernel at one moment; only differences between two mean anything."""

    machine: str
    """The identity of the machine."""

    at_s: float
    busy_s: float
    """What the cores that count have worked, for whomever."""

    ours_s: float
    """What some of our processes have worked."""

    @classmethod
    def now(cls, machine: Machine, pids: Iterable[int], *, proc: Path = _PROC) -> "Moment":
        """Of the machine that this process runs on.

        Args:
            machine: Its description; of its cores those that it names count.
            pids: Processes of ours, which live here.
            proc: Where the kernel tells of its processes.
        """
        ours_s = sum(_worked_s(proc / str(pid)) for pid in set(pids))
        return cls(
            machine=machine.identity,
            at_s=time.monotonic(),
            busy_s=_busy_s(proc, machine.cores),
            ours_s=ours_s,
        )


class ForeignLoad:
    """Adds up what others kept busy of the cores of machines, over stretches of time.

    Usage::

        load = ForeignLoad()
        load.add(before, after)      # what all our processes said, before and after a stretch
        load.cores_taken             # in the mean, by machine
    """

    def __init__(self) -> None:
        """Begins with nothing watched."""
        self._elapsed_s: dict[str, float] = defaultdict(float)
        self._foreign_s: dict[str, float] = defaultdict(float)

    @property
    def cores_taken(self) -> dict[str, float]:
        """By machine, how many cores others kept busy in the mean."""
        return {
            machine: max(0.0, self._foreign_s[machine]) / elapsed_s
            for machine, elapsed_s in self._elapsed_s.items()
        }

    def add(self, before: Collection[Moment], after: Collection[Moment]) -> None:
        """Adds a stretch of time.

        Args:
            before: Of all our processes; the first of each machine tells how busy that was.
            after: Of the same ones, in the same order.
        """
        watched: set[str] = set()
        for one, other in zip(before, after, strict=True):
            if one.machine not in watched:
                watched.add(one.machine)
                self._elapsed_s[one.machine] += other.at_s - one.at_s
                self._foreign_s[one.machine] += other.busy_s - one.busy_s
            self._foreign_s[one.machine] -= other.ours_s - one.ours_s


def _busy_s(proc: Path, cores: Collection[int]) -> float:
    names = {f"cpu{core}" for core in cores}
    lines = (line.split() for line in (proc / "stat").read_text().splitlines())
    busy = [
        float(words[1:][column]) for words in lines if words[0] in names for column in _BUSY_COLUMNS
    ]
    return sum(busy) * _TICK_S


def _worked_s(process: Path) -> float:
    # The name of the program, in brackets, may hold anything.
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S
