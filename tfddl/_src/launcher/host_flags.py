"""The flags of all commands that say which hosts take part, and how they are reached."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from tfddl._src.launcher.agent_starter import AgentStarter
from tfddl._src.launcher.fleet import CONNECT_S, FleetOptions
from tfddl._src.launcher.hosts import HostSlots, parse_hosts, read_hostfile
from tfddl._src.launcher.multi_node import NODE_TIMEOUT_S
from tfddl._src.launcher.srun import SrunOptions
from tfddl._src.launcher.ssh import SshOptions
from tfddl.errors import LaunchError

SSH, SLURM = "ssh", "slurm"
"""What reaches other hosts, as `--launcher` names it."""

_REACH = (
    "network_interface",
    "ssh_port",
    "ssh_identity_file",
    "ssh_command",
    "remote_python",
    "launcher",
    "start_timeout",
)


def add_flags(group: argparse._ArgumentGroup) -> None:
    """Adds them to a parser."""
    group.set_defaults(gpus_per_node=None)  # no flag: see `slurm_flags`
    group.add_argument(
        "-H", "--hosts", metavar="HOST:N,…", help="hosts, and how many workers each takes"
    )
    group.add_argument(
        "--hostfile",
        "-hostfile",
        type=Path,
        metavar="FILE",
        help="the same, by lines like 'hostA slots=2'",
    )
    group.add_argument(
        "--launcher",
        choices=(SSH, SLURM),
        default=SSH,
        help="what reaches the hosts: ssh; or, in an allocation of Slurm, srun, on all of its "
        "nodes where -H names none, with as many workers as it has tasks (default: %(default)s)",
    )
    group.add_argument(
        "--network-interface",
        "--network-interfaces",
        metavar="NAMES",
        help="workers are reached at their hosts' addresses on this interface, or the first of "
        "several (eth1,ib0) that a host has, and NCCL keeps to it (NCCL_SOCKET_IFNAME); otherwise "
        "by the hosts' names",
    )
    group.add_argument("-p", "--ssh-port", type=int, metavar="N", help="ssh's port on the hosts")
    group.add_argument(
        "-i", "--ssh-identity-file", type=Path, metavar="FILE", help="the private key for ssh"
    )
    group.add_argument(
        "--ssh-command",
        default="ssh",
        metavar="LINE",
        help="what is run instead of ssh, with its first options (default: %(default)s)",
    )
    group.add_argument(
        "--remote-python",
        default=sys.executable,
        metavar="PATH",
        help="a Python with tfddl on the hosts (default: this one, %(default)s)",
    )
    group.add_argument(
        "--start-timeout",
        type=float,
        metavar="S",
        help="seconds that hosts have to answer, or nodes to arrive, and then workers to call "
        f"tfddl.init() (default: {CONNECT_S:g}, {NODE_TIMEOUT_S:g} for nodes, and what the script "
        "says in tfddl.init)",
    )


def read_hosts(arguments: argparse.Namespace) -> tuple[HostSlots, ...]:
    """The hosts that -H or --hostfile name; none where neither is given.

    Raises:
        LaunchError: both are given, or what they say names no hosts.
    """
    if arguments.hosts is not None and arguments.hostfile is not None:
        raise LaunchError("both -H and --hostfile name hosts. HINT: give one of the two")
    if arguments.hosts is not None:
        return parse_hosts(arguments.hosts)
    if arguments.hostfile is not None:
        return read_hostfile(arguments.hostfile)
    return ()


def read_interfaces(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The names that --network-interface gives, the first choice first."""
    names = (arguments.network_interface or "").split(",")
    return tuple(name.strip() for name in names if name.strip())


def make_fleet(hosts: tuple[HostSlots, ...], arguments: argparse.Namespace) -> FleetOptions:
    """These hosts, reached as the flags say.

    Raises:
        LaunchError: a value is out of its range.
    """
    return FleetOptions(
        hosts=hosts,
        interfaces=read_interfaces(arguments),
        starter=_make_starter(arguments),
        connect_s=CONNECT_S if arguments.start_timeout is None else arguments.start_timeout,
    )


def _make_starter(arguments: argparse.Namespace) -> AgentStarter:
    if arguments.launcher == SLURM:
        return SrunOptions(
            remote_python=arguments.remote_python, gpus_per_node=arguments.gpus_per_node
        )
    return SshOptions(
        port=arguments.ssh_port,
        identity_file=arguments.ssh_identity_file,
        command=_split(arguments.ssh_command),
        remote_python=arguments.remote_python,
    )


def repeat(arguments: argparse.Namespace) -> tuple[str, ...]:
    """How hosts are reached, but not which: as flags for another command that has them."""
    values = {name: getattr(arguments, name) for name in _REACH}
    return tuple(
        f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None
    )


def _split(line: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(line))
    except ValueError as error:
        raise LaunchError(
            f"--ssh-command is {line!r}, which a shell can't parse: {error}. HINT: "
            "--ssh-command 'ssh -F FILE'"
        ) from error
