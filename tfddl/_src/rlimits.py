"""Raises the limit of open files where a large job needs it.

A worker may come to have a socket to every other one: a job of 1024 workers needs more open files
than the 1024 that most systems allow at first (the *soft* limit). A process may raise that itself,
up to the *hard* limit, which only root can raise.

References:
    getrlimit(2), RLIMIT_NOFILE, https://man7.org/linux/man-pages/man2/getrlimit.2.html.
    "File Descriptor Limits", Lennart Poettering, 2021, https://0pointer.net/blog/file-descriptor-limits.html:
    why the soft limit is low, and why a program that never calls select(2) should raise it.
"""

from __future__ import annotations

import contextlib
import os
import resource

from tfddl.errors import StartError, TfddlError

_OPEN = "/dev/fd"
"""A directory with an entry per open descriptor, on Linux and macOS."""

_UNKNOWN_OPEN = 64
_SPARE = 32
"""For files that the standard library and TensorFlow open later."""

_MOST = 2**20
"""The soft limit is raised to this at most: some programs loop over all numbers up to it, to close
descriptors."""


def require_descriptors(count: int, what: str, *, kind: type[TfddlError] = StartError) -> None:
    """Ensures that this process can open so many more files and sockets.

    Where the soft limit is too low, it is raised to the hard limit, and stays so; child processes
    inherit it. Nothing in tfddl calls select(2), whose fd_set ends at descriptor 1023; a program
    that does should set the limit that it wants after `tfddl.init()`.

    Args:
        count: how many more.
        what: what needs them, for the message: "connections to 1023 other workers".
        kind: the class of the error.

    Raises:
        StartError: the hard limit is too low; or `kind`.
    """
    num_open = _count_open()
    needed = num_open + count + _SPARE
    soft, hard = (_finite(limit) for limit in resource.getrlimit(resource.RLIMIT_NOFILE))
    if needed > soft:
        soft = _raise_limit(needed, soft=soft, hard=hard)
    if needed > soft:
        raise kind(
            f"too few open files are allowed: {what} need {count}, besides {num_open} that are "
            f"open and {_SPARE} to spare, but this process may have {soft} (the hard limit is "
            f"{hard}). HINT: ulimit -n {needed} before the start; where that is refused, the "
            "system's limit must rise first: nofile in /etc/security/limits.conf, LimitNOFILE= of "
            "a systemd service, --ulimit nofile= of a container"
        )


def _raise_limit(needed: int, *, soft: int, hard: int) -> int:
    """Raises the soft limit as far as it is of use; returns the limit now."""
    _, kept = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS refuses more than kern.maxfilesperproc, whatever the hard limit says.
    for wanted in (min(hard, _MOST), min(hard, needed)):
        if wanted > soft:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, kept))
                return wanted
    return soft


def _finite(limit: int) -> int:
    return 2**63 - 1 if limit == resource.RLIM_INFINITY else limit


def _count_open() -> int:
    try:
        return len(os.listdir(_OPEN))
    except OSError:
        return _UNKNOWN_OPEN
