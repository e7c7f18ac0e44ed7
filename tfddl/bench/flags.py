"""The command line of `tfddl-bench`."""

import argparse
import dataclasses
import re

from tfddl import __version__
from tfddl._src.command_line import accept_underscores
from tfddl._src.launcher import host_flags
from tfddl.bench.config import SIZES, Config, Part
from tfddl.bench.targets import Target
from tfddl.errors import DataError

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
    host_flags.add_flags(parser.add_argument_group("hosts, by ssh"))
    group = parser.add_argument_group("what is measured, how long, and output beside the tables")
    # The documentation of a field is its help: a name, a colon, and lines that are indented more.
    documented = dict(re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", Config.__doc__ or "", re.M))
    for field in dataclasses.fields(Config):
        flag = f"--{field.name.replace('_', '-')}"
        text = documented.get(field.name, "")
        group.add_argument(flag, default=argparse.SUPPRESS, help=text, **field.metadata)
    return accept_underscores(parser)


def read(arguments: argparse.Namespace, *, num_cores: int) -> tuple[Config, Target]:
    """What to measure, and where.

    Args:
        arguments: Of `make_parser`.
        num_cores: How many this process may use.

    Raises:
        DataError: A value is out of its range.
        LaunchError: The hosts' names or slots, or how they are reached, are wrong.
    """
    target = Target()
    if hosts := host_flags.read_hosts(arguments):
        python = host_flags.make_fleet(hosts, arguments).ssh.remote_python
        target = Target(hosts=hosts, reach=host_flags.repeat(arguments), python=python)
    usual = quick(target) if arguments.quick else Config(workers=target.usual_workers(num_cores))
    names = {field.name for field in dataclasses.fields(Config)} & set(vars(arguments))
    config = dataclasses.replace(usual, **{name: getattr(arguments, name) for name in names})
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
        models=("unet",),
        rounds=2,
        round_seconds=1.5,
        starts=1,
    )
