"""Other hosts for tests: ssh's like, a real sshd on loopback, and network namespaces."""

import contextlib
import getpass
import os
import shlex
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.processes import wait_until
from tfddl.launcher.ports import free_ports

HERE = ("127.0.0.2", "127.0.0.3")
"""This machine by names that don't mean "here", so that it is reached as another host is."""

_SSHD = "/usr/sbin/sshd"
_RUN = Path("/run/sshd")

# As ssh: leaves out its options, gives the line to a shell, elsewhere and with little environment.
_STAND_IN = """#!/bin/sh
while [ "$1" != -- ]; do shift; done
shift
echo "$1" >>{log}
case "$1" in
  {down}) echo "ssh: connect to host $1 port 22: No route to host" >&2; exit 255 ;;
esac
shift
cd /
exec env -i PATH="$PATH" HOME=/ FROM_THERE=yes {before} sh -c "$*"
"""


def stand_in(folder: Path, *, before: str = "", down: str = "nobody") -> str:
    """A command that is used like ssh, without an sshd.

    Args:
        folder: where it is made.
        before: a command and its arguments that run the shell there.
        down: the name of a host that isn't reached.
    """
    folder.mkdir(exist_ok=True)
    path = folder / "stand-in"
    text = _STAND_IN.format(log=shlex.quote(str(folder / "asked")), before=before, down=down)
    path.write_text(text)
    path.chmod(0o755)
    return shlex.quote(str(path))


@contextmanager
def sshd(
    folder: Path, *, address: str = "127.0.0.1", inside: tuple[str, ...] = ()
) -> Iterator[str]:
    """A real sshd of this user's, and the ssh command that finds it for every host name.

    Args:
        folder: where its keys and files are made.
        address: where it listens; ssh goes to the addresses that it is told.
        inside: a command that runs it elsewhere (`ip netns exec NAME`).
    """
    for program in (_SSHD, "ssh", "ssh-keygen"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program} (Debian: openssh-server, openssh-client)")
    folder.mkdir(exist_ok=True)
    (port,) = free_ports(1)
    for key in ("host", "user"):
        line = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
        subprocess.run(line, check=True, timeout=20)
    shutil.copy(folder / "user.pub", folder / "authorized")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress {address}\nHostKey {folder}/host\n"
        f"AuthorizedKeysFile {folder}/authorized\nPidFile none\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nPermitRootLogin yes\n"
    )
    (folder / "known").write_text("* " + (folder / "host.pub").read_text())
    (folder / "ssh_config").write_text(
        f"Host *\n  Port {port}\n  User {getpass.getuser()}\n  IdentityFile {folder}/user\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known\n  GlobalKnownHostsFile none\n"
        "  StrictHostKeyChecking yes\n"
    )
    with ExitStack() as stack:
        if os.geteuid() == 0 and not _RUN.exists():  # root's sshd wants it, and no other's
            _RUN.mkdir(mode=0o755)
            stack.callback(shutil.rmtree, _RUN)
        log = stack.enter_context((folder / "log").open("wb"))
        line = [*inside, _SSHD, "-D", "-e", "-f", str(folder / "sshd_config")]
        server = subprocess.Popen(line, stderr=log)
        stack.callback(server.wait)
        stack.callback(_kill_tree, server.pid)
        wait_until(lambda: b"listening" in (folder / "log").read_bytes(), timeout_s=20.0)
        yield f"ssh -F {shlex.quote(str(folder / 'ssh_config'))}"


def _kill_tree(pid: int) -> None:
    """Also the sessions of sshd whose client vanished behind a cable that was cut."""
    with contextlib.suppress(FileNotFoundError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            _kill_tree(int(child))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def ip(*arguments: str) -> None:
    """Runs the command `ip`."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=10)


@contextmanager
def two_hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces, 10.77.0.1 and 10.77.0.2, joined by a cable."""
    if shutil.which("ip") is None:
        pytest.skip("needs the command ip (Debian: iproute2)")
    if os.geteuid() != 0:
        pytest.skip("needs root, to make network namespaces")
    tag = uuid.uuid4().hex[:6]
    names = (f"tfddl-{tag}-1", f"tfddl-{tag}-2")
    with ExitStack() as stack:
        for name in names:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"needs the right to make network namespaces: {error.stderr.strip()}")
            stack.callback(ip, "netns", "del", name)
        cable = (f"tf{tag}1", f"tf{tag}2")
        ip("link", "add", cable[0], "type", "veth", "peer", "name", cable[1])
        for number, (name, plug) in enumerate(zip(names, cable, strict=True), start=1):
            ip("link", "set", plug, "netns", name)
            ip("-n", name, "link", "set", plug, "name", "cable")
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
