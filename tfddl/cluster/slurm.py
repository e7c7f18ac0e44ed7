"""Slurm's variables: workers started by `srun`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

from tfddl.cluster.cluster import Cluster, block_addresses, join_address
from tfddl.cluster.variables import consecutive_ports, read_int
from tfddl.errors import ClusterError

_STEP = "SLURM_STEP_ID"
_SIZE = "SLURM_STEP_NUM_TASKS"
_RANK = "SLURM_PROCID"
_HOSTS = "SLURM_STEP_NODELIST"
_TASKS_PER_HOST = "SLURM_STEP_TASKS_PER_NODE"
_RESERVED_PORTS = "SLURM_STEP_RESV_PORTS"
_DISTRIBUTION = "SLURM_DISTRIBUTION"
_NODE = "SLURM_NODEID"
_LOCAL_RANK = "SLURM_LOCALID"

_TASKS = re.compile(r"(?P<tasks>\d+)(\(x(?P<times>\d+)\))?")
_BRACKETS = re.compile(r"\[([^][]*)\]")
_RANGE = re.compile(r"(?P<first>\d+)(-(?P<last>\d+))?")


def parse(environ: Mapping[str, str]) -> Cluster | None:
    """Reads the cluster of an `srun` step.

    Ranks fill one node after the other (Slurm's `--distribution=block`), or go round the nodes
    (`cyclic`). Ports are those that Slurm reserved (`srun --resv-ports`), else TFDDL_PORT
    (12345 if not set) plus the local rank.

    Returns:
        None outside of a step with several tasks: the bare script of `sbatch`, which holds an
        allocation but is one process, is a worker alone.

    Raises:
        ClusterError: the variables don't agree with each other, or can't be understood.

    References:
        srun(1), "OUTPUT ENVIRONMENT VARIABLES": https://slurm.schedmd.com/srun.html
    """
    if _STEP not in environ or not environ.get(_SIZE):
        return None
    size = read_int(environ, _SIZE)
    if size <= 1:
        return None
    rank = read_int(environ, _RANK)
    hosts = expand_hosts(environ.get(_HOSTS, ""))
    tasks = _tasks_per_host(environ.get(_TASKS_PER_HOST, ""))
    if len(tasks) != len(hosts) or sum(tasks) != size:
        raise ClusterError(
            f"{_HOSTS} names {len(hosts)} hosts, {_TASKS_PER_HOST} is "
            f"{environ.get(_TASKS_PER_HOST)!r} and {_SIZE} is {size}; one number of tasks per "
            f"host, {size} together, is expected"
        )
    ports = _ports(environ, max(tasks))
    try:
        cluster = Cluster(addresses=_in_rank_order(environ, hosts, tasks, ports), rank=rank)
    except ClusterError as error:
        raise ClusterError(f"Slurm's variables: {error}") from None
    _check_place(environ, cluster)
    return cluster


def expand_hosts(text: str) -> tuple[str, ...]:
    """Expands Slurm's compressed host list: "n[01-03,7],gpu2" is n01, n02, n03, n7, gpu2.

    Raises:
        ClusterError: the text is no such list.
    """
    hosts = tuple(host for part in _split_outside_brackets(text) for host in _expand(part, text))
    if not all(hosts) or any(set(host) & set("[]") for host in hosts):
        raise _bad_host_list(text)
    return hosts


def _split_outside_brackets(text: str) -> list[str]:
    return re.split(r",(?![^[]*\])", text)


def _expand(part: str, text: str) -> list[str]:
    pieces = _BRACKETS.split(part)
    fixed, ranges = pieces[::2], pieces[1::2]
    choices = [_numbers(numbers, text) for numbers in ranges]
    return [
        fixed[0] + "".join(a + b for a, b in zip(chosen, fixed[1:], strict=True))
        for chosen in itertools.product(*choices)
    ]


def _numbers(ranges: str, text: str) -> list[str]:
    numbers: list[str] = []
    for piece in ranges.split(","):
        match = _RANGE.fullmatch(piece)
        if match is None:
            raise _bad_host_list(text)
        first, last = match["first"], match["last"] or match["first"]
        numbers += [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return numbers


def _bad_host_list(text: str) -> ClusterError:
    return ClusterError(f'{_HOSTS} is {text!r}; expected a list of hosts like "node[01-03,7],gpu2"')


def _tasks_per_host(text: str) -> list[int]:
    counts: list[int] = []
    for piece in text.split(","):
        match = _TASKS.fullmatch(piece)
        if match is None:
            raise ClusterError(f'{_TASKS_PER_HOST} is {text!r}; expected counts like "2(x3),1"')
        counts += [int(match["tasks"])] * int(match["times"] or 1)
    return counts


def _ports(environ: Mapping[str, str], most_tasks: int) -> Sequence[int]:
    reserved = environ.get(_RESERVED_PORTS)
    if not reserved:
        return consecutive_ports(environ, most_tasks)
    ports: list[int] = []
    for piece in reserved.split(","):
        match = _RANGE.fullmatch(piece)
        if match is None:
            raise ClusterError(
                f'{_RESERVED_PORTS} is {reserved!r}; expected ports like "12000-12003"'
            )
        ports += range(int(match["first"]), int(match["last"] or match["first"]) + 1)
    if len(ports) < most_tasks:
        raise ClusterError(
            f"{_RESERVED_PORTS} is {reserved!r}, {len(ports)} ports, but a host has {most_tasks} "
            f"workers. HINT: srun --resv-ports={most_tasks}"
        )
    return ports


def _in_rank_order(
    environ: Mapping[str, str], hosts: Sequence[str], tasks: Sequence[int], ports: Sequence[int]
) -> tuple[str, ...]:
    # "cyclic:block" and the like: only what comes before the colon places ranks on nodes.
    distribution = environ.get(_DISTRIBUTION, "block").partition(":")[0].partition(",")[0].lower()
    if distribution in ("block", "*", ""):
        return block_addresses(hosts, tasks, ports)
    if distribution == "cyclic":
        return tuple(
            join_address(host, ports[turn])
            for turn in range(max(tasks))
            for host, count in zip(hosts, tasks, strict=True)
            if turn < count
        )
    raise ClusterError(
        f"{_DISTRIBUTION} is {environ[_DISTRIBUTION]!r}; tfddl knows where ranks are with 'block' "
        "and 'cyclic' only. HINT: srun --distribution=block"
    )


def _check_place(environ: Mapping[str, str], cluster: Cluster) -> None:
    """Compares with what Slurm told this task, should ranks be placed in another way."""
    ours = {_NODE: cluster.hosts.index(cluster.host), _LOCAL_RANK: cluster.local_rank}
    for name, number in ours.items():
        if name in environ and read_int(environ, name) != number:
            raise ClusterError(
                f"Slurm started rank {cluster.rank} with {name}={environ[name]}, but {number} "
                f"follows from {_HOSTS} and {_TASKS_PER_HOST}. HINT: srun --distribution=block"
            )
