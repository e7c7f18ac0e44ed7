"""`tfddl-doctor`: what it finds, and what it makes of that."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tfddl
from tests.hosts import HERE, TWO, stand_in
from tests.launching import launch
from tfddl._src.launcher.doctor_checks import (
    Finding,
    Level,
    check_clock,
    check_facts,
    check_reach,
    check_speed,
    worst,
)
from tfddl._src.launcher.doctor_probe import count_gpus

FACTS: dict[str, Any] = {
    "hostname": "h",
    "own_addresses": ["10.0.0.1"],
    "machine": "x86_64",
    "python": "3.11.2",
    "versions": {"tfddl": "1", "TensorFlow": "2", "Keras": "3", "NumPy": "4", "NCCL": None},
    "cores": 4,
    "open_files": {"soft": 1024, "hard": 4096},
    "shared_memory": 1 << 30,
    "disk": {"/d": 1 << 40},
    "gpus": 0,
    "mig_instances": 0,
    "driver": None,
}


GPUS: dict[str, Any] = {
    "gpus": 2,
    "driver": "550.1",
    "versions": {**FACTS["versions"], "NCCL": "2.21"},
}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"python": "3.12.1"},
            "note     a, b: Python differs: 3.11 on a, 3.12 on b. HINT: install",
        ),
        (
            {"versions": {**FACTS["versions"], "Keras": "3.1"}},
            "PROBLEM  a, b: Keras differs: 3 on a, 3.1 on b. HINT: install the same on all hosts",
        ),
        (
            {"versions": {**FACTS["versions"], "TensorFlow": None}},
            "PROBLEM  b: TensorFlow isn't installed for the Python that tfddlrun starts there",
        ),
        (
            {"machine": "aarch64"},
            "note     a, b: processors of different kinds: x86_64 on a, aarch",
        ),
        ({"cores": 1}, "note     b: 2 workers on 1 cores will take turns. HINT: -H b:1"),
        ({"own_addresses": []}, "note     b: its own name, h, isn't known there. HINT: add it to"),
        (
            {"own_addresses": ["127.0.1.1"]},
            "note     b: its own name, h, is the loopback 127.0.1.1",
        ),
        (
            {"open_files": {"soft": 256, "hard": 256}},
            "note     b: only 256 open files are allowed.",
        ),
        ({"shared_memory": 1 << 26}, "note     b: /dev/shm has 0.1 GB free. HINT: mount it larger"),
        ({"disk": {"/d": 1 << 20}}, "note     b: /d has 0.0 GB free. HINT: make room"),
        ({"disk": {"/d": None}}, "PROBLEM  b: there is no folder /d. HINT: the same on all hosts"),
        (GPUS, "ok       b: 2 GPUs, driver 550.1, NCCL 2.21"),
        ({**GPUS, "driver": None}, "PROBLEM  b: 2 GPUs, but no driver is loaded. HINT: nvidia-smi"),
        (
            {**GPUS, "versions": FACTS["versions"]},
            "note     b: 2 GPUs, and no CUDA libraries as Python packages: TensorFlow needs ",
        ),
        (
            {**GPUS, "mig_instances": 2},
            "note     b: 2 of its 2 GPUs are MIG instances, of which a process sees only one. HINT",
        ),
        (
            {**GPUS, "gpus": 1},
            "PROBLEM  b: 2 workers, but 1 GPU; each needs its own. HINT: -H b:1",
        ),
    ],
)
def test_findings_about_hosts(changes: dict[str, Any], line: str) -> None:
    fine = check_facts({"a": FACTS, "b": FACTS}, {"a": 2, "b": 2})
    assert worst(fine) is Level.OK
    found = check_facts({"a": FACTS, "b": {**FACTS, **changes}}, {"a": 2, "b": 2})
    assert [str(finding) for finding in found if str(finding).startswith(line)], list(
        map(str, found)
    )
    assert worst(found).value == line.split()[0]


@pytest.mark.parametrize(
    ("finding", "line"),
    [
        (check_clock("b", offset_s=0.5, uncertain_s=0.1), "ok       b: its clock agrees with ours"),
        (
            check_clock("b", offset_s=-30.0, uncertain_s=0.1),
            "note     b: its clock is 30.0 s behind ours, so that logs and files will look",
        ),
        (
            check_reach("a", "b", {"errors": {"5": "Connection refused"}, "latency_s": None}, 2),
            "PROBLEM  a -> b: 1 of the workers' 2 ports can't be reached (5: Connection refused). "
            "HINT: let a connect to ports 10000-65535 of b, or",
        ),
        (
            check_speed("a", "b", {"error": "timed out"}),
            "PROBLEM  a -> b: sending fails: timed out",
        ),
        (
            check_speed("a", "b", {"bytes_per_s": 2e6}),
            "note     a -> b: 2 MB/s over one connection;",
        ),
        (
            check_speed("a", "b", {"bytes_per_s": 2e9}),
            "ok       a -> b: 2000 MB/s over one connectio",
        ),
    ],
)
def test_findings_about_the_network(finding: Finding, line: str) -> None:
    assert str(finding).startswith(line)


SMI = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 3g.20gb     Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a78)
"""


def test_gpus_are_counted_by_the_driver_s_files_or_by_nvidia_smi(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    for part in ("gi1/ci0", "gi2/ci0", "gi2/ci1"):
        (tmp_path / "capabilities/gpu1/mig" / part).mkdir(parents=True)
    for smi in (str(tmp_path / "none"), "false"):
        assert count_gpus(tmp_path, tmp_path / "capabilities", smi) == (4, 3)
        assert count_gpus(tmp_path, tmp_path / "none", smi) == (2, 0)
        assert count_gpus(tmp_path / "none", tmp_path, smi) == (0, 0)
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{SMI}END\n")
    program.chmod(0o755)
    assert count_gpus(tmp_path, tmp_path / "none", str(program)) == (3, 2)


def check(*line: str, cwd: Path) -> tuple[int, list[str]]:
    done = launch("--check", *line, cwd=cwd)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_the_doctor_checks_hosts(ssh: str, tmp_path: Path) -> None:
    status, lines = check(*TWO, "--ssh-command", ssh, cwd=tmp_path)
    assert status == 0
    assert not [line for line in lines if line.startswith("PROBLEM")]
    where = f"{HERE[0]}, {HERE[1]}"
    assert f"ok       {where}: tfddl {tfddl.__version__}" in lines
    for word in ("Python 3", "TensorFlow 2.", "Keras 3.", "NumPy "):
        assert any(line.startswith(f"ok       {where}: {word}") for line in lines), word
    for one, other, ports in ((*HERE, "the worker's port"), (*HERE[::-1], "the workers' 2 ports")):
        start = f"ok       {one} -> {other}: "
        assert any(line.startswith(f"{start}{ports} can be reached, a round") for line in lines)
        assert any(f"{one} -> {other}: " in line and "MB/s" in line for line in lines)


def test_the_doctor_goes_on_without_a_host_that_is_down(tmp_path: Path) -> None:
    ssh = stand_in(tmp_path / "ssh", down=HERE[1])
    status, lines = check(*TWO, "--ssh-command", ssh, cwd=tmp_path)
    assert status == 1
    assert lines[0].startswith(f"PROBLEM  {HERE[1]}: can't reach {HERE[1]} by ssh: ")
    assert any(line.startswith(f"ok       {HERE[0]}: ") for line in lines)
    status, lines = check("-H", f"{HERE[1]}:1", "--ssh-command", ssh, cwd=tmp_path)
    assert (status, len(lines)) == (1, 1)


def test_the_doctor_on_this_host(tmp_path: Path) -> None:
    line = [sys.executable, "-c", "from tfddl._src.launcher.main import run_doctor; run_doctor()"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ok       localhost: TensorFlow 2." in done.stdout
