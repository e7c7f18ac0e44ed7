"""The command line that starts the agent of a host, and why it has failed. Pure."""

from __future__ import annotations

import json
import shlex
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tfddl
from tfddl.errors import LaunchError

# No quotes of the kind that shlex puts around it, no backslash, "$" or "!": every shell that a
# user may have on the far side, csh and fish included, passes it on as it is.
_BOOTSTRAP = (
    "import sys,json;"
    'sys.path[:0]=json.loads(open(0,"rb",0,closefd=False).readline());'
    "from tfddl._src.launcher.agent_server import run;run()"
)
_SSH_FAILED = 255
_NO_SUCH_PROGRAM = (126, 127)


@dataclass(frozen=True)
class SshOptions:
    """How other hosts are reached.

    Attributes:
        port: ssh's port there; None for what ssh's own configuration says.
        identity_file: a private key; None for ssh's own choice.
        command: the ssh that is used, with options of its own.
        remote_python: the Python that starts the agent on every host.

    Raises:
        LaunchError: a port out of range, a key that isn't there, no command, or no Python.
    """

    port: int | None = None
    identity_file: Path | None = None
    command: tuple[str, ...] = ("ssh",)
    remote_python: str = sys.executable

    def __post_init__(self) -> None:
        if self.port is not None and not 1 <= self.port <= 65535:
            raise LaunchError(f"the ssh port (-p) is {self.port}; it must be 1..65535")
        if self.identity_file is not None and not self.identity_file.is_file():
            raise LaunchError(
                f"the ssh key (-i) {self.identity_file} is no file. HINT: name a private key, as "
                "in -i ~/.ssh/id_ed25519"
            )
        if not self.command:
            raise LaunchError("--ssh-command is empty. HINT: --ssh-command 'ssh -F FILE'")
        if not self.remote_python:
            raise LaunchError(
                "--remote-python is empty. HINT: the path of a Python with tfddl on the hosts"
            )


def agent_argv(options: SshOptions, host: str | None) -> tuple[str, ...]:
    """The command line that starts an agent.

    It shows nothing of the job, such as its secret: that goes through the agent's input.

    Args:
        options: how hosts are reached.
        host: which one; None for this one, without ssh.
    """
    # -P: a json.py in the home folder is not Python's.
    agent = (options.remote_python, "-P", "-c", _BOOTSTRAP)
    if host is None:
        return agent
    settings = (
        "BatchMode=yes",  # nobody is there to answer a question
        # 15 s of silence end the connection (ssh_config(5)), also where TCP alone would wait for
        # hours.
        "ServerAliveInterval=5",
        "ServerAliveCountMax=3",
        "ControlMaster=no",  # a master of ours would outlive the job, or be killed with it
        "ForwardX11=no",
    )
    return (
        *options.command,
        # No terminal: it would change bytes on their way.
        "-T",
        *(f"-o{setting}" for setting in settings),
        *_connection_flags(options),
        "--",  # what follows is a host, even if it begins with a dash
        host,
        # exec: no shell stays in between, which might outlive the agent, or hide its exit status.
        "exec " + shlex.join(agent),
    )


def _connection_flags(options: SshOptions) -> tuple[str, ...]:
    port = () if options.port is None else ("-p", str(options.port))
    key = () if options.identity_file is None else ("-i", str(options.identity_file))
    return (*port, *key)


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


def explain_end(
    host: str, options: SshOptions, *, returncode: int, stderr_lines: Sequence[str]
) -> str:
    """Says why the agent of a host didn't start, or ended."""
    said = stderr_lines[-1].strip() if stderr_lines else "it said nothing"
    if returncode == _SSH_FAILED:
        line = shlex.join(
            [*options.command, "-oBatchMode=yes", *_connection_flags(options), "--", host, "true"]
        )
        return (
            f"can't reach {host} by ssh: {said}. HINT: this has to work without asking anything: "
            f"{line}"
        )
    if returncode in _NO_SUCH_PROGRAM:
        return (
            f"can't start {options.remote_python} on {host}: {said}. HINT: the environment has to "
            "be at the same place on all hosts; --remote-python names another"
        )
    return (
        f"the agent on {host} ended with {returncode}: {said}. HINT: tfddl has to be installed for "
        f"{options.remote_python} there"
    )
