"""How busy this machine is with what isn't ours, while we measure."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
# user, nice, system, steal. Interrupts are left out: they also serve what we send to ourselves.
_BUSY_COLUMNS = (0, 1, 2, 7)


@dataclasses.dataclass(frozen=True)
class Moment:
    """The counters of the kernel at one moment; only differences between two mean anything."""

    at_s: float
    busy_s: float
    """What the cores have worked, for whomever."""

    ours_s: float
    """What our processes have worked."""


class ForeignLoad:
    """Adds up what others kept busy of some cores, over stretches of time.

    Usage::

        load = ForeignLoad(cores)
        with load.watched(pids):
            ...                      # what is measured
        load.cores_taken             # in the mean
    """

    def __init__(self, cores: Collection[int], *, proc: Path = Path("/proc")) -> None:
        """Begins with nothing watched.

        Args:
            cores: The numbers of those that count.
            proc: Where the kernel tells of its processes.
        """
        self._names = {f"cpu{core}" for core in cores}
        self._proc = proc
        self._elapsed_s = self._foreign_s = 0.0

    @property
    def cores_taken(self) -> float:
        """How many cores others kept busy in the mean; 0 where nothing was watched."""
        return max(0.0, self._foreign_s) / self._elapsed_s if self._elapsed_s else 0.0

    @contextlib.contextmanager
    def watched(self, pids: Collection[int]) -> Iterator[None]:
        """Watches while something is measured.

        Args:
            pids: Our processes; they must live until the end. This one is ours, too.
        """
        before = self._read(pids)
        yield
        after = self._read(pids)
        self.add(before, after)

    def add(self, before: Moment, after: Moment) -> None:
        """Adds a stretch of time."""
        self._elapsed_s += after.at_s - before.at_s
        self._foreign_s += (after.busy_s - before.busy_s) - (after.ours_s - before.ours_s)

    def _read(self, pids: Collection[int]) -> Moment:
        ours = sum(self._worked_s(pid) for pid in {*pids, os.getpid()})
        lines = (line.split() for line in (self._proc / "stat").read_text().splitlines())
        busy = [
            float(words[1:][column])
            for words in lines
            if words[0] in self._names
            for column in _BUSY_COLUMNS
        ]
        return Moment(at_s=time.monotonic(), busy_s=sum(busy) * _TICK_S, ours_s=ours)

    def _worked_s(self, pid: int) -> float:
        # The name of the program, in brackets, may hold anything.
        fields = (self._proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * _TICK_S
