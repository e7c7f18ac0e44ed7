"""The command line of `tfddl-bench`."""

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from tfddl import __version__
from tfddl._src.command_line import accept_underscores
from tfddl._src.launcher import host_flags
from tfddl.bench.config import SIZES, Config, Part
from tfddl.bench.targets import Target
from tfddl.errors import DataError, LaunchError

_QUICK_SIZES = SIZES[0], 2**20, SIZES[-1]
_SCALING_SIZES, _SCALING_WORKERS = (2**12, 2**24), (2, 4, 8, 16, 32, 64)

_EPILOG = """\
All that is compared takes turns in the same workers, with its baseline. Let nothing else run
meanwhile: what others keep busy is measured and reported. Progress goes to stderr, the tables to
stdout. --in-job measures collectives and training within the job that this process is a worker of,
whatever has started it; rank 0 prints. For hosts, what holds for tfddlrun -H holds here.

examples:
  tfddl-bench --quick
  tfddl-bench --workers 1,2,4 --compare --json bench.json --plots charts
  tfddl-bench --diff before.json after.json
  tfddl-bench --only collectives --sizes 4K,1M,64M --operations allreduce,allgather,broadcast
  tfddl-bench --only training --models mlp100k,lstm,transformer,embedding --styles fit,loop
  tfddl-bench --only reading --workers 1,2,4 --file-size 2G
  tfddl-bench --only scaling
  tfddl-bench -H hostA:2,hostB:2
  tfddl-bench -H hostA:1,hostB:1 --compare --between-hosts ring
  srun --ntasks=4 tfddl-bench --in-job --compare
"""


def make_parser(prog: str) -> argparse.ArgumentParser:
    """Flags that aren't given are not in what it parses."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Measure tfddl on this machine, or on hosts: collectives by size; training "
        "steps of several workers, against as many plain Keras processes at once; start; memory.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(
        "--quick", action="store_true", help="the least that tells something: about a minute"
    )
    parser.add_argument(
        "--in-job", action="store_true", help="measure in the job that this is a worker of"
    )
    parser.add_argument(
        "--diff",
        nargs=2,
        type=Path,
        metavar=("BEFORE", "AFTER"),
        help="measure nothing; compare the ratios of two files of --json",
    )
    host_flags.add_flags(parser.add_argument_group("hosts, by ssh or srun"))
    group = parser.add_argument_group("what is measured, how long, and output beside the tables")
    # The documentation of a field is its help: a name, a colon, and lines that are indented more.
    documented = dict(re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", Config.__doc__ or "", re.M))
    for field in dataclasses.fields(Config):
        flag = f"--{field.name.replace('_', '-')}"
        text = documented.get(field.name, "")
        group.add_argument(flag, default=argparse.SUPPRESS, help=text, **field.metadata)
    return accept_underscores(parser)


def read_target(arguments: argparse.Namespace) -> Target:
    """Where to measure; raises LaunchError where hosts' names, slots or ssh's flags are wrong."""
    if not (hosts := host_flags.read_hosts(arguments)):
        if arguments.launcher == host_flags.SLURM:
            raise LaunchError(
                "--launcher slurm reaches hosts, and none are named. HINT: -H n1:1,n2:1"
            )
        return Target()
    python = host_flags.make_fleet(hosts, arguments).starter.remote_python
    return Target(hosts=hosts, reach=host_flags.repeat(arguments), python=python)


def read_config(arguments: argparse.Namespace, *, workers: Sequence[int] = (2,)) -> Config:
    """What to measure; with jobs of how many workers, where the user names none."""
    usual = Config(workers=tuple(workers))
    if arguments.quick:
        usual = dataclasses.replace(
            usual, sizes=_QUICK_SIZES, models=("unet",), rounds=2, round_seconds=1.5, starts=1
        )
    names = {field.name for field in dataclasses.fields(Config)} & set(vars(arguments))
    given = {name: getattr(arguments, name) for name in names}
    if given.get("only") == (Part.SCALING,):
        counts = (2, 8) if arguments.quick else _SCALING_WORKERS
        usual = dataclasses.replace(usual, workers=counts, sizes=_SCALING_SIZES)
    return dataclasses.replace(usual, **given)


def check_target(config: Config, target: Target) -> None:
    """Raises DataError or LaunchError where that can't be measured there."""
    for num_workers in config.workers:
        target.layout(num_workers)
    here_only = {Part.READING, Part.FEEDING, Part.SCALING} & set(config.only)
    if target.hosts and here_only:
        raise DataError(f"--only {here_only.pop()} is measured on this machine. HINT: leave -H out")
