"""How many cores are a worker's own, and aren't to be divided among its host's workers again."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tfddl._src.cluster.detection import Detected, Source, detect_source
from tfddl._src.cluster.environment_variables import CORES, read_int
from tfddl._src.cluster.environments import slurm
from tfddl._src.cpu import num_quota_cores

_MOST_CORES = 2**16


def read_cores(environ: Mapping[str, str]) -> int | None:
    """How many cores are this worker's own; None where its host's workers share theirs.

    - TFDDL_CORES, which `tfddlrun` sets.
    - A Slurm task has the cores that it is bound to, or that `--cpus-per-task` asked for. Only
      where the task is a worker: a worker of `tfddlrun` within an allocation is none.
    - MPI's launchers may bind a rank to a core, a socket or nothing, and don't say which. Where the
      parent process may use more cores than this one, this one was bound: its own are its part of
      the parent's cores, as far as it may use them. A wrapper script in between hides the
      binding; cores are then divided as if there was none.

    Args:
        environ: usually `os.environ`.

    Raises:
        ClusterError: TFDDL_CORES is no number above 0; or as `detect`.
    """
    if environ.get(CORES):
        return read_int(environ, CORES, low=1, high=_MOST_CORES)
    choice = detect_source(environ)
    own = _own(choice, environ)
    local_size = (choice.task.local_size if choice.task else None) or 1
    return None if own is None else min(own, num_quota_cores(among=local_size))


def _own(choice: Detected, environ: Mapping[str, str]) -> int | None:
    usable = _num_usable(0)
    if usable is None:
        return None
    if choice.source is Source.SLURM:
        return slurm.find_task_cores(environ, usable=usable)
    if choice.source is Source.MPI and choice.task and choice.task.local_size:
        launchers = _num_usable(os.getppid())
        if launchers is not None and usable < launchers:
            return max(1, min(usable, launchers // choice.task.local_size))
    return None


def _num_usable(process: int) -> int | None:
    """How many cores a process may run on; None where that isn't known."""
    try:
        return len(os.sched_getaffinity(process))
    except (AttributeError, OSError):  # macOS; or the process has ended, or isn't visible.
        return None
