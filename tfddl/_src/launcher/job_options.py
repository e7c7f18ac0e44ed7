"""What a job is made of: the command, its workers and hosts, how failures are dealt with."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from tfddl._src.launcher.call_relay import CallRelay
from tfddl._src.launcher.cores import Binding
from tfddl._src.launcher.elastic_policy import ElasticOptions
from tfddl._src.launcher.environment import Export
from tfddl._src.launcher.fleet import FleetOptions
from tfddl._src.launcher.hosts import MAX_LAUNCHED_WORKERS
from tfddl._src.launcher.multi_node import NodeOptions
from tfddl._src.launcher.plan import HostAllocation
from tfddl._src.launcher.preloading import split_command
from tfddl._src.launcher.restart_policy import RestartOptions
from tfddl.errors import LaunchError


@dataclass(frozen=True)
class JobOptions:
    """What to run, where and how.

    Attributes:
        num_workers: number of processes, 1..1024.
        command: what each of them runs.
        grace_s: seconds that workers get to save at SIGTERM, at least 0.
        stall_timeout_s: seconds without progress after which a worker is killed; 0 is never.
        restarts: whether the job starts again when it has failed.
        elastic: how the number of workers follows the hosts that there are; None: it doesn't.
        logs: a folder for every worker's whole output, or None.
        as_horovod: whether `import horovod` finds tfddl in the workers.
        verbose: also show hosts and ports, and all that TensorFlow logs.
        fleet: the hosts that the workers run on, none of them where `elastic` finds them; None for
            this machine.
        allocations: all workers of the job, where an engine has placed them already, and each
            launcher starts those of the host ""; empty otherwise.
        nodes: the other hosts where a `tfddlrun` starts workers of this job; None where there are
            none. `num_workers` are then those of this host.
        binding: which cores a worker may use.
        exports: variables that all workers get, on whatever host.
        start_timeout_s: how long workers wait for each other in `tfddl.init()`; None leaves that
            to them.
        trusts_network: workers don't warn of ports that others can reach.
        call: the function call that workers make, where the command is one that does; or None.
        preload: modules that are imported once, in a process that workers are forked from.

    Raises:
        LaunchError: a value is out of its range, or there is no command.
    """

    num_workers: int
    command: tuple[str, ...]
    grace_s: float = 30.0
    stall_timeout_s: float = 0.0
    restarts: RestartOptions = field(default_factory=RestartOptions)
    elastic: ElasticOptions | None = None
    logs: Path | None = None
    as_horovod: bool = False
    verbose: bool = False
    fleet: FleetOptions | None = None
    allocations: tuple[HostAllocation, ...] = ()
    nodes: NodeOptions | None = None
    binding: Binding = Binding.CORES
    exports: tuple[Export, ...] = ()
    start_timeout_s: float | None = None
    trusts_network: bool = False
    call: CallRelay | None = None
    preload: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.num_workers <= MAX_LAUNCHED_WORKERS:
            raise LaunchError(
                f"the number of workers (-np) is {self.num_workers}; it must be "
                f"1..{MAX_LAUNCHED_WORKERS}"
            )
        self._check_preload()
        if not self.grace_s >= 0:
            raise LaunchError(f"--grace-period is {self.grace_s}; it must be 0 or more seconds")
        if not 0 <= self.stall_timeout_s < math.inf:
            raise LaunchError(
                f"--stall-timeout is {self.stall_timeout_s}; it must be 0 (never) or more seconds"
            )
        if (self.restarts.min_workers or 0) > self.num_workers:
            raise LaunchError(
                f"--min-np is {self.restarts.min_workers}; it must be at most the "
                f"{self.num_workers} workers of -np"
            )
        if self.fleet is not None and not self.fleet.hosts and self.elastic is None:
            raise LaunchError("there is no host. HINT: -H hostA:2,hostB:2")
        if self.nodes is not None and self.fleet is not None:
            flag = "-H names" if self.elastic is None else "--host-discovery-script finds"
            raise LaunchError(
                f"{flag} hosts, and --nnodes says that each has a tfddlrun of its own. HINT: give "
                "one of the two"
            )
        if self.nodes is not None and self.restarts.restarts:
            raise LaunchError(
                "--max-restarts and --min-np can't be used with several nodes, where no tfddlrun "
                "knows how the others' workers end. HINT: let the engine start all nodes again "
                "(Slurm's requeue, Kubernetes' backoffLimit); training resumes from its checkpoint"
            )
        if not self.command:
            raise LaunchError("there is no command to run. HINT: tfddlrun -np 2 python train.py")
        if self.start_timeout_s is not None and not self.start_timeout_s > 0:
            raise LaunchError(
                f"--start-timeout is {self.start_timeout_s}; it must be above 0 seconds"
            )

    @property
    def is_part_of_job(self) -> bool:
        """Whether other launchers start workers of the same job, so that none can start again."""
        return self.nodes is not None or bool(self.allocations)

    def _check_preload(self) -> None:
        if not self.preload or not self.command:
            return
        split_command(self.command)
        # Who waits for an import can't tell other hosts that it is alive.
        if self.fleet is not None or self.elastic is not None:
            raise LaunchError(
                "--preload starts workers on this machine only, and the job is for others as well. "
                "HINT: leave it out; or --nnodes, with a tfddlrun on each host"
            )
