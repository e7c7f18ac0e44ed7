"""Two hosts on one machine: network namespaces, a cable between them that can be cut, an sshd.

A network namespace (Linux) has interfaces, addresses and ports of its own, and shares everything
else with the machine: files, processes, memory. It takes root to make one.
"""

import contextlib
import getpass
import os
import shlex
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tfddl._src.cluster.ports import free_ports
from tfddl.errors import LaunchError

ADDRESSES = ("10.77.0.1", "10.77.0.2")
"""Of the two hosts."""

CABLE = "cable"
"""The name of either end, within its host."""

_SSHD = "/usr/sbin/sshd"
_RUN = Path("/run/sshd")
_COMMAND_S, _START_S = 10.0, 20.0


def missing_for_hosts() -> str:
    """What this machine lacks to make hosts of their own; nothing where it lacks nothing."""
    if shutil.which("ip") is None:
        return "needs the command ip (Debian: iproute2)"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    try:
        with _namespace(f"tfddl-{uuid.uuid4().hex[:6]}"):
            return ""
    except LaunchError as error:
        return f"needs the right to make network namespaces: {error}"


def missing_for_sshd() -> str:
    """What this machine lacks to reach them by ssh; nothing where it lacks nothing."""
    for program in (_SSHD, "ssh", "ssh-keygen"):
        if shutil.which(program) is None:
            return f"needs {program} (Debian: openssh-server, openssh-client)"
    return ""


def inside(name: str) -> tuple[str, ...]:
    """What a command begins with that is to run on a host."""
    return ("ip", "netns", "exec", name)


@contextmanager
def two_hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces, at `ADDRESSES`, joined by a cable.

    Raises:
        LaunchError: They can't be made; `missing_for_hosts` says why before.
    """
    tag = uuid.uuid4().hex[:6]
    names = (f"tfddl-{tag}-1", f"tfddl-{tag}-2")
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(_namespace(name))
        plugs = (f"tf{tag}1", f"tf{tag}2")
        _ip("link", "add", plugs[0], "type", "veth", "peer", "name", plugs[1])
        for name, plug, address in zip(names, plugs, ADDRESSES, strict=True):
            _ip("link", "set", plug, "netns", name)
            _ip("-n", name, "link", "set", plug, "name", CABLE)
            _ip("-n", name, "address", "add", f"{address}/24", "dev", CABLE)
            _ip("-n", name, "link", "set", "lo", "up")
            plug_in(name)
        yield names


def cut_off(name: str | None) -> None:
    """Takes the cable from a host; None is the one that this process runs on."""
    _ip(*_of(name), "link", "set", CABLE, "down")


def plug_in(name: str | None) -> None:
    """Gives it back."""
    _ip(*_of(name), "link", "set", CABLE, "up")


@contextmanager
def sshd(folder: Path, *, address: str, inside: tuple[str, ...] = ()) -> Iterator[str]:
    """A real sshd of this user's.

    Args:
        folder: Where its keys and files are made.
        address: Where it listens; ssh goes to the addresses that it is told.
        inside: What its command begins with, to run it on another host.

    Yields:
        The ssh command that finds it for every host name.

    Raises:
        LaunchError: It doesn't start.
    """
    folder.mkdir(exist_ok=True)
    _write_files(folder, address, *free_ports(1))
    log = folder / "log"
    with ExitStack() as stack:
        if os.geteuid() == 0 and not _RUN.exists():  # root's sshd wants it, and no other's
            _RUN.mkdir(mode=0o755)
            stack.callback(shutil.rmtree, _RUN)
        line = [*inside, _SSHD, "-D", "-e", "-f", str(folder / "sshd_config")]
        server = subprocess.Popen(line, stderr=stack.enter_context(log.open("wb")))
        stack.callback(server.wait)
        stack.callback(_kill_tree, server.pid)
        end_s = time.monotonic() + _START_S
        while b"listening" not in log.read_bytes():
            if server.poll() is not None or time.monotonic() > end_s:
                raise LaunchError(f"sshd doesn't start: {log.read_text(errors='replace')}")
            time.sleep(0.02)
        yield f"ssh -F {shlex.quote(str(folder / 'ssh_config'))}"


def _write_files(folder: Path, address: str, port: int) -> None:
    for key in ("host", "user"):
        line = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
        subprocess.run(line, check=True, timeout=_START_S)
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


def _kill_tree(pid: int) -> None:
    """Also the sessions of sshd whose client vanished behind a cable that was cut."""
    with contextlib.suppress(FileNotFoundError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            _kill_tree(int(child))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def _namespace(name: str) -> Iterator[None]:
    _ip("netns", "add", name)
    try:
        yield
    finally:
        _ip("netns", "del", name)


def _of(name: str | None) -> tuple[str, ...]:
    return () if name is None else ("-n", name)


def _ip(*words: str) -> None:
    done = subprocess.run(
        ["ip", *words], capture_output=True, text=True, timeout=_COMMAND_S, check=False
    )
    if done.returncode:
        raise LaunchError(f"ip {' '.join(words)}: {done.stderr.strip()}")
