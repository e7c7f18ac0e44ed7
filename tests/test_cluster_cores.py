"""Cores that are a worker's own: those of a Slurm task, or of a rank that MPI's launcher bound."""

import os

import pytest

from tests import environments as env
from tests.environments import tf_config
from tfddl._src.cluster import read_cores
from tfddl._src.cpu import cores_of_worker
from tfddl.errors import ClusterError


@pytest.fixture(autouse=True)
def without_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfddl._src.cpu.cpu_quota", lambda: None)


def usable(monkeypatch: pytest.MonkeyPatch, *, ours: int, parents: int = 0) -> None:
    """How many cores this process may use, and the one that started it."""
    counts = {0: ours, os.getppid(): parents or ours}
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(counts[process])))


def slurm(masks: str = "", *, local_rank: int = 0, cpus_per_task: int = 0) -> dict[str, str]:
    """A step of four tasks per node on two nodes."""
    more = {"SLURM_CPUS_PER_TASK": str(cpus_per_task)} if cpus_per_task else {}
    return env.SRUN | {
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
        "SLURM_PROCID": str(4 + local_rank),
        "SLURM_LOCALID": str(local_rank),
        "SLURM_CPU_BIND_TYPE": "mask_cpu:" if masks else "none",
        "SLURM_CPU_BIND_LIST": masks,
        **more,
    }


@pytest.mark.parametrize(
    ("environ", "ours", "own"),
    [
        # srun -c 8 --ntasks-per-node=4 on 32 cores: 8 each, not 2.
        (slurm("0xFF,0xFF00,0xFF0000,0xFF000000", cpus_per_task=8), 8, 8),
        # The same without binding: 8 of the 32 that each may run on.
        (slurm(cpus_per_task=8), 32, 8),
        # Two sockets, two tasks on each.
        (slurm("0xFFFF,0xFFFF,0xFFFF0000,0xFFFF0000"), 16, 8),
        # `sbatch -c 8` around a `srun` that doesn't take it over, since Slurm 22.05.
        (slurm("0x1,0x2,0x4,0x8", cpus_per_task=8), 1, 1),
        # A core of two threads, both in the mask.
        (slurm("0x10001,0x20002,0x40004,0x80008"), 2, 2),
        # Nothing said: as many as are to be divided.
        (slurm(), 32, None),
        # What can't be understood is left alone.
        (slurm("0x1,what"), 8, None),
        (slurm("0x1", local_rank=3), 8, None),
        # Real: srun -N2 --ntasks-per-node=2 on nodes of two cores.
        (env.SRUN, 1, 1),
        # Not one of the step's tasks: tfddlrun in it, a script of sbatch.
        (slurm(cpus_per_task=8) | tf_config(env.PAI), 32, None),
        (env.SBATCH | {"SLURM_CPUS_PER_TASK": "8"}, 32, None),
        # tfddlrun says it.
        ({"TFDDL_CORES": "3", **slurm(cpus_per_task=8)}, 32, 3),
        ({}, 32, None),
    ],
)
def test_slurm(
    environ: dict[str, str], ours: int, own: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable(monkeypatch, ours=ours, parents=64)
    assert read_cores(environ) == own


@pytest.mark.parametrize(
    ("ours", "parents", "own"),
    [
        (1, 16, 1),  # --bind-to core
        (2, 16, 2),  # the same, of two threads
        (8, 16, 8),  # --bind-to socket, one rank on each
        (16, 16, None),  # --bind-to none: divided among the two as ever
    ],
)
def test_mpi_binds(
    ours: int, parents: int, own: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable(monkeypatch, ours=ours, parents=parents)
    assert read_cores(env.OPEN_MPI_5) == own
    assert cores_of_worker(2, own=own) == (own or 8)


def test_several_ranks_of_a_socket_divide_it(monkeypatch: pytest.MonkeyPatch) -> None:
    usable(monkeypatch, ours=16, parents=32)
    eight = env.MPICH | {"PMI_SIZE": "8", "MPI_LOCALNRANKS": "8", "MPI_LOCALRANKID": "1"}
    assert read_cores(eight) == 4


def test_a_quota_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    usable(monkeypatch, ours=8, parents=16)
    monkeypatch.setattr("tfddl._src.cpu.cpu_quota", lambda: 4.0)
    assert read_cores(env.OPEN_MPI_5) == 2
    assert read_cores(slurm(cpus_per_task=8)) == 4  # Of a task, not of a host.


def test_the_launcher_may_have_ended_or_be_another_users(monkeypatch: pytest.MonkeyPatch) -> None:
    def affinity(process: int) -> set[int]:
        if process:
            raise PermissionError
        return {0, 1}

    monkeypatch.setattr(os, "sched_getaffinity", affinity)
    assert read_cores(env.OPEN_MPI_5) is None


def test_where_the_local_size_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank and size alone, as old PMIs have it; or who started this one doesn't bind."""
    usable(monkeypatch, ours=2, parents=16)
    assert read_cores({"PMI_RANK": "1", "PMI_SIZE": "4", "TFDDL_MASTER": "a:1"}) is None
    assert read_cores(env.TORCHRUN) is None
    assert read_cores(tf_config(env.PAI)) is None


def test_systems_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert read_cores(env.OPEN_MPI_5) is None
    assert read_cores(slurm(cpus_per_task=8)) is None


@pytest.mark.parametrize("text", ["0", "-1", "x", "9" * 5000])
def test_no_number(text: str) -> None:
    with pytest.raises(ClusterError, match=r"expected a number in 1\.\.65536"):
        read_cores({"TFDDL_CORES": text})
    with pytest.raises(ClusterError, match=r"expected a number in 1\.\.65536"):
        read_cores(slurm() | {"SLURM_CPUS_PER_TASK": text})
