"""When a job with a host discovery changes its workers, and to which. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tfddl._src.launcher.host_discovery import HostDiscovery
from tfddl._src.launcher.hosts import MAX_LAUNCHED_WORKERS
from tfddl.errors import LaunchError


@dataclass(frozen=True)
class ElasticOptions:
    """How the number of workers follows the hosts that there are.

    Attributes:
        discovery: says which hosts there are.
        min_workers: fewer don't train: the job waits for hosts.
        max_workers: as many train at most.
        first_workers: as many as the first start waits for, from `min_workers` to `max_workers`.
        timeout_s: seconds that it waits for hosts before the job ends, at least 0.
        reset_limit: how often the workers are started again, failures included; None: no limit.
        resize_interval_s: seconds from a start to an interruption for more workers, at least 0:
            what a start costs has to be worth it. Hosts that go away don't wait for it.
        settle_s: seconds that the list of hosts has to stay as it is before the workers are
            interrupted, so that hosts which come one after the other cost one start, and those
            that are missing once, in an answer that was cut short, none.

    Raises:
        LaunchError: a value is out of its range.
    """

    discovery: HostDiscovery
    min_workers: int
    max_workers: int
    first_workers: int
    timeout_s: float = 600.0
    reset_limit: int | None = None
    resize_interval_s: float = 60.0
    settle_s: float = 3.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_workers <= self.first_workers <= self.max_workers:
            raise LaunchError(
                f"--min-np is {self.min_workers}, -np {self.first_workers} and --max-np "
                f"{self.max_workers}; they must be in this order, and at least 1"
            )
        if self.max_workers > MAX_LAUNCHED_WORKERS:
            raise LaunchError(
                f"--max-np is {self.max_workers}; it must be at most {MAX_LAUNCHED_WORKERS}"
            )
        for flag, value in (
            ("--elastic-timeout", self.timeout_s),
            ("--resize-interval", self.resize_interval_s),
        ):
            if not 0 <= value < math.inf:
                raise LaunchError(f"{flag} is {value}; it must be 0 or more seconds")
        if self.reset_limit is not None and self.reset_limit < 0:
            raise LaunchError(f"--reset-limit is {self.reset_limit}; it must be 0 or more")


def assign_workers(
    hosts: Mapping[str, int], *, current: Mapping[str, int], max_workers: int
) -> dict[str, int]:
    """How many workers each host gets.

    Hosts that have workers come first, in their order: rank 0 stays where its checkpoints are.

    Args:
        hosts: how many each host can take.
        current: those that there are, by host.
        max_workers: as many in all.

    Returns:
        The hosts in the order of their ranks, with at least one worker each.
    """
    order = [*(host for host in current if host in hosts), *(h for h in hosts if h not in current)]
    workers: dict[str, int] = {}
    left = max_workers
    for host in order:
        if number := min(hosts[host], left):
            workers[host] = number
            left -= number
    return workers


def is_resize_due(
    hosts: Mapping[str, int],
    *,
    current: Mapping[str, int],
    options: ElasticOptions,
    stable_s: float,
    running_s: float,
) -> bool:
    """Whether a running job should be saved and started again with other workers.

    Args:
        hosts: how many workers each host can take now.
        current: those that run, by host.
        options: how the job follows.
        stable_s: for how long the hosts have been these.
        running_s: for how long the workers have.
    """
    # No hosts at all is what a script prints that has hidden a failure (`kubectl … | awk …`); and
    # there would be nowhere to go on.
    if not hosts or stable_s < options.settle_s:
        return False
    if any(hosts.get(host, 0) < number for host, number in current.items()):
        return True
    wanted = assign_workers(hosts, current=current, max_workers=options.max_workers)
    return running_s >= options.resize_interval_s and sum(wanted.values()) > sum(current.values())
