"""`--launcher slurm`: the hosts of a job are the nodes of its allocation."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping

from tfddl._src.cluster.environments import slurm
from tfddl._src.launcher import host_flags
from tfddl._src.launcher.hosts import HostSlots, render_hosts
from tfddl.errors import ClusterError, LaunchError

_GPUS_PER_TASK = "SLURM_GPUS_PER_TASK"
_NODES = ("nnodes", "node_rank", "master_addr", "master_port")


def resolve(arguments: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """Replaces a missing -H by the nodes of the allocation, where srun reaches the hosts.

    Also says how many GPUs the steps of the agents ask for.

    Args:
        arguments: of a parser with the flags of `host_flags` and `node_flags`.
        environment: Slurm's variables of this process, and PATH.

    Raises:
        LaunchError: there is no allocation, or it has no such nodes or too few tasks; this is one
            of several tasks; there is no srun; or flags are for another way.
    """
    if arguments.launcher != host_flags.SLURM:
        return
    _refuse_flags(arguments)
    try:
        nodes = slurm.read_allocation(environment)
        step = slurm.find(environment)
    except ClusterError as error:
        raise LaunchError(f"--launcher slurm: {error}") from None
    if step is not None and step.size > 1:
        raise LaunchError(
            f"--launcher slurm starts the workers of all nodes, but srun has started tfddlrun "
            f"{step.size} times ({step.source}). HINT: once, without srun; or srun "
            "--ntasks-per-node=1 tfddlrun without --launcher"
        )
    if shutil.which("srun", path=environment.get("PATH")) is None:
        raise LaunchError(
            "--launcher slurm takes srun, which is not on the PATH. HINT: the folder of Slurm's "
            "commands, often by `module load slurm`"
        )
    arguments.gpus_per_node = _gpus_per_node(environment, nodes)
    named = host_flags.read_hosts(arguments)
    if unknown := [host.name for host in named if host.name not in nodes]:
        raise LaunchError(
            f"{unknown[0]} (-H) is not in the allocation of {', '.join(nodes)}. HINT: leave "
            "-H out for all of them"
        )
    if not named and arguments.host_discovery_script is None:
        _take_all(arguments, nodes)


def _gpus_per_node(environment: Mapping[str, str], nodes: Mapping[str, int]) -> str | None:
    """What the step of an agent asks for, where it would get the GPUs of one task."""
    per_task = environment.get(_GPUS_PER_TASK, "")
    kind, _, number = per_task.rpartition(":")
    tasks = set(nodes.values())
    if not number.isdecimal() or tasks == {1} or len(nodes) == 1:
        return None
    if len(tasks) > 1:
        raise LaunchError(
            f"--launcher slurm: {_GPUS_PER_TASK} is {per_task}, and the nodes have {min(tasks)} to "
            f"{max(tasks)} tasks (SLURM_TASKS_PER_NODE); the same number is expected. HINT: sbatch "
            "or salloc --ntasks-per-node, or --gpus-per-node instead of --gpus-per-task"
        )
    return f"{kind}{':' * bool(kind)}{int(number) * tasks.pop()}"


def _take_all(arguments: argparse.Namespace, nodes: Mapping[str, int]) -> None:
    """Fills in -H, with all tasks of the allocation."""
    tasks, wanted = sum(nodes.values()), arguments.num_proc
    if isinstance(wanted, int) and wanted > tasks:
        per_node = -(-wanted // len(nodes))
        raise LaunchError(
            f"the number of workers (-np) is {wanted}, but the allocation has {tasks} tasks, on "
            f"{', '.join(nodes)} (SLURM_TASKS_PER_NODE). HINT: sbatch or salloc "
            f"--ntasks-per-node={per_node}, or -H {next(iter(nodes))}:{per_node},…"
        )
    arguments.hosts = render_hosts([HostSlots(name, count) for name, count in nodes.items()])


def _refuse_flags(arguments: argparse.Namespace) -> None:
    """Refuses what is said of ssh, or of a `tfddlrun` on each node."""
    if isinstance(arguments.num_proc, str):
        raise LaunchError(
            f"-np {arguments.num_proc} counts the GPUs of one node, and --launcher slurm starts "
            "the workers of all nodes. HINT: leave -np out for as many as the allocation has "
            "tasks; or srun --ntasks-per-node=1 tfddlrun -np auto"
        )
    given = [
        name
        for name, is_given in (
            ("--ssh-command", arguments.ssh_command != "ssh"),
            ("--ssh-port (-p)", arguments.ssh_port is not None),
            ("--ssh-identity-file (-i)", arguments.ssh_identity_file is not None),
        )
        if is_given
    ]
    if given:
        raise LaunchError(
            f"{given[0]} is for ssh, and --launcher slurm reaches the hosts by srun. HINT: give "
            "one of the two"
        )
    for name in _NODES:
        if getattr(arguments, name) is not None:
            raise LaunchError(
                f"--{name.replace('_', '-')} is for a tfddlrun on each node, and --launcher slurm "
                "starts the workers of all nodes by one. HINT: give one of the two"
            )
