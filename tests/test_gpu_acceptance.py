"""`launch/gpu.sh`, on a machine without a GPU: what it refuses, what it checks, its rehearsal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu_acceptance import FAILED, NO_GPU, Row, make_plan, status, table
from tests.group import ROOT


def run(*arguments: str, cwd: Path, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "launch/gpu.sh", *arguments],
        cwd=cwd,
        env={**os.environ, "TFDDL_PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def test_help(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "./launch/gpu.sh" in done.stdout
    assert "3 there is no GPU" in done.stdout
    assert "rehearse" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("2",), "gpu.sh: unknown argument '2'"),
        (("--workers", "1"), "gpu.sh: --workers is '1'; it must be 2 or more"),
        (("--workers=",), "gpu.sh: --workers is ''; it must be 2 or more"),
    ],
)
def test_mistakes_are_said(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


@pytest.mark.long
def test_without_a_gpu_it_checks_what_it_can(tmp_path: Path) -> None:
    done = run(cwd=tmp_path)
    assert done.returncode == NO_GPU, done.stdout + done.stderr
    assert "sees 0 GPUs" in done.stdout
    assert "no GPU: TensorFlow sees none; nothing more can be checked here" in done.stdout
    shown = done.stdout.splitlines()[-3:]
    assert shown[0] == "NO GPU: only what can be checked without one"
    assert shown[1].split() == ["ok", "tfddl-doctor", "no", "problem"]
    assert shown[2].startswith(
        "ok         TensorFlow's kernels for GPUs  every collective, in NCCL"
    )


@pytest.mark.long
def test_its_code_runs_on_cpus(tmp_path: Path) -> None:
    """Which says nothing about GPUs, and it says so itself."""
    done = run("--rehearse", cwd=tmp_path, timeout_s=290)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("THIS SAYS NOTHING ABOUT GPUs") == 2
    for what in (
        "where gradients travel",
        "collectives, dtypes, odd lengths",
        "sum of 16 MiB",
        "step time",
        "2 ranks and 1 process, DistributedOptimizer",
        "2 ranks and 1 process, strategy scope",
        "a rank that sleeps",
        "a rank that is killed",
        "NCCL between one GPU and itself",
    ):
        assert f"\nrehearsed  {what}" in done.stdout, what
    assert "\nok  " not in done.stdout.partition("REHEARSAL")[2]


@pytest.mark.parametrize(
    ("gpus", "asked", "workers", "collective"),
    [(8, None, 8, "nccl"), (8, 2, 2, "nccl"), (2, 4, 2, "nccl"), (1, None, 2, "ring")],
)
def test_what_is_run(gpus: int, asked: int | None, workers: int, collective: str) -> None:
    plan = make_plan(gpus, workers=asked, rehearse=False)
    assert (plan.workers, plan.collective, plan.good) == (workers, collective, "ok")


@pytest.mark.parametrize(
    ("gpus", "rehearse", "states", "expected"),
    [
        (2, False, ["ok", "ok"], 0),
        (2, False, ["ok", "FAILED"], FAILED),
        (1, False, ["ok", "not shown"], 0),
        (0, False, ["ok"], NO_GPU),
        (0, False, ["FAILED"], FAILED),
        (0, True, ["rehearsed"], 0),
        (0, True, ["rehearsed", "FAILED"], FAILED),
    ],
)
def test_the_exit_status_is_the_table_s(
    gpus: int, rehearse: bool, states: list[str], expected: int
) -> None:
    rows = [Row(f"row {i}", state, "why") for i, state in enumerate(states)]
    plan = make_plan(gpus, workers=None, rehearse=rehearse)
    assert status(rows, plan) == expected
    assert all(f"{row.state:<10} {row.what}  why" in table(rows, plan) for row in rows)
