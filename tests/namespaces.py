"""Two hosts on one machine: network namespaces joined by a veth pair, and an sshd.

A network namespace (Linux) has interfaces, addresses and ports of its own, and shares everything
else with the machine: files, processes, memory. Making one takes root.
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

LINK = "veth0"
"""The name of the veth interface in either namespace."""

_SSHD = "/usr/sbin/sshd"
_RUN = Path("/run/sshd")
_COMMAND_S, _START_S = 60.0, 60.0


def missing_for_hosts() -> str:
    """What this machine lacks to make network namespaces; empty if nothing."""
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
    """What this machine lacks to run an sshd; empty if nothing."""
    for program in (_SSHD, "ssh", "ssh-keygen"):
        if shutil.which(program) is None:
            return f"needs {program} (Debian: openssh-server, openssh-client)"
    return ""


def inside(name: str) -> tuple[str, ...]:
    """The prefix of a command that is to run in a namespace."""
    return ("ip", "netns", "exec", name)


@contextmanager
def two_hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces at `ADDRESSES`, joined by a veth pair; yields their names.

    Raises:
        LaunchError: They can't be made; `missing_for_hosts` says why beforehand.
    """
    tag = uuid.uuid4().hex[:6]
    names = (f"tfddl-{tag}-1", f"tfddl-{tag}-2")
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(_namespace(name))
        ends = (f"tf{tag}1", f"tf{tag}2")
        _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(names, ends, ADDRESSES, strict=True):
            _ip("link", "set", end, "netns", name)
            _ip("-n", name, "link", "set", end, "name", LINK)
            _ip("-n", name, "address", "add", f"{address}/24", "dev", LINK)
            _ip("-n", name, "link", "set", "lo", "up")
            connect(name)
        yield names


@contextmanager
def switched_hosts(count: int) -> Iterator[tuple[str, ...]]:
    """Network namespaces at 10.77.0.1, 10.77.0.2 and so on, joined by a bridge in one more.

    Raises:
        LaunchError: They can't be made; `missing_for_hosts` says why beforehand.
    """
    tag = uuid.uuid4().hex[:6]
    names = tuple(f"tfddl-{tag}-{number}" for number in range(1, count + 1))
    switch = f"tfddl-{tag}-0"
    with ExitStack() as stack:
        for name in (switch, *names):
            stack.enter_context(_namespace(name))
        _ip("-n", switch, "link", "add", "bridge0", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge0", "up")
        for number, name in enumerate(names, start=1):
            port = f"port{number}"
            link = ("link", "add", port, "type", "veth", "peer", "name", LINK, "netns", name)
            _ip("-n", switch, *link)
            _ip("-n", switch, "link", "set", port, "master", "bridge0", "up")
            _ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", LINK)
            _ip("-n", name, "link", "set", "lo", "up")
            connect(name)
        yield names


def disconnect(name: str | None) -> None:
    """Sets the link of a namespace down; None is the namespace of this process."""
    _ip(*_of(name), "link", "set", LINK, "down")


def connect(name: str | None) -> None:
    """Sets the link of a namespace up; None is the namespace of this process."""
    _ip(*_of(name), "link", "set", LINK, "up")


@contextmanager
def sshd(folder: Path, *, address: str, inside: tuple[str, ...] = ()) -> Iterator[str]:
    """A real sshd that runs as this user.

    Args:
        folder: Where its keys and configuration are written.
        address: Where it listens.
        inside: The prefix of its command, to run it in a namespace.

    Yields:
        The ssh command with its port, user and keys, for any host name.

    Raises:
        LaunchError: It doesn't start.
    """
    folder.mkdir(exist_ok=True)
    _write_files(folder, address, *free_ports(1))
    log = folder / "log"
    with ExitStack() as stack:
        # sshd needs it when root runs it (privilege separation), for each new connection. It stays:
        # a test that ends would take it from the sshd of another one.
        if os.geteuid() == 0:
            _RUN.mkdir(mode=0o755, exist_ok=True)
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
    """Kills a process and its descendants: sshd leaves sessions of clients that were cut off."""
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
