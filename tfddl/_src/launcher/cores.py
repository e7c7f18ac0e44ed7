"""Which cores each worker of a host runs on."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Sequence
from pathlib import Path

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology"


class Binding(enum.Enum):
    """Whether workers of a host are bound to cores."""

    CORES = "cores"
    """Each worker has its share of the cores for itself."""

    NONE = "none"
    """Every worker may run on all of them."""


def share_of_cores(cores: Sequence[int], *, local_rank: int, local_size: int) -> tuple[int, ...]:
    """The cores of one worker, or none where there are more workers than cores.

    Every worker gets as many as the others, since all wait for the slowest; the remainder is left
    to other processes. More workers than cores are better scheduled by the kernel than bound, two
    to a core.

    Args:
        cores: what the workers of this host may use, neighbours next to each other.
        local_rank: the worker among those of its host.
        local_size: how many those are.
    """
    each = len(cores) // local_size
    return tuple(cores[local_rank * each : (local_rank + 1) * each])


def usable_cores() -> tuple[int, ...]:
    """The cores that this process may use, so that the threads of one core are neighbours."""
    # sched_getaffinity(2), not the number of cores: a container, or taskset, may have left us only
    # some.
    return tuple(sorted(os.sched_getaffinity(0), key=_place))


def num_sockets(cores: Sequence[int]) -> int:
    """How many CPU packages these cores belong to, at least 1.

    Virtual machines may show every core as a package of its own: those count as one.
    """
    packages = {_place(core)[:1] for core in cores}
    return 1 if len(packages) == len({_place(core)[:2] for core in cores}) else len(packages)


def bind_to(cores: Sequence[int]) -> Callable[[], None]:
    """A `preexec_fn` that binds a child process to cores."""
    return lambda: os.sched_setaffinity(0, cores)


def _place(core: int) -> tuple[int, int, int]:
    """Package, physical core, thread; cores whose place isn't known keep the order of numbers."""
    folder = Path(_TOPOLOGY.format(core))
    try:
        package = int((folder / "physical_package_id").read_text())
        return package, int((folder / "core_id").read_text()), core
    except (OSError, ValueError):
        return 0, core, core
