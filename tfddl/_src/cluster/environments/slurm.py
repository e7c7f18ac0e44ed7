"""Slurm's variables, where `srun` has started the workers."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence

from tfddl._src.cluster.cluster import Cluster, block_addresses, join_address
from tfddl._src.cluster.environment_variables import ALONE, consecutive_ports, read_int
from tfddl._src.cluster.parsing import MAX_CLUSTER_SIZE, MAX_PORT, parse_int, quote
from tfddl._src.cluster.task import Task
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

_JOB = "SLURM_JOB_ID"
_ALLOCATED_TASKS = "SLURM_NTASKS"
_ALLOCATED_HOSTS = "SLURM_JOB_NODELIST"
_ALLOCATED_TASKS_PER_HOST = "SLURM_TASKS_PER_NODE"
_CPUS_PER_TASK = "SLURM_CPUS_PER_TASK"
_BIND_TYPE = "SLURM_CPU_BIND_TYPE"
_BIND_LIST = "SLURM_CPU_BIND_LIST"

_TASKS = re.compile(r"(?P<tasks>[0-9]+)(\(x(?P<times>[0-9]+)\))?")
_PART = re.compile(r"(?:[^,\[\]]|\[[^\[\]]*\])+")
_BRACKETS = re.compile(r"\[([^][]*)\]")
_RANGE = re.compile(r"(?P<first>[0-9]{1,18})(-(?P<last>[0-9]{1,18}))?")
_MASK = re.compile(r"(0x)?[0-9A-Fa-f]+")
_MAX_CHARS = 2**20
_MAX_NAME_CHARS = 255
_MAX_BRACKETS = 8  # Slurm itself writes at most five.
_MAX_CPUS = 2**16


def find(environ: Mapping[str, str]) -> Task | None:
    """This process as Slurm describes it; None outside of a step.

    The bare script of `sbatch`, and a shell of `salloc`, have an allocation but are one process.

    Raises:
        ClusterError: the variables aren't numbers.
    """
    if not environ.get(_STEP) or not environ.get(_SIZE):
        return None
    size = read_int(environ, _SIZE)
    if size == 0:
        return None
    # Step 0 of job 7 is "7.0", as Slurm writes it. Slurm has no variable for the local size.
    return Task(
        launcher="Slurm",
        rank=read_int(environ, _RANK) if size > 1 else 0,
        size=size,
        job=f"{environ.get(_JOB, '')}.{environ[_STEP]}",
        source=f"{_SIZE}, {_RANK}",
    )


def describe_idle_tasks(environ: Mapping[str, str]) -> str:
    """What a process outside of a step should know of its allocation's tasks; "" if there is one.

    The batch script of `sbatch` may well train by itself; mostly its `srun` has been forgotten.
    """
    tasks = environ.get(_ALLOCATED_TASKS, "")
    if environ.get(_STEP) or not tasks.isascii() or not tasks.isdecimal() or int(tasks) < 2:
        return ""
    return (
        f"Slurm has allocated {tasks[:9]} tasks ({_ALLOCATED_TASKS}), but srun hasn't started this "
        "process as one of them: it is the only worker. HINT: srun python train.py starts all; "
        f"{ALONE}=1 says that one worker is meant"
    )


def parse(environ: Mapping[str, str]) -> Cluster | None:
    """Reads the cluster of an `srun` step.

    Ranks fill one node after the other (Slurm's `--distribution=block`), or are distributed
    round-robin (`cyclic`). Ports are those that Slurm has reserved (`srun --resv-ports`), or else
    TFDDL_PORT (12345 if not set) plus the local rank.

    Returns:
        None outside of a step with several tasks.

    Raises:
        ClusterError: the variables contradict each other, or have an unknown form.

    References:
        srun(1), "OUTPUT ENVIRONMENT VARIABLES": https://slurm.schedmd.com/srun.html
    """
    task = find(environ)
    if task is None or task.size == 1:
        return None
    hosts = expand_hosts(environ.get(_HOSTS, ""))
    tasks = _tasks_per_host(environ.get(_TASKS_PER_HOST, ""))
    if len(tasks) != len(hosts) or sum(tasks) != task.size:
        raise ClusterError(
            f"{_HOSTS} names {len(hosts)} hosts, {_TASKS_PER_HOST} is "
            f"{quote(environ.get(_TASKS_PER_HOST, ''))} and {_SIZE} is {task.size}; one number of "
            f"tasks per host, {task.size} together, is expected"
        )
    ports = _ports(environ, max(tasks))
    addresses = _in_rank_order(environ, hosts, tasks, ports)
    try:
        cluster = Cluster(addresses=addresses, rank=task.rank, job=task.job)
    except ClusterError as error:
        raise ClusterError(f"Slurm's variables: {error}") from None
    _check_place(environ, cluster)
    return cluster


def read_allocation(environ: Mapping[str, str]) -> dict[str, int]:
    """The nodes of the allocation that this process is in, outside of its steps.

    In a step srun has replaced SLURM_TASKS_PER_NODE by that of the step: only one of as many nodes
    as the allocation has can be told from it.

    Returns:
        By node, how many tasks Slurm would start there: 1 where the job asked for none.

    Raises:
        ClusterError: there is no allocation, or its variables contradict each other.
    """
    if not environ.get(_JOB) or not environ.get(_ALLOCATED_HOSTS):
        raise ClusterError(
            f"there is no allocation of Slurm ({_JOB} and {_ALLOCATED_HOSTS} are not set). HINT: "
            "in the script of sbatch, or in a shell of salloc"
        )
    hosts = expand_hosts(environ[_ALLOCATED_HOSTS], what=_ALLOCATED_HOSTS)
    text = environ.get(_ALLOCATED_TASKS_PER_HOST) or f"1(x{len(hosts)})"
    tasks = _tasks_per_host(text, what=_ALLOCATED_TASKS_PER_HOST)
    if len(tasks) != len(hosts):
        raise ClusterError(
            f"{_ALLOCATED_HOSTS} names {len(hosts)} hosts, and {_ALLOCATED_TASKS_PER_HOST} is "
            f"{quote(text)}; one number of tasks per host is expected. HINT: outside of srun, "
            "which sets these to what its own step has"
        )
    return dict(zip(hosts, tasks, strict=True))


def find_task_cores(environ: Mapping[str, str], *, usable: int) -> int | None:
    """How many cores are a task's own; None where the tasks of its node share all cores.

    A task that is bound has the cores of its mask, divided among the tasks whose masks overlap it
    (`--cpu-bind=sockets`). Another one has as many as `--cpus-per-task` asked for.

    Args:
        environ: SLURM_CPU_BIND_TYPE, SLURM_CPU_BIND_LIST, SLURM_LOCALID, SLURM_CPUS_PER_TASK.
        usable: number of cores that this process may use.

    Raises:
        ClusterError: SLURM_CPUS_PER_TASK is no number.
    """
    # A mask takes precedence: SLURM_CPUS_PER_TASK may be that of the `sbatch` around.
    sharing = _tasks_sharing_cores(environ)
    if sharing is not None:
        return max(1, usable // sharing)
    if environ.get(_CPUS_PER_TASK):
        return min(usable, read_int(environ, _CPUS_PER_TASK, low=1, high=_MAX_CPUS))
    return None


def _tasks_sharing_cores(environ: Mapping[str, str]) -> int | None:
    """Number of tasks whose masks overlap this one's, itself included; None if it has no mask."""
    local_rank = environ.get(_LOCAL_RANK, "")
    masks = environ.get(_BIND_LIST, "").split(",")
    if "mask_cpu" not in environ.get(_BIND_TYPE, "") or not all(map(_MASK.fullmatch, masks)):
        return None
    try:
        place = parse_int(local_rank, what=_LOCAL_RANK, high=len(masks) - 1)
    except ClusterError:
        return None
    cores = [int(mask, 16) for mask in masks]
    return sum(1 for others in cores if others & cores[place])


def expand_hosts(text: str, *, what: str = _HOSTS) -> tuple[str, ...]:
    """Expands Slurm's compressed host list: "n[01-03,7],gpu2" is n01, n02, n03, n7, gpu2.

    Args:
        text: the list.
        what: the variable that has it, for errors.

    Raises:
        ClusterError: the text is no such list, or names more hosts than a job can have.
    """
    if len(text) > _MAX_CHARS:
        raise _bad_host_list(text, what)
    parts = _PART.findall(text)
    if not parts or ",".join(parts) != text or any(map(_is_too_long, parts)):
        raise _bad_host_list(text, what)
    choices = [
        [_ranges(numbers, text, what) for numbers in _BRACKETS.findall(part)] for part in parts
    ]
    # Counted before they are expanded: "n[1-999999999]" is short.
    if sum(math.prod(map(_count, of_part)) for of_part in choices) > MAX_CLUSTER_SIZE:
        raise ClusterError(
            f"{what} is {quote(text)}, more than {MAX_CLUSTER_SIZE} hosts; a job can't have so many"
        )
    return tuple(
        host
        for part, of_part in zip(parts, choices, strict=True)
        for host in _expand(part, of_part)
    )


def _is_too_long(part: str) -> bool:
    fixed = _BRACKETS.split(part)[::2]
    return len(fixed) > _MAX_BRACKETS + 1 or sum(map(len, fixed)) > _MAX_NAME_CHARS


def _expand(part: str, choices: list[list[re.Match[str]]]) -> list[str]:
    fixed = _BRACKETS.split(part)[::2]
    return [
        fixed[0] + "".join(a + b for a, b in zip(chosen, fixed[1:], strict=True))
        for chosen in itertools.product(*map(_numbers, choices))
    ]


def _ranges(numbers: str, text: str, what: str) -> list[re.Match[str]]:
    matches = [_RANGE.fullmatch(piece) for piece in numbers.split(",")]
    found = [match for match in matches if match is not None]
    if len(found) != len(matches) or any(_last(match) < int(match["first"]) for match in found):
        raise _bad_host_list(text, what)
    return found


def _count(ranges: list[re.Match[str]]) -> int:
    return sum(_last(match) + 1 - int(match["first"]) for match in ranges)


def _last(match: re.Match[str]) -> int:
    return int(match["last"] or match["first"])


def _numbers(ranges: list[re.Match[str]]) -> list[str]:
    return [
        str(number).zfill(len(match["first"]))
        for match in ranges
        for number in range(int(match["first"]), _last(match) + 1)
    ]


def _bad_host_list(text: str, what: str) -> ClusterError:
    return ClusterError(
        f'{what} is {quote(text)}; expected a list of hosts like "node[01-03,7],gpu2"'
    )


def _tasks_per_host(text: str, *, what: str = _TASKS_PER_HOST) -> list[int]:
    counts: list[int] = []
    for piece in text.split(","):
        match = _TASKS.fullmatch(piece)
        if match is None:
            raise ClusterError(f'{what} is {quote(text)}; expected counts like "2(x3),1"')
        tasks = parse_int(match["tasks"], what=f"a count of {what}", low=1)
        times = parse_int(match["times"] or "1", what=f"a count of {what}", low=1)
        if sum(counts) + tasks * times > MAX_CLUSTER_SIZE:
            raise ClusterError(f"{what} is {quote(text)}, more than {MAX_CLUSTER_SIZE} tasks")
        counts += [tasks] * times
    return counts


def _ports(environ: Mapping[str, str], most_tasks: int) -> Sequence[int]:
    reserved = environ.get(_RESERVED_PORTS)
    if not reserved:
        return consecutive_ports(environ, most_tasks)
    ports: list[int] = []
    for piece in reserved.split(","):
        match = _RANGE.fullmatch(piece)
        if match is None or not 1 <= int(match["first"]) <= _last(match) <= MAX_PORT:
            raise ClusterError(
                f'{_RESERVED_PORTS} is {quote(reserved)}; expected ports like "12000-12003"'
            )
        ports += range(int(match["first"]), _last(match) + 1)
        if len(ports) > MAX_PORT:
            raise ClusterError(f"{_RESERVED_PORTS} is {quote(reserved)}, more ports than there are")
    if len(ports) < most_tasks:
        raise ClusterError(
            f"{_RESERVED_PORTS} is {quote(reserved)}, {len(ports)} ports, but a host has "
            f"{most_tasks} workers. HINT: srun --resv-ports={most_tasks}"
        )
    return ports


def _in_rank_order(
    environ: Mapping[str, str], hosts: Sequence[str], tasks: Sequence[int], ports: Sequence[int]
) -> tuple[str, ...]:
    # Of "cyclic:block" only the part before the colon places ranks on nodes; see srun(1).
    distribution = environ.get(_DISTRIBUTION, "block").partition(":")[0].partition(",")[0].lower()
    if distribution in ("block", "*", ""):
        return block_addresses(hosts, tasks, ports)
    if distribution == "cyclic":
        turns = sorted((turn, host) for host, count in enumerate(tasks) for turn in range(count))
        return tuple(join_address(hosts[host], ports[turn]) for turn, host in turns)
    raise ClusterError(
        f"{_DISTRIBUTION} is {quote(environ[_DISTRIBUTION])}; tfddl supports "
        "'block' and 'cyclic' only. HINT: srun --distribution=block"
    )


def _check_place(environ: Mapping[str, str], cluster: Cluster) -> None:
    """Compares with SLURM_NODEID and SLURM_LOCALID, in case Slurm has placed ranks differently."""
    ours = {_NODE: cluster.hosts.index(cluster.host), _LOCAL_RANK: cluster.local_rank}
    for name, number in ours.items():
        if name in environ and read_int(environ, name) != number:
            raise ClusterError(
                f"Slurm started rank {cluster.rank} with {name}={environ[name]}, but {number} "
                f"follows from {_HOSTS} and {_TASKS_PER_HOST}. HINT: srun --distribution=block"
            )
