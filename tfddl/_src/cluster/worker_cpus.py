"""How many cores are a worker's own, so that nobody divides them a second time."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tfddl._src.cluster.detection import Detected, Source, choose
from tfddl._src.cluster.environments import slurm
from tfddl._src.cluster.variables import CORES, read_int
from tfddl._src.cpu import num_quota_cores

_MOST_CORES = 2**16


def read_cores(environ: Mapping[str, str]) -> int | None:
    """How many cores are this worker's own; None where its host's workers share what they may use.

    - TFDDL_CORES says so (`tfddlrun` sets it).
    - A Slurm task has the cores that it is bound to, or that `--cpus-per-task` asked for. It has
      to be one of those that train: a worker under `tfddlrun` in an allocation is none.
    - MPI's launchers may bind a rank to a core, a socket or nothing, and don't say so. Where the
      process that started this one may use more cores than it, this one was bound, and its own are
      its part of what the launcher has, as far as it may use them. A wrapper script in between
      hides that; cores are then divided as if nothing was bound.

    Args:
        environ: usually `os.environ`.

    Raises:
        ClusterError: TFDDL_CORES is no number above 0; or as `detect`.
    """
    if environ.get(CORES):
        return read_int(environ, CORES, low=1, high=_MOST_CORES)
    choice = choose(environ)
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
    """How many cores a process may run on; None where that can't be told."""
    try:
        return len(os.sched_getaffinity(process))
    except (AttributeError, OSError):
        return None
