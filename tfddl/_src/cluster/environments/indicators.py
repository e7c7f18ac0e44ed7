"""Signs of other processes: variables that only a process among several has.

A process that sees one of them, and can't find the others, must not train alone: each of them
would, and none would say so. What follows is decided here, and no false alarm is left without a
way out (TFDDL_ALONE=1):

- A size above 1 or a rank above 0 is a sign. A size of 1 or a rank of 0 is none: launchers set
  them for single processes too, and they stay behind in shells and notebooks.
- SLURM_NTASKS is none: it belongs to the allocation, and the bare script of `sbatch`, or a shell
  of `salloc`, is one process there. A rank (SLURM_PROCID) above 0 is one.
- JOB_COMPLETION_INDEX above 0 is one. 0 is none, since a Job of one pod has it too; where there
  are several, those above 0 refuse, and the Job fails.
- What isn't a number is none: RANK and its like are common words, which others use too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tfddl._src.cluster.parsing import parse_int
from tfddl._src.cluster.variables import ALONE
from tfddl.errors import ClusterError

_ADDRESS = "set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in every process"
_MPI = "start the workers by mpirun, and see that it passes its variables on"
_SLURM = "start the workers by srun, as `srun python train.py`"
_NODES = "run `tfddlrun --nnodes N python train.py` on each of the N nodes"
_HOROVODRUN = "start the workers by tfddlrun instead of horovodrun"

# Of each: the least number that is a sign, and what to do.
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
    """A variable by which a process can tell that it is one of several.

    Attributes:
        variable: its name.
        value: its number.
        hint: what to do where the others aren't found.
    """

    variable: str
    value: int
    hint: str


def find(environ: Mapping[str, str]) -> Indicator | None:
    """The first sign of others that there is."""
    for least, table in ((2, _SIZES), (1, _RANKS)):
        for name, hint in table.items():
            value = _number(environ.get(name, ""))
            if value is not None and value >= least:
                return Indicator(name, value, hint)
    return None


def refuse(environ: Mapping[str, str]) -> None:
    """Refuses to train alone where there are signs of others.

    Raises:
        ClusterError: it names the variable, what to do, and how to train alone all the same.
    """
    sign = find(environ)
    if sign is not None:
        raise ClusterError(
            f"{sign.variable} is {sign.value}: this process was started beside others, and its "
            f"environment doesn't say how to find them. It doesn't train alone unasked. HINT: "
            f"{sign.hint}; or, where it is to train alone, set {ALONE}=1 or unset {sign.variable}"
        )


def _number(text: str) -> int | None:
    # "1:4" is torchrun's range of nodes, which counts by its end.
    try:
        return parse_int(text.rpartition(":")[2], what="", high=10**9)
    except ClusterError:
        return None
