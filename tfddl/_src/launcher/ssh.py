"""The agents of other hosts, started by ssh: the command line, and why it has failed. Pure."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tfddl._src.launcher.agent_starter import agent_argv
from tfddl.errors import LaunchError

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

    @property
    def host_variables(self) -> frozenset[str]:
        """See `AgentStarter`."""
        return frozenset()

    @property
    def hint(self) -> str:
        """See `AgentStarter`."""
        return "--ssh-command names another ssh"

    def argv(self, host: str) -> tuple[str, ...]:
        """The command line that starts the agent of another host."""
        settings = (
            "BatchMode=yes",  # nobody is there to answer a question
            # 15 s of silence end the connection (ssh_config(5)), also where TCP alone would wait
            # for hours.
            "ServerAliveInterval=5",
            "ServerAliveCountMax=3",
            "ControlMaster=no",  # a master of ours would outlive the job, or be killed with it
            "ForwardX11=no",
        )
        return (
            *self.command,
            # No terminal: it would change bytes on their way.
            "-T",
            *(f"-o{setting}" for setting in settings),
            *self._connection_flags(),
            "--",  # what follows is a host, even if it begins with a dash
            host,
            # exec: no shell stays in between, which might outlive the agent, or hide its exit
            # status.
            "exec " + shlex.join(agent_argv(self.remote_python)),
        )

    def explain_end(self, host: str, *, returncode: int, stderr_lines: Sequence[str]) -> str:
        """Says why the agent of a host didn't start, or ended before it greeted."""
        said = stderr_lines[-1].strip() if stderr_lines else "it said nothing"
        if returncode == _SSH_FAILED:
            line = shlex.join(
                [*self.command, "-oBatchMode=yes", *self._connection_flags(), "--", host, "true"]
            )
            return (
                f"can't reach {host} by ssh: {said}. HINT: this has to work without asking "
                f"anything: {line}"
            )
        if returncode in _NO_SUCH_PROGRAM:
            return (
                f"can't start {self.remote_python} on {host}: {said}. HINT: the environment has to "
                "be at the same place on all hosts; --remote-python names another"
            )
        return (
            f"the agent on {host} ended with {returncode}: {said}. HINT: tfddl has to be installed "
            f"for {self.remote_python} there"
        )

    def _connection_flags(self) -> tuple[str, ...]:
        port = () if self.port is None else ("-p", str(self.port))
        key = () if self.identity_file is None else ("-i", str(self.identity_file))
        return (*port, *key)
