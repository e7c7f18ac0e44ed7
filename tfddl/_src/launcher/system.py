"""What the launcher needs of Linux: prctl(2), open files, poll(2)."""

from __future__ import annotations

import ctypes
import os
import select
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tfddl._src.rlimits import require_descriptors
from tfddl.errors import LaunchError

PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36
"""Of prctl(2), as <linux/prctl.h> numbers them."""

# A progress page and a pipe for each output; then a log for each output.
_PER_WORKER, _PER_LOG = 3, 2
# Two pipes, and a file for ssh's stderr.
_PER_HOST = 3


def load_prctl() -> Callable[[int, Any], int]:
    """prctl(2) of the C library, which Linux alone has."""
    prctl: Callable[[int, Any], int] = ctypes.CDLL(None).prctl
    return prctl


class HasFileno(Protocol):
    """Something that is open."""

    def fileno(self) -> int:
        """The file descriptor."""


def require_linux(program: str) -> None:
    """Refuses systems on which worker processes can't be supervised.

    That no worker outlives its launcher takes prctl(2), memfd_create(2) and /proc.

    Args:
        program: what was called, for the message.

    Raises:
        LaunchError: this is not Linux.
    """
    if not sys.platform.startswith("linux"):
        raise LaunchError(
            f"{program} needs Linux, and this is {sys.platform}. HINT: run the script itself, "
            "python train.py, for one worker"
        )


def working_directory(environment: Mapping[str, str]) -> str:
    """The working directory, by the name that the user knows it by, links included.

    Other hosts may have other links.

    Raises:
        LaunchError: the folder isn't there any more.
    """
    known = environment.get("PWD", "")
    try:
        if os.path.isabs(known) and os.path.isdir(known) and os.path.samefile(known, "."):
            return known
        return os.getcwd()
    except OSError as error:
        raise LaunchError(
            f"can't find the working directory to start workers in: {error.strerror}. HINT: "
            "it may have been removed since; cd to one that is there"
        ) from error


def require_files(num_workers: int, *, num_hosts: int = 0, has_logs: bool = False) -> None:
    """Makes sure that all workers can be supervised at the same time.

    Args:
        num_workers: how many there are; 0 where only hosts are asked.
        num_hosts: on how many hosts, each with an agent; 0 where this process starts them itself.
        has_logs: whether their outputs go to files, too.

    Raises:
        LaunchError: the system doesn't allow so many open files.
    """
    each = 0 if num_hosts else _PER_WORKER
    count = num_workers * (each + _PER_LOG * has_logs) + num_hosts * _PER_HOST
    whom = [f"{num_workers} workers"] if num_workers else []
    whom += [f"connections to {num_hosts} hosts"] if num_hosts else []
    require_descriptors(count, " and ".join(whom), kind=LaunchError)


def is_readable(file: HasFileno, *, within_s: float) -> bool:
    """Whether there is something to read, or the end of it; waits so long for it."""
    return _is_ready(file, select.POLLIN, within_s)


def is_writable(file: HasFileno, *, within_s: float) -> bool:
    """Whether something can be written, or nobody reads it any more; waits so long for it."""
    return _is_ready(file, select.POLLOUT, within_s)


def _is_ready(file: HasFileno, event: int, within_s: float) -> bool:
    # Not select(2), which takes no descriptor beyond 1023: a thousand workers have more.
    poll = select.poll()
    poll.register(file, event)
    return bool(poll.poll(within_s * 1000))
