"""Makes sure of what the system grants a process, before a thousand workers need it.

A worker holds a socket to every other one, so that a job of 1024 workers needs more open files than
the 1024 that most systems grant at first (the *soft* limit). A process may raise that itself, up to
the *hard* limit, which only root raises.

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
"""A folder with an entry for each open descriptor, on Linux and on macOS."""

_UNKNOWN_OPEN = 64
_SPARE = 32
"""For what the standard library and TensorFlow open meanwhile."""

_MOST = 2**20
"""As far as the soft limit is raised where the hard one is higher, or there is none: some programs
go through all numbers up to it."""


def require_descriptors(count: int, what: str, *, kind: type[TfddlError] = StartError) -> None:
    """Makes sure that this process can open so many more files and sockets.

    Where the soft limit is too low for them, it is raised to the hard limit. It stays raised, and
    processes that are started later inherit it. Nothing in tfddl calls select(2), which descriptors
    beyond 1023 break; a program that does should ask for the limit that it wants after
    `tfddl.init()`.

    Args:
        count: how many more.
        what: who needs them, for the message: "links to 1023 other workers".
        kind: the error to raise.

    Raises:
        StartError: not even the hard limit is enough; or `kind`.
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
    """Raises the soft limit as far as it can be useful; returns what it is now."""
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
