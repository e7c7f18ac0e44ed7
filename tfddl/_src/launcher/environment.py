"""Which environment variables of `tfddlrun` the workers get, here and on other hosts. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tfddl._src import commits, heartbeat, membership
from tfddl._src.cluster import CORES, SECRET, read_secret
from tfddl._src.cluster.environments import tf_config
from tfddl._src.launcher.call_files import CALL, RESULT
from tfddl.errors import ClusterError, LaunchError

RESTARTS = "TFDDL_RESTARTS"
"""How often the job has started again: in the environment of every worker of `tfddlrun`."""

# What belongs to this host, this login or this terminal, and would be wrong elsewhere.
_HOST_ONLY = frozenset(
    "HOME USER LOGNAME SHELL PWD OLDPWD HOSTNAME HOST MAIL SHLVL _ TERM COLUMNS LINES TMPDIR TMP "
    "TEMP DISPLAY WAYLAND_DISPLAY XAUTHORITY WINDOWID ENV BASH_ENV INVOCATION_ID "
    "JOURNAL_STREAM".split()
)
_HOST_ONLY_PREFIXES = (
    *("SSH_", "XDG_", "DBUS_", "SYSTEMD_", "TMUX", "BASH_FUNC_"),
    # Of another launcher or engine, about this host's part in its job.
    *("SLURM_", "SLURMD_", "OMPI_", "KUBERNETES_", "SM_", "JOB_COMPLETION_INDEX"),
)
# The rank that another launcher has given to `tfddlrun`. Each worker has its own in TF_CONFIG.
_RANKS = frozenset(
    "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK "
    "ROLE_WORLD_SIZE NODE_RANK NNODES NPROC_PER_NODE MASTER_ADDR MASTER_PORT MPI_LOCALRANKID "
    "MPI_LOCALNRANKS SLURM_PROCID SLURM_LOCALID SLURM_NTASKS SLURM_NPROCS SLURM_STEP_NUM_TASKS "
    "SLURM_STEP_TASKS_PER_NODE FLUX_JOB_SIZE TFDDL_ALONE TFDDL_NNODES".split()
)
# The same; PMI and PMIx also say how one process, and no other, reaches its launcher.
_RANK_PREFIXES = (
    *("OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "PMI_", "PMIX_", "PALS_", "PET_", "TORCHELASTIC_"),
    *("FLUX_TASK_", "JSM_NAMESPACE_"),
)
# Where `tfddlrun` runs in a worker of another job, what is for that worker alone.
_OWN = frozenset(
    {
        *(CORES, SECRET, CALL, RESULT, commits.VARIABLE, commits.ELASTIC),
        *(heartbeat.VARIABLE, membership.VARIABLE),
    }
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Export:
    """A variable that is named on the command line (`-x`).

    Attributes:
        name: its name.
        value: what all workers get; None for the value that it has here.

    Raises:
        LaunchError: this is no name of a variable.
    """

    name: str
    value: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise LaunchError(
                f"-x names the variable {self.name!r}; letters, digits and '_' are expected. HINT: "
                "-x NAME=VALUE"
            )

    @classmethod
    def parse(cls, text: str) -> Export:
        """Reads "NAME" or "NAME=VALUE"."""
        name, equals, value = text.partition("=")
        return cls(name, value if equals else None)


def exported(environment: Mapping[str, str], exports: Sequence[Export]) -> dict[str, str]:
    """The variables that `-x` names, with their values.

    Raises:
        LaunchError: one without a value isn't set here.
    """
    found = {}
    for export in exports:
        value = environment.get(export.name) if export.value is None else export.value
        if value is None:
            raise LaunchError(
                f"-x {export.name} takes its value from the environment, where it isn't set. HINT: "
                f"-x {export.name}=VALUE"
            )
        found[export.name] = value
    return found


def is_worker(environment: Mapping[str, str]) -> bool:
    """Whether this is the environment of a worker that a `tfddlrun` has started."""
    return RESTARTS in environment


def outer_job_size(environment: Mapping[str, str]) -> int:
    """The size of the job by a worker of which this process was started; 0 where none was.

    Raises:
        LaunchError: its TF_CONFIG can't be read.
    """
    if not is_worker(environment):
        return 0
    try:
        return tf_config.parse(environment.get(tf_config.VARIABLE, "")).size
    except ClusterError as error:
        raise LaunchError(str(error)) from None


def given_secret(environment: Mapping[str, str], exports: Sequence[Export] = ()) -> str | None:
    """The job's secret, where the user has chosen one.

    A worker's TFDDL_SECRET is that of its own job. A job started by a worker takes it only where
    `-x TFDDL_SECRET` says so.

    Raises:
        LaunchError: it isn't hexadecimal, or too short to be one.
    """
    named = any(export.name == SECRET for export in exports)
    if is_worker(environment) and not named:
        return None
    text = exported(environment, exports).get(SECRET) or environment.get(SECRET, "")
    try:
        return read_secret({SECRET: text}).hex() or None
    except ClusterError as error:
        raise LaunchError(str(error)) from None


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """What workers get of the environment of whoever starts them, on the same host."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _OWN and name not in _RANKS and not name.startswith(_RANK_PREFIXES)
    }


def forwarded(environment: Mapping[str, str], *, without: Collection[str] = ()) -> dict[str, str]:
    """What workers on other hosts get of it: all but what belongs to this host or login.

    Args:
        environment: of this process.
        without: names of more variables that belong to this host.
    """
    return {
        name: value
        for name, value in inherited(environment).items()
        if name not in _HOST_ONLY
        and name not in without
        and not name.startswith(_HOST_ONLY_PREFIXES)
    }
