"""How many cores this process may use: those it is bound to, as far as its cgroup lets it.

A container that is given half a core (`docker run --cpus 0.5`, a limit of Kubernetes) still sees,
and may run on, all cores of the machine; it is only stopped for the rest of each tenth of a second.
As many threads as there are cores would then mostly stand still.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

from tfddl._src.cgroups import CGROUP_ROOT, SELF_CGROUP, Cgroup, cgroups_with

_MOST_THREADS = 8


def num_usable_cores() -> int:
    """How many cores are worth a thread each, at least 1."""
    return min(num_affinity_cores(), num_quota_cores())


def num_affinity_cores() -> int:
    """How many cores this process is bound to, at least 1; all where it can't be bound (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_quota_cores(*, among: int = 1) -> int:
    """Whole cores whose time is granted to each of so many processes, at least 1.

    Where nothing is limited it is more than any machine has.
    """
    quota = cpu_quota()
    return 1 << 20 if quota is None else max(1, math.floor(quota / among))


def cores_of_worker(local_size: int, *, own: int | None = None) -> int:
    """How many cores a worker may count on, at least 1.

    Args:
        local_size: Among how many workers of the host the cores that this process may use are
            divided.
        own: How many are this worker's alone, if whoever started it has divided them already.
    """
    return own or max(1, num_usable_cores() // local_size)


def has_own_core(local_size: int, *, own: int | None = None) -> bool:
    """Whether each worker of this host can have a core for itself; arguments as above."""
    quota = cpu_quota()
    if quota is not None and local_size > quota:
        return False
    return own is not None or local_size <= num_affinity_cores()


def num_loader_threads(num_cores: int) -> int:
    """How many threads make examples in a worker that has so many cores.

    At least 2: while one waits for a file, another decodes.
    """
    return min(_MOST_THREADS, max(2, num_cores))


def cpu_quota(*, own: Path = SELF_CGROUP, root: Path = CGROUP_ROOT) -> float | None:
    """Cores whose time this process' cgroup, and those around it, may use; None for all.

    Args:
        own: which cgroups the process is in, as the kernel tells.
        root: where they are mounted.

    References:
        Linux, Control Group v2, "CPU Interface Files" (cpu.max),
        https://docs.kernel.org/admin-guide/cgroup-v2.html; for version 1, CFS Bandwidth Control,
        https://docs.kernel.org/scheduler/sched-bwc.html.
    """
    quotas = [
        quota for group in cgroups_with("cpu", own=own, root=root) for quota in _quota_of(group)
    ]
    return min(quotas, default=None)


def _quota_of(group: Cgroup) -> Iterator[float]:
    with contextlib.suppress(OSError, ValueError):
        yield from _read_v1(group.folder) if group.is_v1 else _read_v2(group.folder)


def _read_v2(folder: Path) -> Iterator[float]:
    quota, period = (folder / "cpu.max").read_text().split()
    if quota != "max":
        yield int(quota) / int(period)


def _read_v1(folder: Path) -> Iterator[float]:
    quota = int((folder / "cpu.cfs_quota_us").read_text())
    if quota > 0:
        yield quota / int((folder / "cpu.cfs_period_us").read_text())
