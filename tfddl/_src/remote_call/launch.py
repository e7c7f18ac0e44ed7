"""The launcher of `tfddl.run`: reads a pickled `JobOptions`, and runs the job as `tfddlrun` does.

A process of its own, since the launcher may have no threads and no other children.
"""

import os
import pickle
import sys

from tfddl._src.launcher import JobOptions, run_job
from tfddl._src.launcher.agent_starter import import_paths
from tfddl._src.launcher.guard import die_with_caller
from tfddl.errors import LaunchError

_CANT_START = 127


def command(caller: int) -> tuple[str, ...]:
    """The command line.

    Args:
        caller: the process with whose end the job ends.
    """
    load = (
        f"import sys;sys.path[:0]={import_paths()!r};from tfddl._src.remote_call.launch import run"
    )
    return (sys.executable, "-P", "-c", f"{load};run({caller})")


def run(caller: int) -> None:
    """The entry point."""
    die_with_caller(caller)
    options: JobOptions = pickle.load(sys.stdin.buffer)
    try:
        sys.exit(run_job(options, environment=os.environ))
    except LaunchError as error:
        assert options.call is not None
        options.call.report_problem(str(error))
        sys.exit(_CANT_START)
