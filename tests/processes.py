"""What tests ask about processes, through /proc."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return _stat(pid)[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def parent_of(pid: int) -> int:
    """The parent of a process that exists."""
    return int(_stat(pid)[1])


def stop(pid: int) -> None:
    """Sends SIGSTOP, and waits until the process is stopped: on return of kill(2) it may run on."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: _stat(pid)[0] == "T")


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third, the state, on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def in_sessions(sessions: set[int]) -> set[int]:
    """All running processes of these sessions."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z" and int(fields[3]) in sessions:
            found.add(int(entry.name))
    return found


def wait_until(condition: Callable[[], object], *, timeout_s: float = 40.0) -> None:
    """Waits for a condition, and fails if it doesn't come true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain"
        time.sleep(0.02)
