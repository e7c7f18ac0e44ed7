"""Indicators of other processes: variables that are set where one of several was started.

A process that has one of them, and can't find the others, must not train by itself: each of them
would, and none would report it. TFDDL_ALONE=1 overrules all indicators.

- A size above 1 or a rank above 0 is an indicator. A size of 1 and a rank of 0 are none: launchers
  set them for single processes too, and they are left over in shells and notebooks.
- SLURM_NTASKS is none: it belongs to the allocation, in which the bare script of `sbatch`, or a
  shell of `salloc`, is one process. A rank (SLURM_PROCID) above 0 is one.
- JOB_COMPLETION_INDEX above 0 is one. 0 is none, since a Job of one pod has it too; where there
  are several, those above 0 refuse to start, and the Job fails.
- What isn't a number is none: other programs use names like RANK, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tfddl._src.cluster.environment_variables import ALONE
from tfddl._src.cluster.parsing import parse_int
from tfddl.errors import ClusterError

_ADDRESS = "set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in every process"
_MPI = "start the workers by mpirun, and see that it passes its variables on"
_SLURM = "start the workers by srun, as `srun python train.py`"
_NODES = "run `tfddlrun --nnodes N python train.py` on each of the N nodes"
_HOROVODRUN = "start the workers by tfddlrun instead of horovodrun"

# Each with its remedy. A size of 2, or a rank of 1, is the smallest that is an indicator.
_SIZES = {
    "OMPI_COMM_WORLD_SIZE": _MPI,
    "PMI_SIZE": _MPI,
    "MV2_COMM_WORLD_SIZE": _MPI,
    "JSM_NAMESPACE_SIZE": "set TFDDL_MASTER, RANK and WORLD_SIZE in every process",
    "FLUX_JOB_SIZE": "set TFDDL_MASTER to the host of rank 0",
    "HOROVOD_SIZE": _HOROVODRUN,
    "SLURM_STEP_NUM_TASKS": _SLURM,
    "WORLD_SIZE": _ADDRESS,
    "LOCAL_WORLD_SIZE": _ADDRESS,
    "PET_NNODES": _NODES,
    "TFDDL_NNODES": _NODES,
}
_RANKS = {
    "OMPI_COMM_WORLD_RANK": _MPI,
    "PMI_RANK": _MPI,
    "PMIX_RANK": _MPI,
    "PALS_RANKID": _MPI,
    "MV2_COMM_WORLD_RANK": _MPI,
    "JSM_NAMESPACE_RANK": "set TFDDL_MASTER, RANK and WORLD_SIZE in every process",
    "FLUX_TASK_RANK": "set TFDDL_MASTER to the host of rank 0",
    "HOROVOD_RANK": _HOROVODRUN,
    "SLURM_PROCID": _SLURM,
    "RANK": _ADDRESS,
    "LOCAL_RANK": _ADDRESS,
    "NODE_RANK": _ADDRESS,
    "PET_NODE_RANK": _NODES,
    "JOB_COMPLETION_INDEX": _NODES,
}


@dataclass(frozen=True)
class Indicator:
    """A variable that indicates other processes.

    Attributes:
        variable: its name.
        value: its value.
        hint: what to do where the others can't be found.
    """

    variable: str
    value: int
    hint: str


def find(environ: Mapping[str, str]) -> Indicator | None:
    """The first indicator that is set; None if none is."""
    for least, table in ((2, _SIZES), (1, _RANKS)):
        for name, hint in table.items():
            value = _number(environ.get(name, ""))
            if value is not None and value >= least:
                return Indicator(name, value, hint)
    return None


def refuse(environ: Mapping[str, str]) -> None:
    """Refuses to be a single worker where there is an indicator of others.

    Raises:
        ClusterError: it names the variable, what to do, and how to train alone nevertheless.
    """
    found = find(environ)
    if found is not None:
        raise ClusterError(
            f"{found.variable} is {found.value}: this process was started beside others, and its "
            "environment doesn't say how to find them. It doesn't train alone unless told to. "
            f"HINT: {found.hint}; or, where it is to train alone, set {ALONE}=1 or unset "
            f"{found.variable}"
        )


def _number(text: str) -> int | None:
    # "1:4" is torchrun's range of numbers of nodes; its end counts.
    try:
        return parse_int(text.rpartition(":")[2], what="", high=10**9)
    except ClusterError:
        return None
