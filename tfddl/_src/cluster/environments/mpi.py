"""MPI's launchers: Open MPI, MPICH, Intel MPI, MVAPICH2, Cray PALS, Flux.

They start the workers, and tell each its rank, but not where the others are. MPI itself isn't
needed, and carries nothing.

References:
    Open MPI, "Environment variables that mpirun exports":
    https://docs.open-mpi.org/en/main/tuning-apps/environment-var.html; Intel MPI and MPICH share
    Hydra, https://github.com/pmodels/mpich/blob/main/doc/wiki/how_to/Using_the_Hydra_Process_Manager.md;
    HPE Cray PALS and Slurm's plugin for it (mpi/cray_shasta) set PMI_RANK, PMI_SIZE,
    PMI_LOCAL_RANK, PMI_LOCAL_SIZE and PALS_APID; MVAPICH2 user guide, "MV2_COMM_WORLD_RANK";
    flux-environment(7), https://flux-framework.readthedocs.io/
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from tfddl._src.cluster.cluster import Cluster, PartialCluster, block_addresses
from tfddl._src.cluster.environment_variables import ALONE, consecutive_ports, read_int, read_port
from tfddl._src.cluster.environments import mpi_address
from tfddl._src.cluster.environments.master_address import MASTER, read_master
from tfddl._src.cluster.parsing import MAX_CLUSTER_SIZE, parse_int, quote
from tfddl._src.cluster.task import Task, build_local_cluster, build_partial_cluster
from tfddl.errors import ClusterError

HOSTS = "TFDDL_HOSTS"
_HYDRA_LOCAL_RANK = "MPI_LOCALRANKID"


@dataclass(frozen=True)
class _Launcher:
    """The variables of one launcher; of several names, the first one that is set counts."""

    name: str
    rank: str
    size: str
    local_rank: tuple[str, ...]
    local_size: tuple[str, ...]
    job: tuple[str, ...]


_LAUNCHERS = (
    _Launcher(
        name="Open MPI",
        rank="OMPI_COMM_WORLD_RANK",
        size="OMPI_COMM_WORLD_SIZE",
        local_rank=("OMPI_COMM_WORLD_LOCAL_RANK",),
        local_size=("OMPI_COMM_WORLD_LOCAL_SIZE",),
        job=("PMIX_NAMESPACE",),  # Set by PMIx.
    ),
    _Launcher(
        name="MVAPICH2",
        rank="MV2_COMM_WORLD_RANK",
        size="MV2_COMM_WORLD_SIZE",
        local_rank=("MV2_COMM_WORLD_LOCAL_RANK",),
        local_size=("MV2_COMM_WORLD_LOCAL_SIZE",),
        job=(),
    ),
    # Hydra (MPICH, Intel MPI), Cray PALS and Slurm's plugins share PMI's names.
    _Launcher(
        name="MPI",
        rank="PMI_RANK",
        size="PMI_SIZE",
        local_rank=(_HYDRA_LOCAL_RANK, "PMI_LOCAL_RANK", "PALS_LOCAL_RANKID"),
        local_size=("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"),
        job=("PALS_APID", "I_MPI_HYDRA_UUID", "PMI_JOBID"),
    ),
    # Flux sets none for the number of tasks on a host.
    _Launcher(
        name="Flux",
        rank="FLUX_TASK_RANK",
        size="FLUX_JOB_SIZE",
        local_rank=("FLUX_TASK_LOCAL_ID",),
        local_size=(),
        job=("FLUX_JOB_ID",),
    ),
)


def find(environ: Mapping[str, str]) -> Task | None:
    """This process as an MPI launcher describes it; None if none has started it.

    Raises:
        ClusterError: the variables aren't numbers, contradict each other, or some are missing.
    """
    for launcher in _LAUNCHERS:
        if launcher.rank in environ or launcher.size in environ:
            return _read(launcher, environ)
    return None


def is_set_by_slurm(environ: Mapping[str, str]) -> bool:
    """Whether PMI's variables are Slurm's (`srun --mpi=pmi2`), not Hydra's."""
    # Hydra sets both.
    return "PMI_RANK" in environ and _HYDRA_LOCAL_RANK not in environ


def parse(environ: Mapping[str, str]) -> Cluster | PartialCluster | None:
    """Reads the cluster of an `mpirun`.

    On one host nothing more is needed. On several, TFDDL_HOSTS names them with their slots in
    rank order (`mpirun -x TFDDL_HOSTS=hostA:2,hostB:2 …`), or the address of rank 0 is read from
    TFDDL_MASTER or MASTER_ADDR, or found by mpi4py where that is installed (see `mpi_address`).
    Ports are TFDDL_PORT (12345 if not set) plus the local rank.

    Returns:
        None if no MPI launcher has started this process, or only this one.

    Raises:
        ClusterError: the variables contradict each other, or the address of rank 0 isn't known.
    """
    task = find(environ)
    return None if task is None or task.size == 1 else build_cluster(task, environ)


def build_cluster(task: Task, environ: Mapping[str, str]) -> Cluster | PartialCluster:
    """The cluster of a task of several processes that `find` has returned; see `parse`."""
    if environ.get(HOSTS):
        return _cluster_of_hosts(task, environ)
    if task.is_on_one_host:
        return build_local_cluster(task, environ)
    found = find_master(task, environ)
    if found is None:
        here = "" if task.local_size is None else f", {task.local_size} of them on this host,"
        slots = task.local_size or 1
        raise ClusterError(
            f"{task.launcher} started {task.size} workers{here} and doesn't say where the others "
            f"are. HINT: pip install 'tfddl[mpi]' on every host; or mpirun -x {MASTER}=hostA …, "
            f"the host of rank 0; or mpirun -x {HOSTS}=hostA:{slots},hostB:{task.size - slots} …, "
            "all hosts with their slots (mpiexec -genv NAME VALUE in MPICH and Intel MPI)"
        )
    return build_partial_cluster(task, found[0], said_by=found[1])


def find_master(task: Task, environ: Mapping[str, str]) -> tuple[str, str] | None:
    """The address of rank 0, and what it was read from; None where it isn't known.

    All processes must call it together, since they may communicate through MPI.

    Raises:
        ClusterError: a variable has no address in it, or mpi4py can't find one.
    """
    found = read_master(environ)
    if found is not None:
        return found
    if is_launcher_gone(environ):
        raise ClusterError(
            f"by {task.source} there are {task.size} workers, but the mpirun that set them has "
            "ended, or isn't this process's own; MPI can't be asked where rank 0 is. HINT: unset "
            f"them, set {ALONE}=1, or say where rank 0 is: {MASTER}=hostA"
        )
    address = mpi_address.exchange(
        task.size,
        port=read_port(environ) or 0,
        # One process of each host tries; all of them where local ranks aren't known.
        tries=task.local_rank in (0, None),
        source=task.source,
    )
    return None if address is None else (address, "mpi4py")


def is_launcher_gone(environ: Mapping[str, str]) -> bool:
    """Whether the launcher that MPI would connect to has ended.

    MPI_Init would then abort the process (MPI_ERRORS_ARE_FATAL), and no error of ours be seen.
    """
    # Open MPI's mpirun removes its session directory when it ends. Hydra's processes inherit a
    # connected socket, which isn't open in processes that have only inherited the variables.
    directory = environ.get("PMIX_SERVER_TMPDIR")
    if directory and not os.path.isdir(directory):
        return True
    connection = environ.get("PMI_FD")
    if not connection:
        return False
    try:
        os.fstat(parse_int(connection, what="PMI_FD", high=2**20))
    except (OSError, ClusterError):
        return True
    return False


def _read(launcher: _Launcher, environ: Mapping[str, str]) -> Task:
    names = [launcher.rank, launcher.size]

    def number(among: tuple[str, ...]) -> int | None:
        for name in among:
            if environ.get(name):
                names.append(name)
                return read_int(environ, name)
        return None

    return Task(
        launcher=launcher.name,
        rank=read_int(environ, launcher.rank),
        size=read_int(environ, launcher.size),
        local_rank=number(launcher.local_rank),
        local_size=number(launcher.local_size),
        job=next((environ[name] for name in launcher.job if environ.get(name)), ""),
        source=", ".join(names),
    )


def _cluster_of_hosts(task: Task, environ: Mapping[str, str]) -> Cluster:
    hosts, slots = _hosts_and_slots(environ[HOSTS])
    if sum(slots) != task.size:
        raise ClusterError(
            f"{HOSTS} is {quote(environ[HOSTS])}, {sum(slots)} slots, but {task.launcher} started "
            f"{task.size} workers; they must be equal"
        )
    addresses = block_addresses(hosts, slots, consecutive_ports(environ, max(slots)))
    try:
        cluster = Cluster(addresses=addresses, rank=task.rank, job=task.job)
    except ClusterError as error:
        raise ClusterError(f"{HOSTS}: {error}") from None
    if task.local_rank is not None and cluster.local_rank != task.local_rank:
        raise ClusterError(
            f"{task.launcher} started rank {task.rank} with local rank {task.local_rank}, but "
            f"{cluster.local_rank} follows from {HOSTS}, {quote(environ[HOSTS])}. HINT: mpirun "
            f"--map-by slot fills one host after the other, in the order of {HOSTS}"
        )
    return cluster


def _hosts_and_slots(text: str) -> tuple[list[str], list[int]]:
    hosts, slots = [], []
    for entry in text.split(","):
        host, _, count = entry.strip().rpartition(":")
        if not host:
            raise ClusterError(
                f'{HOSTS} is {quote(text)}, and {quote(entry)} is not "host:slots"; expected '
                '"hostA:2,hostB:2"'
            )
        hosts.append(host.strip("[]"))
        slots.append(parse_int(count, what=f"the slots of {quote(host)} in {HOSTS}", low=1))
        if sum(slots) > MAX_CLUSTER_SIZE:
            raise ClusterError(f"{HOSTS} names more than {MAX_CLUSTER_SIZE} workers")
    return hosts, slots
