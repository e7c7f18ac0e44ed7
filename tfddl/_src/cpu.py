"""How many cores this process may use: its CPU affinity, limited by the quota of its cgroups.

A container with half a core (`docker run --cpus 0.5`, a limit of Kubernetes) sees all cores of the
machine and may run on all. When it has used its quota, it is throttled for the rest of the period
(100 ms by default): with a thread per core of the machine, all would be throttled most of the time.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from tfddl._src.cgroups import CGROUP_ROOT, SELF_CGROUP, Cgroup, cgroups_with

_MOST_THREADS = 8

_KIND_OF_PROCESSOR = ("cpu family", "model", "stepping", "CPU implementer", "CPU part")
"""What /proc/cpuinfo has of x86, and of Arm."""


def num_usable_cores() -> int:
    """How many cores are worth a thread each, at least 1."""
    return min(num_affinity_cores(), num_quota_cores())


def num_affinity_cores() -> int:
    """Cores of this process' CPU affinity, at least 1; all where there is none (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_quota_cores(*, among: int = 1) -> int:
    """Whole cores of the cgroups' quota for each of so many processes, at least 1.

    Without a quota, more than any machine has.
    """
    quota = cpu_quota()
    return 1 << 20 if quota is None else max(1, math.floor(quota / among))


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The kind of this machine's processor, as Linux tells it; elsewhere its architecture.

    In clouds processors of several generations have the same name: the numbers tell them apart.
    """
    try:
        text = cpuinfo.read_text()
    except OSError:  # macOS has none.
        text = ""
    of_first_core = text.split("\n\n")[0]
    known = dict(re.findall(r"^([^\t:]+?)\s*: (.*)$", of_first_core, re.MULTILINE))
    numbers = [f"{name} {known[name]}" for name in _KIND_OF_PROCESSOR if name in known]
    return ", ".join([known.get("model name", platform.machine()), *numbers])


def cores_of_worker(local_size: int, *, own: int | None = None) -> int:
    """How many cores a worker can use, at least 1.

    Args:
        local_size: The number of workers on the host, among whom the usable cores are divided.
        own: The number of cores that are this worker's alone, if its launcher has bound it.
    """
    return own or max(1, num_usable_cores() // local_size)


def has_own_core(local_size: int, *, own: int | None = None) -> bool:
    """Whether each worker of this host has a core for itself; arguments as of `cores_of_worker`."""
    quota = cpu_quota()
    if quota is not None and local_size > quota:
        return False
    return own is not None or local_size <= num_affinity_cores()


def num_loader_threads(num_cores: int) -> int:
    """How many threads of a worker with so many cores load examples.

    At least 2: while one waits for a file, another decodes.
    """
    return min(_MOST_THREADS, max(2, num_cores))


def cpu_quota(*, own: Path = SELF_CGROUP, root: Path = CGROUP_ROOT) -> float | None:
    """The least quota, in cores, of this process' cgroup and its ancestors; None without one.

    Args:
        own: the kernel's list of the cgroups of the process.
        root: where cgroups are mounted.

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
        yield from _read_v1(group.directory) if group.is_v1 else _read_v2(group.directory)


def _read_v2(directory: Path) -> Iterator[float]:
    quota, period = (directory / "cpu.max").read_text().split()
    if quota != "max":
        yield int(quota) / int(period)


def _read_v1(directory: Path) -> Iterator[float]:
    quota = int((directory / "cpu.cfs_quota_us").read_text())
    if quota > 0:
        yield quota / int((directory / "cpu.cfs_period_us").read_text())
