"""How many workers `-np auto` is: GPUs as CUDA and nvidia-smi name them, sockets, quotas."""

import os
from pathlib import Path

import pytest

from tfddl._src.launcher import cores, worker_count
from tfddl._src.launcher.worker_count import WorkerCount, count_workers

TWO_GPUS = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-1b2f3a5c-0f1e-4f5a-9d55-7d2f7d9d0c11)
"""
MIG = """\
  MIG 3g.20gb     Device  0: (UUID: MIG-c7384736-a75d-5afc-978f-d2f1294409fd)
  MIG 3g.20gb     Device  1: (UUID: MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d)
"""
FIRST_GPU = TWO_GPUS.splitlines()[0] + "\n"


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores on two sockets, no quota, no GPU."""
    for core in range(8):
        folder = tmp_path / f"cpu{core}/topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{core // 4}\n")
        (folder / "core_id").write_text(f"{core % 4}\n")
    monkeypatch.setattr(cores, "_TOPOLOGY", f"{tmp_path}/cpu{{}}/topology")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr("tfddl._src.cpu.cpu_quota", lambda: None)
    monkeypatch.setattr(worker_count, "_NVIDIA_SMI", (f"{tmp_path}/nvidia-smi", "-L"))
    monkeypatch.setattr(worker_count, "_DRIVER", tmp_path / "gpus")


@pytest.mark.parametrize(
    ("visible", "number", "reason"),
    [
        ("0,1,2", 3, "3 visible GPUs (CUDA_VISIBLE_DEVICES)"),
        (" 3", 1, "1 visible GPU (CUDA_VISIBLE_DEVICES)"),
        ("GPU-5d5ba0d6,GPU-1b2f3a5c", 2, "2 visible GPUs (CUDA_VISIBLE_DEVICES)"),
        # CUDA stops at the first that is no device.
        ("0,-1,1", 1, "1 visible GPU (CUDA_VISIBLE_DEVICES)"),
        ("", 2, "no GPU by CUDA_VISIBLE_DEVICES; 2 sockets of CPUs"),
        ("-1", 2, "no GPU by CUDA_VISIBLE_DEVICES; 2 sockets of CPUs"),
        ("NoDevFiles", 2, "no GPU by CUDA_VISIBLE_DEVICES; 2 sockets of CPUs"),
        (
            "MIG-c7384736,MIG-a28ad590",
            1,
            "2 MIG instances, of which a process sees one (CUDA_VISIBLE_DEVICES)",
        ),
    ],
)
def test_visible_devices(visible: str, number: int, reason: str) -> None:
    assert count_workers({"CUDA_VISIBLE_DEVICES": visible}) == WorkerCount(number, reason)


@pytest.mark.parametrize(
    ("listing", "number", "reason"),
    [
        (TWO_GPUS, 2, "2 visible GPUs ({} -L)"),
        (FIRST_GPU, 1, "1 visible GPU ({} -L)"),
        (FIRST_GPU + MIG, 1, "2 MIG instances, of which a process sees one ({} -L)"),
        # The second GPU is whole, and the one that CUDA sees.
        (FIRST_GPU + MIG + TWO_GPUS.splitlines()[1], 1, "1 visible GPU ({} -L)"),
        ("No devices found.\n", 2, "no GPU; 2 sockets of CPUs"),
    ],
)
def test_nvidia_smi(listing: str, number: int, reason: str, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] && cat <<'END'\n{listing}END\n")
    program.chmod(0o755)
    assert count_workers({}) == WorkerCount(number, reason.format(program))


def test_the_driver_s_folder_where_there_is_no_nvidia_smi(tmp_path: Path) -> None:
    for name in ("0000:07:00.0", "0000:0f:00.0", "0000:47:00.0"):
        (tmp_path / "gpus" / name).mkdir(parents=True)
    assert count_workers({}) == WorkerCount(3, f"3 visible GPUs ({tmp_path}/gpus)")
    failing = tmp_path / "nvidia-smi"
    failing.write_text("#!/bin/sh\nexit 9\n")
    failing.chmod(0o755)
    assert count_workers({}).number == 3


@pytest.mark.parametrize(
    ("usable", "quota", "number", "reason"),
    [
        (range(8), None, 2, "no GPU; 2 sockets of CPUs"),
        (range(4), None, 1, "no GPU; 1 socket of CPUs"),
        (range(3, 6), None, 2, "no GPU; 2 sockets of CPUs"),
        (range(8), 1.5, 1, "no GPU; 2 sockets of CPUs, and the cgroup's quota is 1 of their cores"),
        (range(8), 0.5, 1, "no GPU; 2 sockets of CPUs, and the cgroup's quota is 1 of their cores"),
        (range(8), 6.0, 2, "no GPU; 2 sockets of CPUs"),
        # Cores whose place isn't known.
        (range(8, 12), None, 1, "no GPU; 1 socket of CPUs"),
    ],
)
def test_sockets(
    usable: range, quota: float | None, number: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(usable))
    monkeypatch.setattr("tfddl._src.cpu.cpu_quota", lambda: quota)
    assert count_workers({}) == WorkerCount(number, reason)


def test_a_virtual_machine_that_shows_each_core_as_a_socket(tmp_path: Path) -> None:
    for core in range(8):
        (tmp_path / f"cpu{core}/topology/physical_package_id").write_text(f"{core}\n")
        (tmp_path / f"cpu{core}/topology/core_id").write_text("0\n")
    assert count_workers({}) == WorkerCount(1, "no GPU; 1 socket of CPUs")


def test_a_driver_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_count, "_NVIDIA_SMI", ("sleep", "60"))
    monkeypatch.setattr(worker_count, "_NVIDIA_SMI_S", 0.1)
    assert count_workers({}).number == 2
