"""The machines that workers run on, and how busy others keep them."""

import contextlib
import dataclasses
import os
import platform
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from tfddl._src.launcher.interfaces import machine_id

_PROC = Path("/proc")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
# user, nice, system, steal. Interrupts are left out: they also serve what we send to ourselves.
_BUSY_COLUMNS = (0, 1, 2, 7)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """What workers find where they run."""

    identity: str
    """Tells machines apart. Several hosts may be one: containers, other names of it."""

    hosts: tuple[str, ...]
    processor: str
    cores: tuple[int, ...]
    """Numbers of those that workers may use."""

    @property
    def name(self) -> str:
        """The hosts, separated by commas."""
        return ", ".join(self.hosts)

    @classmethod
    def here(cls, host: str) -> "Machine":
        """Of this process, on a host of this name."""
        cores = tuple(sorted(os.sched_getaffinity(0)))
        return cls(identity=machine_id(), hosts=(host,), processor=_processor(), cores=cores)

    @staticmethod
    def merged(found: Sequence["Machine"]) -> list["Machine"]:
        """Each machine once, with what all have found."""
        machines: dict[str, Machine] = {}
        for new in found:
            known = machines.get(new.identity, new)
            machines[new.identity] = dataclasses.replace(
                known,
                hosts=tuple(dict.fromkeys((*known.hosts, *new.hosts))),
                cores=tuple(sorted({*known.cores, *new.cores})),
            )
        return list(machines.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """Work on a machine while something was measured, in seconds of a core."""

    part: str
    machine: str
    elapsed_s: float
    foreign_s: float
    """Of other programs."""


class LoadMeter:
    """Measures how busy this worker's machine is meanwhile.

    Attributes:
        elapsed_s: for how long it has run.
        busy_s: what the cores have worked in this time, for whomever.
        own_s: what this process has worked.
    """

    def __init__(self, cores: Collection[int], *, proc: Path = _PROC) -> None:
        self.elapsed_s = self.busy_s = self.own_s = 0.0
        self._names = {f"cpu{core}" for core in cores}
        self._stat = proc / "stat"

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Measures within the context."""
        elapsed_s, busy_s, own_s = self._read()
        yield
        after = self._read()
        self.elapsed_s += after[0] - elapsed_s
        self.busy_s += after[1] - busy_s
        self.own_s += after[2] - own_s

    def _read(self) -> tuple[float, float, float]:
        lines = (line.split() for line in self._stat.read_text().splitlines())
        mine = [words[1:] for words in lines if words[0] in self._names]
        busy = sum(float(words[column]) for words in mine for column in _BUSY_COLUMNS)
        return time.monotonic(), busy * _TICK_S, time.process_time()


def foreign_load(part: str, meters: Sequence[tuple[str, LoadMeter]]) -> list[Load]:
    """From the machine and the meter of each worker: by machine, what wasn't the workers' work."""
    loads = []
    for machine in dict.fromkeys(machine for machine, _ in meters):
        here = [meter for name, meter in meters if name == machine]
        foreign_s = max(0.0, here[0].busy_s - sum(meter.own_s for meter in here))
        elapsed_s = here[0].elapsed_s
        loads.append(Load(part=part, machine=machine, elapsed_s=elapsed_s, foreign_s=foreign_s))
    return loads


def _processor() -> str:
    lines = (_PROC / "cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()  # arm64 has no such line.
