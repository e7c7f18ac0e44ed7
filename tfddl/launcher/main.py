"""The door `tfddlrun -np N COMMAND…`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tfddl import __version__
from tfddl.errors import LaunchError
from tfddl.launcher.job import JobOptions, run_job
from tfddl.launcher.restarts import RestartOptions

_CANT_START = 127

_EPILOG = """\
Every worker runs the same command, and learns from TF_CONFIG who it is and where the others are.
Its output appears line by line with its rank in front. The first worker that fails ends the
others, and is the one reported. What follows COMMAND belongs to it, and is not touched.

With --max-restarts a job that fails starts again on other ports, with TFDDL_RESTARTS=1, 2, …; a
training with tfddl.callbacks.Checkpoint goes on from its newest checkpoint. With --min-np M it may
go on with fewer workers where one keeps failing. SIGTERM, to tfddlrun or to a worker, makes such a
training save at the next step, and end with status 75; the same command goes on from there.

exit status:
  0        all workers ended well
  75       SIGTERM has come, and the training is saved: the same command goes on
  N        the first worker that failed ended with N; 128 + N if signal N killed it (137 also for
           one that made no progress); with --max-restarts, of the last start
  128 + N  signal N ended the job: 130 for Ctrl-C, 143 for SIGTERM without a checkpoint
  127      the job could not be started
  2        a mistake in the arguments

examples:
  tfddlrun -np 2 python train.py --lr=0.1
  tfddlrun --horovod -np 4 python horovod_script.py
  tfddlrun -np 4 --output-filename logs python -m package.train --epochs 3
"""


def main(argv: Sequence[str], *, prog: str = "tfddlrun") -> int:
    """Runs a job as the arguments say, and returns the exit status."""
    parser = _make_parser(prog)
    arguments = parser.parse_args(argv)
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    try:
        options = JobOptions(
            num_workers=arguments.num_proc,
            command=tuple(command),
            grace_s=arguments.grace_period,
            stall_timeout_s=arguments.stall_timeout,
            restarts=RestartOptions(
                max_restarts=arguments.max_restarts, min_workers=arguments.min_np
            ),
            logs=arguments.output_filename,
            as_horovod=arguments.horovod,
            verbose=arguments.verbose,
        )
    except LaunchError as error:
        parser.error(str(error))
    try:
        return run_job(options, environment=os.environ)
    except LaunchError as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return _CANT_START


def run() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


def _make_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Run a command as several workers that train together, on this machine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s -np N [options] [--] COMMAND …",
        allow_abbrev=False,
    )
    parser.add_argument(
        "-np", "--num-proc", type=int, required=True, metavar="N", help="number of workers"
    )
    parser.add_argument(
        "--horovod",
        action="store_true",
        help="run a script written for Horovod: `import horovod` finds tfddl, and what scripts of "
        "the age of Keras 2 say is borne with",
    )
    parser.add_argument(
        "--output-filename",
        type=Path,
        metavar="DIR",
        help="also write every worker's whole output to DIR/rank.N/stdout and DIR/rank.N/stderr",
    )
    parser.add_argument(
        "--grace-period",
        type=float,
        default=JobOptions.grace_s,
        metavar="S",
        help="seconds that a training gets to save when SIGTERM has come, before it is killed; "
        "workers whose peer has failed get one at most (default: %(default)s)",
    )
    _add_recovery(parser)
    parser.add_argument("--verbose", action="store_true", help="tell more of what is done")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _add_recovery(parser: argparse.ArgumentParser) -> None:
    """What to do when a worker fails."""
    parser.add_argument(
        "--max-restarts",
        type=int,
        metavar="N",
        help="start again so many times when a worker has failed (default: 0; 3 with --min-np)",
    )
    parser.add_argument(
        "--min-np",
        type=int,
        metavar="M",
        help="go on with fewer workers, M at least, where the job fails twice in a row without a "
        "step that had not been done before (default: N, never fewer)",
    )
    parser.add_argument(
        "--stall-timeout",
        type=float,
        default=JobOptions.stall_timeout_s,
        metavar="S",
        help="kill a worker that makes no progress for S seconds after its first step, within fit, "
        "evaluate and predict, as one that has failed; the stacks of its threads are shown. Has "
        "to be more than the longest step, callback and save. 0 is never; whom the others wait "
        "for is told after a minute in any case (default: %(default)s)",
    )
