"""Which of our environment variables the workers get, here and on other hosts: pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tfddl import commits, progress
from tfddl.cluster import CORES
from tfddl.errors import LaunchError

# What belongs to this host, this login or this terminal, and would be wrong elsewhere.
_STAYS = frozenset(
    "HOME USER LOGNAME SHELL PWD OLDPWD HOSTNAME HOST MAIL SHLVL _ TERM COLUMNS LINES TMPDIR TMP "
    "TEMP DISPLAY WAYLAND_DISPLAY XAUTHORITY WINDOWID ENV BASH_ENV INVOCATION_ID "
    "JOURNAL_STREAM".split()
)
_STAY_PREFIXES = (
    *("SSH_", "XDG_", "DBUS_", "SYSTEMD_", "TMUX", "BASH_FUNC_"),
    # Another launcher's words on who takes part; TF_CONFIG says that here.
    *("SLURM_", "SLURMD_", "OMPI_", "PMI_", "PMIX_", "KUBERNETES_"),
)
# Where we are a worker ourselves, what was said to that one alone.
_OWN = frozenset({CORES, commits.VARIABLE, progress.VARIABLE})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Export:
    """A variable that is named on the command line (`-x`).

    Attributes:
        name: its name.
        value: what all workers get; None for the value that it has here.

    Raises:
        LaunchError: this is no name of a variable.
    """

    name: str
    value: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise LaunchError(f"-x {self.name!r}: no name of a variable; -x NAME=VALUE is expected")

    @classmethod
    def parse(cls, text: str) -> Export:
        """Reads "NAME" or "NAME=VALUE"."""
        name, equals, value = text.partition("=")
        return cls(name, value if equals else None)


def exported(environment: Mapping[str, str], exports: Sequence[Export]) -> dict[str, str]:
    """The variables that `-x` names, with their values.

    Raises:
        LaunchError: one without a value isn't set here.
    """
    found = {}
    for export in exports:
        value = environment.get(export.name) if export.value is None else export.value
        if value is None:
            raise LaunchError(f"-x {export.name}: not set here. HINT: -x {export.name}=VALUE")
        found[export.name] = value
    return found


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """What workers get of the environment of whoever starts them, on the same host."""
    return {name: value for name, value in environment.items() if name not in _OWN}


def travelling(environment: Mapping[str, str]) -> dict[str, str]:
    """What goes with the workers to other hosts: all but what belongs to this one."""
    return {
        name: value
        for name, value in inherited(environment).items()
        if name not in _STAYS and not name.startswith(_STAY_PREFIXES)
    }
