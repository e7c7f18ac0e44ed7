"""The cgroups of this process: their limits, and which of these were reached.

Two versions, which a host may mix. Version 1 has a hierarchy per controller (or per group of them,
"cpu,cpuacct"), mounted by that name; version 2 has one for all, at the root or at "unified". A
limit of any ancestor holds as well.

References:
    Linux, Control Group v2, "Memory Interface Files" and "PID Interface Files",
    https://docs.kernel.org/admin-guide/cgroup-v2.html; for version 1,
    https://docs.kernel.org/admin-guide/cgroup-v1/pids.html and memory.html.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

SELF_CGROUP = Path("/proc/self/cgroup")
CGROUP_ROOT = Path("/sys/fs/cgroup")


@dataclasses.dataclass(frozen=True)
class Cgroup:
    """A cgroup that limits this process.

    Attributes:
        directory: of its files.
        is_v1: whether they are those of version 1.
    """

    directory: Path
    is_v1: bool


def cgroups_with(
    controller: str, *, own: Path = SELF_CGROUP, root: Path = CGROUP_ROOT
) -> Iterator[Cgroup]:
    """The cgroups of this process for a controller, and their ancestors; not all need exist.

    Args:
        controller: "cpu", "memory" or "pids".
        own: the kernel's list of the cgroups of the process.
        root: where cgroups are mounted.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:  # "hierarchy:controllers:path"; of version 2, "0::path"
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Version 1 is mounted by the names of all its controllers, with links by single names.
        # Beside version 1, version 2 is at "unified".
        names = {controllers, controller} if controllers else {"", "unified"}
        for mount in (root / name for name in sorted(names)):
            # Without a cgroup namespace, a container's path is the host's, while its own cgroup is
            # mounted at the root: so all ancestors are tried, up to the mount.
            inner = mount / path.lstrip("/")
            for directory in (inner, *inner.parents):
                yield Cgroup(directory, bool(controllers))
                if directory == mount:
                    break


class LimitMonitor:
    """Reports which limits of processes and memory were reached since it was made."""

    def __init__(self, *, own: Path = SELF_CGROUP, root: Path = CGROUP_ROOT) -> None:
        """Reads the counters as they are now.

        Args:
            own: the kernel's list of the cgroups of the process.
            root: where cgroups are mounted.
        """
        self._own, self._root = own, root
        self._before = self._count()

    def reached(self) -> tuple[str, ...]:
        """The limits that were reached, each a phrase: file, value, and what it limits."""
        return tuple(
            text for text, count in self._count().items() if count > self._before.get(text, 0)
        )

    def _count(self) -> dict[str, int]:
        counts = {}
        paths = {"own": self._own, "root": self._root}
        for group in cgroups_with("pids", **paths):
            with contextlib.suppress(OSError, ValueError):
                limit = group.directory / "pids.max"
                text = f"{limit} ({limit.read_text().strip()}), the most processes and threads"
                counts[text] = _event(group.directory / "pids.events", "max")
        for group in cgroups_with("memory", **paths):
            with contextlib.suppress(OSError, ValueError):
                name = "memory.limit_in_bytes" if group.is_v1 else "memory.max"
                events = "memory.oom_control" if group.is_v1 else "memory.events"
                limit = group.directory / name
                text = f"{limit} ({_describe_bytes(limit.read_text().strip())}), the most memory"
                counts[text] = _event(group.directory / events, "oom_kill")
        return counts


def _event(path: Path, name: str) -> int:
    """The counter of an event in a file of lines "name number"."""
    return sum(
        int(line.split()[1]) for line in path.read_text().splitlines() if line.split()[0] == name
    )


def _describe_bytes(text: str) -> str:
    return f"{int(text) / 2**30:.3g} GiB" if text.isdigit() else text
