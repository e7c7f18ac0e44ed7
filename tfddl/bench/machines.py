"""The machines that are measured on, and which hosts they are."""

import dataclasses
import os
import platform
from pathlib import Path

from tfddl._src.launcher.interfaces import machine_id

_CPUINFO = Path("/proc/cpuinfo")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """What a process finds where it runs."""

    identity: str
    """Tells machines apart. Several hosts may be one: containers, other names of it."""

    processor: str
    cores: tuple[int, ...]
    """The numbers of those that are shared out."""

    @classmethod
    def here(cls) -> "Machine":
        """Of this process, before it keeps to a share of the cores."""
        return cls(
            identity=machine_id(),
            processor=_processor(),
            cores=tuple(sorted(os.sched_getaffinity(0))),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Met:
    """A machine that workers were on, for the record."""

    hosts: tuple[str, ...]
    processor: str
    cores: int
    """How many are shared out."""

    @property
    def name(self) -> str:
        """How messages call it."""
        return ", ".join(self.hosts)


class Machines:
    """All that workers were on, in the order in which they were met."""

    def __init__(self) -> None:
        """Begins with none."""
        self._machines: dict[str, Machine] = {}
        self._hosts: dict[str, dict[str, None]] = {}

    def add(self, host: str, machine: Machine) -> None:
        """Takes in what a worker of a host has found; again it does nothing."""
        known = self._machines.setdefault(machine.identity, machine)
        cores = tuple(sorted({*known.cores, *machine.cores}))
        self._machines[machine.identity] = dataclasses.replace(known, cores=cores)
        self._hosts.setdefault(machine.identity, {})[host] = None

    def met(self) -> dict[str, Met]:
        """By identity, what is known of them."""
        return {
            identity: Met(
                hosts=tuple(self._hosts[identity]),
                processor=machine.processor,
                cores=len(machine.cores),
            )
            for identity, machine in self._machines.items()
        }


def _processor() -> str:
    lines = _CPUINFO.read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()  # arm64 has no such line.
