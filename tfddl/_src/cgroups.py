"""Which cgroups this process is in, where their limits are, and which of these were reached.

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
    """One cgroup that limits this process.

    Attributes:
        folder: where its files are.
        is_v1: whether these are of version 1.
    """

    folder: Path
    is_v1: bool


def cgroups_with(
    controller: str, *, own: Path = SELF_CGROUP, root: Path = CGROUP_ROOT
) -> Iterator[Cgroup]:
    """The cgroups of this process that may have a controller, and those around them.

    Args:
        controller: "cpu", "memory", "pids".
        own: which cgroups the process is in, as the kernel tells.
        root: where they are mounted.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:  # "number:controllers:path"; version 2 has no controllers there
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Mounted by all names of its controllers, or by one; beside version 1, 2 is within.
        names = {controllers, controller} if controllers else {"", "unified"}
        for mount in (root / name for name in sorted(names)):
            # A container may not see its own cgroup by its path, but at the top.
            inner = mount / path.lstrip("/")
            for folder in (inner, *inner.parents):
                yield Cgroup(folder, bool(controllers))
                if folder == mount:
                    break


class LimitMonitor:
    """Tells which limits were reached since it was made."""

    def __init__(self, *, own: Path = SELF_CGROUP, root: Path = CGROUP_ROOT) -> None:
        """Begins to count.

        Args:
            own: which cgroups the process is in, as the kernel tells.
            root: where they are mounted.
        """
        self._own, self._root = own, root
        self._before = self._count()

    def reached(self) -> tuple[str, ...]:
        """What was reached meanwhile, each in a sentence without an end."""
        return tuple(
            text for text, count in self._count().items() if count > self._before.get(text, 0)
        )

    def _count(self) -> dict[str, int]:
        counts = {}
        places = {"own": self._own, "root": self._root}
        for group in cgroups_with("pids", **places):
            with contextlib.suppress(OSError, ValueError):
                limit = group.folder / "pids.max"
                text = f"{limit} ({limit.read_text().strip()}), the most processes and threads"
                counts[text] = _event(group.folder / "pids.events", "max")
        for group in cgroups_with("memory", **places):
            with contextlib.suppress(OSError, ValueError):
                name = "memory.limit_in_bytes" if group.is_v1 else "memory.max"
                events = "memory.oom_control" if group.is_v1 else "memory.events"
                limit = group.folder / name
                text = f"{limit} ({_describe_bytes(limit.read_text().strip())}), the most memory"
                counts[text] = _event(group.folder / events, "oom_kill")
        return counts


def _event(path: Path, name: str) -> int:
    """How often something has happened: a line "name number"."""
    return sum(
        int(line.split()[1]) for line in path.read_text().splitlines() if line.split()[0] == name
    )


def _describe_bytes(text: str) -> str:
    return f"{int(text) / 2**30:.3g} GiB" if text.isdigit() else text
