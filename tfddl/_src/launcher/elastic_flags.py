"""The flags of elastic jobs, as `horovodrun` has them."""

from __future__ import annotations

import argparse

from tfddl._src.heartbeat import SAVED_STATUS
from tfddl._src.launcher.elastic_policy import ElasticOptions
from tfddl._src.launcher.host_discovery import ScriptDiscovery
from tfddl._src.launcher.hosts import MAX_LAUNCHED_WORKERS
from tfddl._src.launcher.job_options import JobOptions
from tfddl._src.launcher.restart_policy import RestartOptions
from tfddl.errors import LaunchError

_NEEDS_DISCOVERY = ("max_np", "slots_per_host", "resize_interval")


def add_flags(group: argparse._ArgumentGroup) -> None:
    """Adds them to a parser."""
    group.add_argument(
        "--host-discovery-script",
        metavar="LINE",
        help="a command that prints the hosts that there are, in lines 'host:slots' or 'host'; it "
        "is run once a second. Hosts that appear are taken in, and hosts that are gone left, in "
        "mid-epoch: all workers save, and start again",
    )
    group.add_argument(
        "--max-np",
        "--max-num-proc",
        type=int,
        metavar="M",
        help="with a host discovery, the most workers (default: as many as the hosts take)",
    )
    group.add_argument(
        "--slots-per-host",
        type=int,
        metavar="N",
        help="workers of a host for which the discovery says no number (default: 1)",
    )
    group.add_argument(
        "--elastic-timeout",
        type=float,
        metavar="S",
        help="with a host discovery, how long to wait for hosts for enough workers (default: "
        f"{ElasticOptions.timeout_s:g}); without, as --start-timeout, where that isn't given",
    )
    group.add_argument(
        "--reset-limit",
        type=int,
        metavar="N",
        help="with a host discovery, start again so many times, for whatever reason (default: "
        "no limit for changes of hosts); without, the same as --max-restarts",
    )
    group.add_argument(
        "--resize-interval",
        type=float,
        metavar="S",
        help="with a host discovery, workers train for S seconds at least, from their start, "
        "before they are interrupted for more of them (default: "
        f"{ElasticOptions.resize_interval_s:g})",
    )
    group.add_argument(
        "--blacklist-cooldown-range",
        type=float,
        nargs=2,
        metavar=("MIN", "MAX"),
        help="for how many seconds a host that keeps failing is left out: MIN, then twice as long "
        f"each time, MAX at most (default: {RestartOptions.first_exclusion_s:g} "
        f"{RestartOptions.longest_exclusion_s:g})",
    )


def add_recovery_flags(group: argparse._ArgumentGroup) -> None:
    """Adds the flags of all jobs about failures, SIGTERM and restarts to a parser."""
    group.add_argument(
        "--max-restarts",
        type=int,
        metavar="N",
        help="start again so many times when a worker has failed (default: 0; 3 with "
        "--min-np or --host-discovery-script)",
    )
    group.add_argument(
        "--min-np",
        "--min-num-proc",
        type=int,
        metavar="M",
        help="go on with fewer workers, M at least, where the job fails twice on the same host, "
        "with no new step in between: without that host, or, if it is the only one, with a worker "
        "less (default: N, never fewer). With --host-discovery-script, as many workers have to be "
        "there (default: N)",
    )
    group.add_argument(
        "--stall-timeout",
        type=float,
        default=JobOptions.stall_timeout_s,
        metavar="S",
        help="kill a worker that makes no progress for S seconds after its first step, within fit, "
        "evaluate and predict, as one that has failed; the stacks of its threads are shown. Has "
        "to be more than the longest step, callback and save. In a loop by hand, from its first "
        "exchange of gradients on: a worker for which others wait so long, whatever it does "
        "meanwhile. 0 is never; whom the others wait for is told after a minute in any case "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--grace-period",
        type=float,
        default=JobOptions.grace_s,
        metavar="S",
        help="seconds that a training gets to save when SIGTERM has come, and any script to end at "
        "Ctrl-C, before it is killed, or another of these signals comes; "
        "workers whose peer has failed get one at most (default: %(default)s)",
    )

    group.add_argument(
        "--saved-status",
        type=_parse_status,
        default=SAVED_STATUS,
        metavar="N",
        help=f"end with N instead of {SAVED_STATUS}, that of a training that has saved at SIGTERM "
        "(and of any worker that ends with it), for engines that start again after some statuses "
        "only: 138 for Kubeflow's TFJob (default: %(default)s)",
    )


def read_restarts(arguments: argparse.Namespace) -> RestartOptions:
    """What follows a failure.

    Raises:
        LaunchError: a value is out of its range.
    """
    most = arguments.max_restarts
    shortest, longest = arguments.blacklist_cooldown_range or (
        RestartOptions.first_exclusion_s,
        RestartOptions.longest_exclusion_s,
    )
    return RestartOptions(
        max_restarts=arguments.reset_limit if most is None else most,
        min_workers=arguments.min_np,
        first_exclusion_s=shortest,
        longest_exclusion_s=longest,
    )


def read_elastic(arguments: argparse.Namespace) -> ElasticOptions | None:
    """How the number of workers follows the hosts; None without a discovery.

    Raises:
        LaunchError: a value is out of its range, or a flag doesn't go with a discovery.
    """
    if arguments.host_discovery_script is None:
        return None
    if arguments.hosts is not None or arguments.hostfile is not None:
        raise LaunchError(
            "-H (or --hostfile) names hosts, and --host-discovery-script finds them. HINT: give "
            "one of the two"
        )
    if arguments.dry_run or arguments.check:
        flag = "--dry-run" if arguments.dry_run else "--check"
        raise LaunchError(
            f"{flag} runs no --host-discovery-script. HINT: give the hosts that it prints as -H"
        )
    if not isinstance(arguments.num_proc or arguments.min_np, int):
        raise LaunchError(
            "how many workers does the job need? HINT: --min-np 2, or -np for as many at the first "
            "start"
        )
    slots = 1 if arguments.slots_per_host is None else arguments.slots_per_host
    if not 1 <= slots <= MAX_LAUNCHED_WORKERS:
        raise LaunchError(f"--slots-per-host is {slots}; it must be 1..{MAX_LAUNCHED_WORKERS}")
    first = arguments.num_proc or arguments.min_np
    given = {
        "timeout_s": arguments.elastic_timeout,
        "resize_interval_s": arguments.resize_interval,
    }
    return ElasticOptions(
        ScriptDiscovery(arguments.host_discovery_script, default_slots=slots),
        min_workers=arguments.min_np or first,
        max_workers=MAX_LAUNCHED_WORKERS if arguments.max_np is None else arguments.max_np,
        first_workers=first,
        reset_limit=arguments.reset_limit,
        **{name: value for name, value in given.items() if value is not None},
    )


def notices(arguments: argparse.Namespace) -> list[str]:
    """A line about flags that have no effect without a discovery."""
    given = [
        f"--{name.replace('_', '-')}"
        for name in _NEEDS_DISCOVERY
        if getattr(arguments, name) is not None
    ]
    if arguments.host_discovery_script is not None or not given:
        return []
    return [f"without effect: {', '.join(given)} (there is no --host-discovery-script)"]


def _parse_status(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 255:
        raise argparse.ArgumentTypeError(f"{text!r} is no exit status; it must be 1..255")
    return int(text)
