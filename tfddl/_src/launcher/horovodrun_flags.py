"""The flags of `horovodrun` that `tfddlrun` has no equivalent of."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from tfddl import __version__
from tfddl._src.launcher import config_file
from tfddl._src.launcher.doctor_probe import installed_version
from tfddl._src.launcher.environment import Export
from tfddl.errors import LaunchError

_VARIABLES = MappingProxyType(
    {
        "stall_check_warning_time_seconds": "HOROVOD_STALL_CHECK_TIME_SECONDS",
        "stall_check_shutdown_time_seconds": "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS",
        "no_stall_check": "HOROVOD_STALL_CHECK_DISABLE",
        "timeline_filename": "HOROVOD_TIMELINE",
        "fusion_threshold_mb": "HOROVOD_FUSION_THRESHOLD",
    }
)
"""What Horovod's `init` reads, by the flags that say it."""

_MPI = "there is no MPI: tfddlrun starts the workers by itself, on other hosts by ssh"
_REFUSED = MappingProxyType(
    {
        "--mpi": f"{_MPI}. HINT: leave it out",
        "--mpi-args": f"{_MPI}. HINT: leave it out",
        "--tcp": f"{_MPI}. HINT: leave it out",
        "--binding-args": "there is no MPI to bind. HINT: --bind cores or --bind none",
        "--jsrun": "there is no jsrun. HINT: start the script with srun, or with tfddlrun -H",
    }
)
"""Flags whose absence would change the job, and what to use instead."""

_SWITCHES = frozenset({"--mpi", "--tcp", "--jsrun"})

_TRAVEL = "tensors are fused, and sent by the fastest backend, without tuning"
_NO_EFFECT: Mapping[str, tuple[int, str]] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "--hierarchical-allreduce --no-hierarchical-allreduce --hierarchical-allgather "
                "--no-hierarchical-allgather --torus-allreduce --no-torus-allreduce --autotune "
                "--no-autotune"
            ).split(),
            (0, _TRAVEL),
        ),
        **dict.fromkeys(
            (
                "--cycle-time-ms --cache-capacity --autotune-log-file "
                "--autotune-warmup-samples --autotune-steps-per-sample "
                "--autotune-bayes-opt-max-samples --autotune-gaussian-process-noise "
                "--num-nccl-streams"
            ).split(),
            (1, _TRAVEL),
        ),
        **dict.fromkeys(
            ("--timeline-mark-cycles", "--no-timeline-mark-cycles"), (0, "there are no cycles")
        ),
        **dict.fromkeys(("--gloo", "--mpi-threads-disable", "--no-mpi-threads-disable"), (0, _MPI)),
        "--gloo-timeout-seconds": (1, _MPI),
        "--disable-cache": (0, "nothing is cached"),
        "--thread-affinity": (1, "--bind says which cores a worker may use"),
        "--log-level": (1, "TF_CPP_MIN_LOG_LEVEL is TensorFlow's"),
        **dict.fromkeys(
            (
                "--log-with-timestamp --log-without-timestamp --log-hide-timestamp "
                "--no-log-hide-timestamp -prefix-timestamp --prefix-output-with-timestamp"
            ).split(),
            (0, "lines have their ranks in front, and no times"),
        ),
    }
)
"""Flags that are accepted without effect: how many values they take, and why."""

_BUILD = """\
tfddl v{version}, instead of Horovod:

Available Frameworks:
    [{mark}] {tensorflow}
    [ ] PyTorch
    [ ] MXNet

Available Controllers:
    [ ] MPI
    [X] tfddl's rendezvous (Unix sockets, TCP), instead of Gloo

Available Tensor Operations:
    [X] shared memory, between the workers of a CPU host
    [X] TCP, between CPU hosts
    [X] RING, TensorFlow's collectives for CPUs
    [?] NCCL, where TensorFlow sees a GPU for each worker; tfddlrun --check says
    [ ] DDL
    [ ] CCL
    [ ] MPI"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags, those with an effect in a group of their own."""
    group = parser.add_argument_group(
        "as horovodrun has them, for scripts that call Horovod's init"
    )
    group.add_argument(
        "-cb", "--check-build", action="store_true", help="say what is there, and start nothing"
    )
    switch = group.add_mutually_exclusive_group()
    switch.add_argument(
        "--stall-check",
        dest="no_stall_check",
        action="store_false",
        default=None,
        help="warn of ranks that haven't called an operation (the default)",
    )
    switch.add_argument(
        "--no-stall-check",
        action="store_true",
        default=None,
        help="don't warn of them",
    )
    group.add_argument(
        "--stall-check-warning-time-seconds",
        type=float,
        metavar="S",
        help="after how long to warn (default: 60)",
    )
    group.add_argument(
        "--stall-check-shutdown-time-seconds",
        type=float,
        metavar="S",
        help="after how long the operation fails; 0 is never (default: never for a rank that is "
        "busy, 600 where ranks wait for each other in different operations)",
    )
    group.add_argument(
        "--config-file",
        type=Path,
        metavar="FILE",
        help="flags as Horovod's YAML files have them; those on the command line come first",
    )
    group.add_argument(
        "--timeline-filename", metavar="FILE", help="write a trace of all collectives"
    )
    group.add_argument(
        "--fusion-threshold-mb",
        type=int,
        metavar="MB",
        help="how much is sent together; 0 is each tensor alone (default: 16, or everything where "
        "a worker has one core)",
    )
    for flag in _REFUSED:
        action = "store_true" if flag in _SWITCHES else "store"
        group.add_argument(flag, action=action, help=argparse.SUPPRESS)
    for flag, (count, _) in _NO_EFFECT.items():
        group.add_argument(
            flag,
            dest="without_effect",
            action=_Noted,
            nargs=count,
            default=[],
            help=argparse.SUPPRESS,
        )


class _Noted(argparse.Action):
    """Remembers that a flag was given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        namespace.without_effect = [*namespace.without_effect, self.option_strings[0]]


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line, and before it the file that its --config-file names."""
    arguments = parser.parse_args(argv)
    if arguments.config_file is None:
        return arguments
    try:
        flags = config_file.read_flags(arguments.config_file)
    except LaunchError as error:
        parser.error(str(error))
    if arguments.no_stall_check is not None:  # argparse would refuse both.
        flags = [flag for flag in flags if flag not in ("--stall-check", "--no-stall-check")]
    return parser.parse_args([*flags, *argv])


def translate(arguments: argparse.Namespace) -> None:
    """Takes a flag of ours that isn't given from the one of Horovod that stands for it."""
    if arguments.start_timeout is None and arguments.host_discovery_script is None:
        arguments.start_timeout = arguments.elastic_timeout


def refuse(arguments: argparse.Namespace) -> None:
    """Refuses what can't be done.

    Raises:
        LaunchError: such a flag is given, or a time isn't one.
    """
    for flag, instead in _REFUSED.items():
        if getattr(arguments, flag.removeprefix("--").replace("-", "_")):
            raise LaunchError(f"{flag} isn't supported: {instead}")
    for name in ("stall_check_warning_time_seconds", "stall_check_shutdown_time_seconds"):
        value = getattr(arguments, name)
        if value is not None and not 0 <= value < float("inf"):
            flag = f"--{name.replace('_', '-')}"
            raise LaunchError(f"{flag} is {value}; it must be 0 (never) or more seconds")
    if (arguments.fusion_threshold_mb or 0) < 0:
        raise LaunchError(
            f"--fusion-threshold-mb is {arguments.fusion_threshold_mb}; it must be 0 or more"
        )


def notices(arguments: argparse.Namespace) -> list[str]:
    """A line for each reason why flags that were given have no effect."""
    by_reason: dict[str, list[str]] = {}
    for flag in dict.fromkeys(arguments.without_effect):
        by_reason.setdefault(_NO_EFFECT[flag][1], []).append(flag)
    return [f"without effect: {', '.join(flags)} ({why})" for why, flags in by_reason.items()]


def exports(arguments: argparse.Namespace) -> tuple[Export, ...]:
    """Environment variables by which Horovod's `init` gets these flags."""
    given = {name: getattr(arguments, name) for name in _VARIABLES}
    if given["no_stall_check"] is not None:
        given["no_stall_check"] = int(given["no_stall_check"])
    if given["fusion_threshold_mb"] is not None:
        given["fusion_threshold_mb"] *= 2**20
    return tuple(
        Export(_VARIABLES[name], str(value)) for name, value in given.items() if value is not None
    )


def describe_build() -> str:
    """The output of `--check-build`."""
    tensorflow = installed_version("TensorFlow")
    return _BUILD.format(
        version=__version__,
        mark=" " if tensorflow is None else "X",
        tensorflow="TensorFlow" if tensorflow is None else f"TensorFlow {tensorflow}",
    )
