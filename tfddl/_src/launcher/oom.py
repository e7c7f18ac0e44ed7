"""Processes that the kernel's out-of-memory killer has ended."""

from __future__ import annotations

from pathlib import Path

_VMSTAT = Path("/proc/vmstat")


def count_oom_kills() -> int:
    """How many there have been on this machine since it started; 0 if unknown."""
    try:
        lines = _VMSTAT.read_text().splitlines()
    except OSError:
        return 0
    # Since Linux 4.13, and of the whole machine: other containers' are among them.
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
