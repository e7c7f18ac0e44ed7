"""The flags of `tfddl-bench`."""

import argparse
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from tfddl import __version__
from tfddl._src.cpu import num_affinity_cores
from tfddl._src.launcher import host_flags
from tfddl.bench.config import (
    EXAMPLE_BYTES,
    SIZES,
    Config,
    Operation,
    Order,
    Part,
    Style,
    format_size,
    parse_size,
)
from tfddl.bench.targets import Target
from tfddl.bench.workloads import WORKLOADS
from tfddl.errors import DataError

T = TypeVar("T")

_STYLES = {style.value: style for style in (Style.OPTIMIZER, Style.SCOPE)}

_EPILOG = """\
All that is compared takes turns in the same workers, with its baseline; medians are of neighbours
in time. Let nothing else run meanwhile: what others keep busy is measured and reported. Progress
goes to stderr, the tables to stdout.

other hosts:
  What holds for tfddlrun -H holds here: ssh that asks nothing, and the same folder, Python and
  tfddl at the same paths. Where they are measured, TensorFlow's servers listen on all interfaces of
  the hosts meanwhile. The plain Keras processes run on the same hosts, and each machine's load is
  watched. One TCP stream is measured, too, and what leaves each host in a step.

in a job:
  --in-job measures within the job that this process is a worker of, whatever has started it, what
  one job can: collectives and training. Rank 0 prints.

examples:
  tfddl-bench --quick
  tfddl-bench --workers 1,2,4 --compare --json bench.json --plots charts
  tfddl-bench --only collectives --sizes 4K,1M,64M --operations allreduce,allgather,broadcast
  tfddl-bench --only reading --workers 1,2,4 --file-size 2G
  tfddl-bench -H hostA:2,hostB:2
  tfddl-bench -H hostA:1,hostB:1 --compare --between-hosts ring --pieces 1,4,16
  srun --ntasks=4 tfddl-bench --in-job --compare
"""


def make_parser(prog: str) -> argparse.ArgumentParser:
    """Flags that aren't given are None or False."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Measure tfddl on this machine, or on hosts: collectives by size; training "
        "steps of several workers, against as many plain Keras processes at once; start; memory.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _add_where(parser.add_argument_group("where"))
    _add_what(parser.add_argument_group("what is measured"))
    _add_how(parser.add_argument_group("how long"))
    _add_output(parser.add_argument_group("output, beside the tables"))
    return parser


def read(arguments: argparse.Namespace, *, num_cores: int) -> tuple[Config, Target]:
    """What to measure, and where.

    Args:
        arguments: Of `make_parser`.
        num_cores: How many this process may use.

    Raises:
        DataError: A value is out of its range.
        LaunchError: The hosts' names or slots, or how they are reached, are wrong.
    """
    target = _read_target(arguments)
    usual = quick(target) if arguments.quick else Config(workers=target.usual_workers(num_cores))
    asked = vars(arguments).items()
    given = {name: value for name, value in asked if value is not None and value is not False}
    shape = {name: given[name] for name in ("batch_size", "image_size") if name in given}
    models = given.get("models", usual.models)
    given["models"] = tuple(dataclasses.replace(workload, **shape) for workload in models)
    given["file_batch_size"] = given.get("batch_size", usual.file_batch_size)
    names = {field.name for field in dataclasses.fields(Config)} & set(given)
    config = dataclasses.replace(usual, **{name: given[name] for name in names})
    for num_workers in config.workers:
        target.layout(num_workers)
    if target.hosts and Part.READING in config.only:
        raise DataError("--only reading is measured on this machine. HINT: leave -H out")
    return config, target


def quick(target: Target) -> Config:
    """What ``--quick`` measures: enough to see whether all is well."""
    return Config(
        workers=(target.fewest_workers,),
        sizes=(SIZES[0], 2**20, SIZES[-1]),
        models=(WORKLOADS["unet"],),
        rounds=2,
        round_seconds=1.5,
        starts=1,
    )


def _read_target(arguments: argparse.Namespace) -> Target:
    hosts = host_flags.read_hosts(arguments)
    if not hosts:
        return Target()
    python = host_flags.make_fleet(hosts, arguments).ssh.remote_python
    return Target(hosts=hosts, reach=host_flags.repeat(arguments), python=python)


def _add_where(group: argparse._ArgumentGroup) -> None:
    here = Target().usual_workers(num_affinity_cores())
    group.add_argument(
        "--workers",
        type=_list_of(int, ["whole numbers"]),
        metavar="NUMBERS",
        help="jobs of how many workers; more than cores share them. On hosts they are dealt out "
        f"round by round, one to each host that has room (default here: {_join(here)}; on hosts "
        "one per host, and one for each slot)",
    )
    host_flags.add_flags(group)
    group.add_argument(
        "--in-job", action="store_true", help="measure in the job that this is a worker of"
    )


def _add_what(group: argparse._ArgumentGroup) -> None:
    usual = Config(workers=(1,))
    models = "; ".join(f"{name} ({w.describe()})" for name, w in WORKLOADS.items())
    listed: list[tuple[str, Any, str, str]] = [
        (
            "--only",
            _list_of(Part, Part),
            "PARTS",
            f"some of {_join(Part)} (default: all but reading; start measures memory, too)",
        ),
        (
            "--models",
            _list_of(WORKLOADS.__getitem__, WORKLOADS),
            "NAMES",
            f"what is trained: "
            f"{models} (default: {_join(workload.model for workload in usual.models)})",
        ),
        ("--image-size", int, "PIXELS", "of all models"),
        ("--batch-size", int, "N", "examples per worker and step"),
        (
            "--styles",
            _list_of(_STYLES.__getitem__, _STYLES),
            "NAMES",
            "how it is trained with tfddl: optimizer "
            "(fit with DistributedOptimizer), scope (fit under tfddl.strategy().scope()) (default: "
            f"{_join(usual.styles)})",
        ),
        (
            "--operations",
            _list_of(Operation, Operation),
            "NAMES",
            f"some of {_join(Operation)} (default: {_join(usual.operations)})",
        ),
        (
            "--sizes",
            _list_of(parse_size, ["sizes such as 4096, 64K or 16M"]),
            "SIZES",
            f"bytes of a rank's tensor (default: {_join(map(format_size, usual.sizes))})",
        ),
        (
            "--transports",
            _list_of(str, ["names"]),
            "NAMES",
            "what tfddl.init(collective=…) takes (default: auto, and all that differ from it)",
        ),
        ("--between-hosts", str, "NAME", "what tfddl.init(between_hosts=…) takes"),
        (
            "--pieces",
            _list_of(int, ["whole numbers"]),
            "NUMBERS",
            "what tfddl.init(pieces=…) takes, each for itself; only RING and NCCL have pieces",
        ),
        (
            "--file-size",
            parse_size,
            "SIZE",
            f"of the .npy of examples of {EXAMPLE_BYTES} bytes "
            "that --only reading reads, removed at the end (default: 2 GB)",
        ),
        ("--file-dir", Path, "DIR", "where it is (default: the system's for such)"),
        (
            "--orders",
            _list_of(Order, Order),
            "NAMES",
            "how it is read: by shard_dataset in global "
            "or block order, or the worker's block held as an array (default: all)",
        ),
    ]
    _add_all(group, listed)
    group.add_argument(
        "--compare",
        action="store_true",
        help="measure TensorFlow's plain strategy, in a loop by hand, as well",
    )


def _add_how(group: argparse._ArgumentGroup) -> None:
    usual = Config(workers=(1,))
    group.add_argument(
        "--quick", action="store_true", help="the least that tells something: about a minute"
    )
    _add_all(
        group,
        [
            ("--rounds", int, "N", f"turns of each (default: {usual.rounds})"),
            (
                "--round-seconds",
                float,
                "S",
                "how long a turn of training takes about; one of a kind of "
                f"collective takes a tenth (default: {usual.round_seconds})",
            ),
            (
                "--starts",
                int,
                "N",
                "of one plain process, and of the job that tfddl chooses; with more "
                f"than one, other transports are started once, too (default: {usual.starts})",
            ),
        ],
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    _add_all(
        group,
        [
            ("--json", Path, "FILE", "all numbers"),
            (
                "--plots",
                Path,
                "DIR",
                "charts (PNG): bandwidth over size, efficiency over workers; "
                "needs matplotlib: pip install 'tfddl[plots]'",
            ),
            (
                "--logdir",
                Path,
                "DIR",
                "curves and tables for TensorBoard; the charts, too, where there is matplotlib",
            ),
        ],
    )


def _add_all(group: argparse._ArgumentGroup, listed: Iterable[tuple[str, Any, str, str]]) -> None:
    """Adds flags that take a value: name, what reads it, its metavar, help."""
    for flag, kind, metavar, text in listed:
        group.add_argument(flag, type=kind, metavar=metavar, help=text)


def _list_of(kind: Callable[[str], T], expected: Iterable[str]) -> Callable[[str], tuple[T, ...]]:
    """What reads words between commas; `expected` is what there can be, for messages."""

    def read(text: str) -> tuple[T, ...]:
        words = [word.strip() for word in text.split(",") if word.strip()]
        try:
            return tuple(kind(word) for word in words)
        except (ValueError, KeyError):
            raise argparse.ArgumentTypeError(
                f"{text!r}; expected, with commas between: {_join(expected)}"
            ) from None

    return read


def _join(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
