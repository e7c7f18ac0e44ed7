"""What starts the agent of a host: ssh or srun. Pure."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import tfddl

# No quotes of the kind that shlex puts around it, no backslash, "$" or "!": every shell that a
# user may have on the far side, csh and fish included, passes it on as it is.
_BOOTSTRAP = (
    "import sys,json;"
    'sys.path[:0]=json.loads(open(0,"rb",0,closefd=False).readline());'
    "from tfddl._src.launcher.agent_server import run;run()"
)


class AgentStarter(Protocol):
    """How the agents of other hosts are started; frames pass through its input and output."""

    @property
    def remote_python(self) -> str:
        """The Python that runs the agent on every host."""

    @property
    def host_variables(self) -> frozenset[str]:
        """Variables that each host's agent has from it, so that they aren't forwarded."""

    @property
    def hint(self) -> str:
        """What to do where there is no such program."""

    def argv(self, host: str) -> tuple[str, ...]:
        """The command line that starts the agent of another host.

        It shows nothing of the job, such as its secret: that goes through the agent's input.
        """

    def explain_end(self, host: str, *, returncode: int, stderr_lines: Sequence[str]) -> str:
        """Says why the agent of a host didn't start, or ended before it greeted."""


def agent_argv(python: str) -> tuple[str, ...]:
    """The command line of an agent, on the host where it is to run."""
    # -P: a json.py in the home folder is not Python's.
    return (python, "-P", "-c", _BOOTSTRAP)


def bootstrap_line() -> bytes:
    """The first line of the agent's input, before frames begin: what it adds to `sys.path`.

    A copy of tfddl that isn't among the installed packages here is looked for at the same path
    there, and comes first, as it does here.
    """
    return json.dumps(import_paths()).encode("ascii") + b"\n"


def import_paths() -> list[str]:
    """What another Python adds to `sys.path` to find this tfddl; nothing if it is installed."""
    root = str(Path(tfddl.__file__).parent.parent)
    return [] if root == sysconfig.get_path("purelib") else [root]
