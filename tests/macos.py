"""Makes this process look like one on macOS: `hide()`, before tfddl is imported.

What Linux alone has is taken away: functions and constants of the standard library, /proc and
/sys. TensorFlow and Keras are loaded before, since they are Linux' own.
"""

import contextlib
import mmap
import os
import select
import socket
import sys
import sysconfig
from typing import Any

MISSING = {
    os: (
        "copy_file_range",
        "eventfd",
        "getrandom",
        "memfd_create",
        "pidfd_open",
        "posix_fadvise",
        "posix_fallocate",
        "preadv",
        "process_cpu_count",
        "pwritev",
        "sched_getaffinity",
        "sched_setaffinity",
        "waitid",
        *(name for name in dir(os) if name.startswith("MFD_")),
    ),
    select: ("epoll", "poll", *(name for name in dir(select) if name.startswith("POLL"))),
    mmap: tuple(name for name in dir(mmap) if name.startswith("MADV_")),
    socket: (
        "SOCK_SEQPACKET",
        "SO_PEERCRED",
        "SO_BINDTODEVICE",
        "SOCK_CLOEXEC",
        "SOCK_NONBLOCK",
        "TCP_KEEPCNT",
        "TCP_KEEPIDLE",
        "TCP_KEEPINTVL",
        "TCP_USER_TIMEOUT",
    ),
}
_KERNELS = ("/proc", "/sys")


def hide() -> None:
    """Hides it, for the rest of the process."""
    sysconfig.get_config_vars()  # from a module that has this build's platform in its name
    for module, names in MISSING.items():
        for name in names:
            with contextlib.suppress(AttributeError):
                delattr(module, name)
    sys.platform = "darwin"
    sys.addaudithook(_refuse)
    real = os.readlink

    def readlink(path: Any, **more: Any) -> Any:
        _refuse("open", (path,))
        return real(path, **more)

    os.readlink = readlink


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    path = arguments[0] if event == "open" else None
    if isinstance(path, str) and path.startswith(_KERNELS):  # A number is of an open file.
        raise FileNotFoundError(2, "No such file or directory", arguments[0])
