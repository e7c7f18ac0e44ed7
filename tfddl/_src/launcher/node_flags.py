"""The flags, and the engine's variables, that say on how many hosts a `tfddlrun` was started."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping

from tfddl._src.cluster import NodeRank, detect_nodes, join_address
from tfddl._src.cluster.environment_variables import DEFAULT_PORT, PORT
from tfddl._src.cluster.environments import sagemaker
from tfddl._src.cluster.parsing import MAX_PORT, parse_int
from tfddl._src.launcher.environment import is_worker
from tfddl._src.launcher.hosts import MAX_LAUNCHED_WORKERS, split_host
from tfddl.errors import ClusterError, LaunchError

_ADDRESS, _ADDRESS_PORT = "MASTER_ADDR", "MASTER_PORT"


def add_flags(group: argparse._ArgumentGroup) -> None:
    """Adds them to a parser."""
    group.add_argument(
        "--nnodes",
        metavar="N",
        help="number of hosts on each of which a tfddlrun is started, for one job (default: what "
        "the engine's variables say; 1 is this host alone, whatever they say)",
    )
    group.add_argument(
        "--node-rank",
        metavar="R",
        help="which of them this one is, from 0 (default: what the engine's variables say)",
    )
    group.add_argument(
        "--master-addr",
        metavar="HOST[:PORT]",
        help="where node 0 is found by all (default: what the engine's variables say, or "
        f"{_ADDRESS})",
    )
    group.add_argument(
        "--master-port",
        metavar="P",
        help="a free port of node 0, for the nodes' rendezvous before any worker starts (default: "
        f"{_ADDRESS_PORT}, else {PORT}, else {DEFAULT_PORT})",
    )


def read_nodes(arguments: argparse.Namespace, environment: Mapping[str, str]) -> NodeRank | None:
    """Which of the job's nodes this is, by the flags, and where they are silent by the engine.

    A flag and a variable have to agree, unless the flags say everything.

    Args:
        arguments: of a parser that has these flags, and those of `host_flags`.
        environment: what the engine says of this host.

    Returns:
        None for a job that no other `tfddlrun` takes part in.

    Raises:
        LaunchError: there are other nodes, and not all is known that is needed; flags and
            variables contradict each other; or -H names hosts though each has a `tfddlrun`.
    """
    try:
        return _read_nodes(arguments, environment)
    except ClusterError as error:
        raise LaunchError(str(error)) from None


def interfaces(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The network interface that the engine wants the nodes to use; none where it says nothing."""
    name = sagemaker.read_network_interface(environment)
    return (name,) if name else ()


def _read_nodes(arguments: argparse.Namespace, environment: Mapping[str, str]) -> NodeRank | None:
    num_nodes, node_rank = _number(arguments, "nnodes", low=1), _number(arguments, "node_rank")
    port = _number(arguments, "master_port", low=1, high=MAX_PORT)
    given = [
        f"--{name.replace('_', '-')}"
        for name in ("nnodes", "node_rank", "master_addr", "master_port")
        if getattr(arguments, name) is not None
    ]
    names_hosts = arguments.hosts is not None or arguments.hostfile is not None
    if num_nodes == 1:
        if node_rank:
            raise LaunchError(f"--node-rank is {node_rank} of 1 node; it must be 0")
        return None
    if names_hosts and given:
        raise LaunchError(
            f"-H (or --hostfile) names the hosts, and {given[0]} says that each has a tfddlrun of "
            "its own. HINT: one of the two"
        )
    if num_nodes is None and not given and is_worker(environment):
        return None  # A worker of another tfddlrun starts a job of its own.
    says_all = num_nodes is not None and node_rank is not None and arguments.master_addr is not None
    found = None if says_all else _detect(environment, num_nodes, names_hosts=names_hosts)
    if names_hosts:
        _refuse_hosts(found)
        return None
    if found is None and num_nodes is None:
        if given:
            raise LaunchError(f"{given[0]} needs --nnodes, the number of hosts")
        return None
    found = _combine(found, num_nodes, node_rank)
    if found.num_nodes == 1:
        return None
    return _with_master(found, arguments.master_addr, port, environment)


def _number(
    arguments: argparse.Namespace, name: str, *, low: int = 0, high: int = MAX_LAUNCHED_WORKERS
) -> int | None:
    text = getattr(arguments, name)
    if text is None:
        return None
    return parse_int(text, what=f"--{name.replace('_', '-')}", low=low, high=high)


def _detect(
    environment: Mapping[str, str], num_nodes: int | None, *, names_hosts: bool
) -> NodeRank | None:
    try:
        return detect_nodes(environment, num_nodes=num_nodes)
    except ClusterError as error:
        instead = (
            "--nnodes 1 says that this tfddlrun, and no other, starts the workers of these hosts"
            if names_hosts
            else "or say it by --nnodes, --node-rank and --master-addr; --nnodes 1 is this host "
            "alone"
        )
        separator = "; " if "HINT: " in str(error) else ". HINT: "
        raise LaunchError(f"{error}{separator}{instead}") from None


def _refuse_hosts(found: NodeRank | None) -> None:
    """-H is for one `tfddlrun` that starts all workers; on each node it would be N jobs."""
    if found is not None and found.num_nodes > 1:
        raise LaunchError(
            f"-H (or --hostfile) names the hosts, but this is node {found.node_rank} of "
            f"{found.num_nodes} ({found.source}), each of which may have a tfddlrun of its own. "
            "HINT: leave out -H, and these become one job; or --nnodes 1, where only this one runs"
        )


def _combine(found: NodeRank | None, num_nodes: int | None, node_rank: int | None) -> NodeRank:
    """What the flags say beside what the engine says."""
    if found is None:
        assert num_nodes is not None
        if node_rank is None:
            raise LaunchError(
                f"--nnodes is {num_nodes}, and nothing says which of the nodes this is. HINT: "
                "--node-rank 0 on the first, 1 on the next, and so on"
            )
        return NodeRank(node_rank, num_nodes, source="--nnodes, --node-rank")
    if node_rank is not None and node_rank != found.node_rank:
        raise LaunchError(
            f"--node-rank is {node_rank}, but by {found.source} it is {found.node_rank}. HINT: "
            "leave the flag out; or give all of --nnodes, --node-rank and --master-addr, and the "
            "variables aren't read"
        )
    return found


def _with_master(
    node: NodeRank, flag: str | None, port: int | None, environment: Mapping[str, str]
) -> NodeRank:
    """The node, with the address of node 0: by the flags, the engine, or MASTER_ADDR."""
    text, what = flag, "--master-addr"
    if text is None and node.master is not None:
        text, what = node.master, node.source
        if port is not None:  # The engine's is that of node 0's first worker, or a default.
            text = text.rpartition(":")[0]
    elif text is None:
        text, what = environment.get(_ADDRESS, ""), _ADDRESS
    if not text:
        return node
    host, own_port = split_host(text)
    if own_port is not None and port is not None and own_port != str(port):
        raise LaunchError(f"{what} has the port {own_port}, and --master-port is {port}")
    master = join_address(host, port or _port(own_port, what, environment))
    try:
        return dataclasses.replace(node, master=master)
    except ClusterError as error:
        raise LaunchError(f"{what} is {text!r}: {error}") from None


def _port(text: str | None, what: str, environment: Mapping[str, str]) -> int:
    for name, value in (
        (f"the port of {what}", text),
        (_ADDRESS_PORT, environment.get(_ADDRESS_PORT)),
        (PORT, environment.get(PORT)),
    ):
        if value:
            return parse_int(value, what=name, low=1, high=MAX_PORT)
    return DEFAULT_PORT
