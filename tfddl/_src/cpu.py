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

from tfddl._src.cgroups import OWN, ROOT, Cgroup, cgroups_with


def num_usable_cores() -> int:
    """How many cores are worth a thread each, at least 1."""
    return min(num_bound_cores(), num_cores_of_quota())


def num_bound_cores() -> int:
    """How many cores this process is bound to, at least 1; all where it can't be bound (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_cores_of_quota(*, among: int = 1) -> int:
    """Whole cores whose time is granted to each of so many processes, at least 1.

    Where nothing is limited it is more than any machine has.
    """
    quota = cpu_quota()
    return 1 << 20 if quota is None else max(1, math.floor(quota / among))


def cpu_quota(*, own: Path = OWN, root: Path = ROOT) -> float | None:
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
