"""The door `tfddl-bench`."""

import argparse
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from tfddl import __version__
from tfddl._src.cpu import num_affinity_cores
from tfddl._src.launcher import host_flags
from tfddl._src.launcher.system import require_linux
from tfddl.bench.board import write_events
from tfddl.bench.ground import Address, Hosts, ThisMachine
from tfddl.bench.orders import Operation
from tfddl.bench.plots import write_pictures
from tfddl.bench.progress import Progress
from tfddl.bench.report import report
from tfddl.bench.results import Results, write_json
from tfddl.bench.settings import (
    Part,
    Settings,
    format_size,
    parse_size,
    quick_settings,
    usual_settings,
)
from tfddl.bench.speed import measure
from tfddl.bench.workloads import WORKLOADS
from tfddl.errors import DataError, TfddlError

_FAILED = 1
_INTERRUPTED = 130

T = TypeVar("T")

_EPILOG = """\
Workers keep to cores of their own, the same in all that is compared, and take turns; medians are
of neighbours in time. Let nothing else run meanwhile: what others keep busy is measured and said.
Progress goes to stderr, the tables to stdout.

other hosts:
  What holds for tfddlrun -H holds here: ssh that asks nothing, and the same folder, Python and
  tfddl at the same paths. Workers take orders from this machine through a TCP port, which they must
  be able to reach (--address); who doesn't know the secret of the run isn't let in. Meanwhile
  TensorFlow's servers on the hosts listen on all interfaces, as they do for tfddlrun. All that is
  compared, the lone workers too, runs on the same hosts, and each machine's load is watched.

examples:
  tfddl-bench --quick
  tfddl-bench --workers 1,2,4 --compare --json bench.json --plots bench
  tfddl-bench --only collectives --sizes 4K,1M,64M --operations allreduce,allgather,broadcast
  tfddl-bench -H hostA:2,hostB:2
"""


def main(argv: Sequence[str], *, prog: str = "tfddl-bench") -> int:
    """Measures as the arguments say, and returns the exit status."""
    progress = Progress()
    try:
        settings = settings_from(argv, prog=prog, num_cores=num_affinity_cores())
        require_linux(prog)
        results = measure(settings, environment=os.environ, progress=progress)
        sys.stdout.write(report(results) + "\n")
        _write_files(results, settings, progress)
    except KeyboardInterrupt:
        sys.stderr.write(f"{prog}: interrupted; all workers are ended\n")
        return _INTERRUPTED
    except (TfddlError, OSError) as error:
        sys.stderr.write(f"{prog}: {type(error).__name__}: {error}\n")
        return _FAILED
    return 0


def run() -> None:
    """The console script."""
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main(sys.argv[1:]))


def _end(number: int, _: object) -> None:
    """Ends all workers, as whatever raises does."""
    sys.exit(128 + number)


def settings_from(argv: Sequence[str], *, prog: str, num_cores: int) -> Settings:
    """Reads the arguments.

    Args:
        argv: Without the command itself.
        prog: The command.
        num_cores: How many there are to share out.

    Raises:
        DataError: A value is out of its range.
        LaunchError: The hosts' names or slots, or how they are reached, are wrong.
        SystemExit: An argument is unknown or can't be read, or --help was asked for.
    """
    here = ThisMachine()
    arguments = _make_parser(prog, usual_settings(here, num_cores)).parse_args(argv)
    ground = _read_ground(arguments) or here
    usual = quick_settings(ground) if arguments.quick else usual_settings(ground, num_cores)
    given = {
        name: value
        for name, value in vars(arguments).items()
        if value is not None and value is not False
    }
    shape = {name: given[name] for name in ("batch_size", "image_size") if name in given}
    models = given.get("models", usual.models)
    given["models"] = tuple(dataclasses.replace(workload, **shape) for workload in models)
    names = {field.name for field in dataclasses.fields(Settings)}
    return dataclasses.replace(usual, **{name: given[name] for name in names & set(given)})


def _read_ground(arguments: argparse.Namespace) -> Hosts | None:
    hosts = host_flags.read_hosts(arguments)
    if not hosts:
        if arguments.address is not None:
            raise DataError("--address is for hosts. HINT: -H hostA:2,hostB:2")
        return None
    fleet = host_flags.make_fleet(hosts, arguments)
    return Hosts(
        hosts=hosts,
        reach=host_flags.repeat(arguments),
        python=fleet.ssh.remote_python,
        connect_s=fleet.connect_s,
        address=None if arguments.address is None else Address.parse(arguments.address),
    )


def _write_files(results: Results, settings: Settings, progress: Progress) -> None:
    if settings.json is not None:
        write_json(results, settings.json)
        progress.say(f"wrote {settings.json}")
    if settings.plots is not None:
        for path in write_pictures(results, settings.plots):
            progress.say(f"wrote {path}")
    if settings.logdir is not None:
        write_events(results, settings.logdir, environment=os.environ)
        progress.say(f"wrote what TensorBoard shows: tensorboard --logdir {settings.logdir}")


def _make_parser(prog: str, usual: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Measure tfddl on this machine, or on hosts: collectives by size; training "
        "steps of several workers, against as many lone ones at once; the start; memory.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _add_where(parser.add_argument_group("where"), usual)
    _add_what(parser.add_argument_group("what is measured"), usual)
    _add_how(parser.add_argument_group("how long"), usual)
    output = parser.add_argument_group("output, beside the tables")
    output.add_argument("--json", type=Path, metavar="FILE", help="all numbers")
    output.add_argument(
        "--plots",
        type=Path,
        metavar="DIR",
        help="charts (PNG): bandwidth over size, efficiency over workers",
    )
    output.add_argument(
        "--logdir", type=Path, metavar="DIR", help="the same, and the tables, for TensorBoard"
    )
    return parser


def _add_where(group: argparse._ArgumentGroup, usual: Settings) -> None:
    group.add_argument(
        "--workers",
        type=_list_of(int, ["whole numbers"]),
        metavar="NUMBERS",
        help="jobs of how many workers; more than cores share them. On hosts they are dealt out "
        "round by round, one to each host that has room "
        f"(default here: {_join(usual.workers)}; on hosts one per host, and one for each slot)",
    )
    host_flags.add_flags(group)
    group.add_argument(
        "--address",
        metavar="HOST[:PORT]",
        help="where hosts find the machine that this runs on, to take orders (default: its address "
        "on the way to each of them, and a port that is free)",
    )


def _add_what(group: argparse._ArgumentGroup, usual: Settings) -> None:
    group.add_argument(
        "--only",
        type=_list_of(Part, Part),
        metavar="PARTS",
        help=f"some of {_join(Part)} (default: all; training measures memory, too)",
    )
    group.add_argument(
        "--models",
        type=_list_of(WORKLOADS.__getitem__, WORKLOADS),
        metavar="NAMES",
        help="what is trained: "
        + "; ".join(f"{name} ({w.describe()})" for name, w in WORKLOADS.items())
        + f" (default: {_join(workload.model for workload in usual.models)})",
    )
    group.add_argument("--image-size", type=int, metavar="PIXELS", help="of all models")
    group.add_argument("--batch-size", type=int, metavar="N", help="per worker, of all models")
    group.add_argument(
        "--operations",
        type=_list_of(Operation, Operation),
        metavar="NAMES",
        help=f"some of {_join(Operation)} (default: {_join(usual.operations)})",
    )
    group.add_argument(
        "--sizes",
        type=_list_of(parse_size, ["sizes such as 4096, 64K or 16M"]),
        metavar="SIZES",
        help="bytes of a rank's tensor (default: "
        f"{_join(format_size(size) for size in usual.sizes)})",
    )
    group.add_argument(
        "--transports",
        type=_list_of(str, ["names"]),
        metavar="NAMES",
        help="what tfddl.init(collective=…) takes (default: auto, and all that differ from it)",
    )
    group.add_argument(
        "--compare",
        action="store_true",
        help="measure TensorFlow's plain strategy, in a loop by hand, as well",
    )


def _add_how(group: argparse._ArgumentGroup, usual: Settings) -> None:
    group.add_argument(
        "--quick", action="store_true", help="the least that tells something: under a minute"
    )
    group.add_argument(
        "--rounds", type=int, metavar="N", help=f"turns of each (default: {usual.rounds})"
    )
    group.add_argument(
        "--round-seconds",
        type=float,
        metavar="S",
        help="how long a turn of training takes about; one of a kind of collective takes a tenth "
        f"(default: {usual.round_seconds})",
    )
    group.add_argument("--starts", type=int, metavar="N", help=f"of each (default: {usual.starts})")


def _list_of(kind: Callable[[str], T], expected: Iterable[str]) -> Callable[[str], tuple[T, ...]]:
    """What reads words between commas.

    Args:
        kind: Reads one word.
        expected: What there can be, for messages.
    """

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
