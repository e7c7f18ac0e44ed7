"""The flags of `horovodrun`, given to `tfddlrun`: small processes, without TensorFlow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.group import ROOT
from tests.launching import launch

SHOW = "import os; print({k: v for k, v in os.environ.items() if k.startswith('HOROVOD_')})"


@pytest.mark.parametrize(
    ("flags", "variables"),
    [
        ((), {}),
        (("--stall-check-warning-time-seconds", "30"), {"STALL_CHECK_TIME_SECONDS": "30.0"}),
        (
            ("--stall-check-shutdown-time-seconds=90.5", "--stall-check"),
            {"STALL_SHUTDOWN_TIME_SECONDS": "90.5", "STALL_CHECK_DISABLE": "0"},
        ),
        (("--no-stall-check",), {"STALL_CHECK_DISABLE": "1"}),
        (("--timeline-filename", "trace.json"), {"TIMELINE": "trace.json"}),
        (("--fusion-threshold-mb", "2"), {"FUSION_THRESHOLD": "2097152"}),
    ],
)
def test_what_init_has_to_know_reaches_it(
    flags: tuple[str, ...], variables: dict[str, str], tmp_path: Path
) -> None:
    done = launch("-np", "1", *flags, sys.executable, "-S", "-c", SHOW, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    expected = {f"HOROVOD_{name}": value for name, value in variables.items()}
    assert eval(done.stdout.removeprefix("[0] ")) == expected


def test_flags_without_effect_are_let_pass_and_told_by_reason(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=1\n")
    done = launch(
        *("-hostfile", str(hosts), "--min-num-proc", "1", "--reset-limit", "2"),
        *("--elastic-timeout", "60", "--cycle_time_ms", "3.5"),
        *("--autotune", "--blacklist-cooldown-range", "60", "300", "--max-np", "4", "--gloo"),
        *("--slots-per-host", "2", "--resize-interval", "5"),
        *(sys.executable, "-S", "-c", "print('ran')", "--autotune"),
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "[0] ran\n")
    lines = done.stderr.splitlines()
    assert all(line.startswith("tfddlrun: without effect: ") for line in lines)
    told = [line.split(" (")[0].removeprefix("tfddlrun: without effect: ") for line in lines]
    assert told == [
        "--max-np, --slots-per-host, --resize-interval",
        "--cycle-time-ms, --autotune",
        "--gloo",
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--mpi",),
            "--mpi isn't supported: there is no MPI: tfddlrun starts the workers by itself",
        ),
        (("--mpi-args", "x"), "--mpi-args isn't supported: there is no MPI"),
        (
            ("--jsrun",),
            "--jsrun isn't supported: there is no jsrun. HINT: start the script with srun",
        ),
        (("--blacklist-cooldown-range", "9", "3"), "expected two numbers of seconds above 0"),
        (("--config-file", "c.yaml"), "--config-file c.yaml can't be read: No such file"),
        (("--stall-check-warning-time-seconds", "-1"), "must be 0 (never) or more seconds"),
        (("--stall-check-shutdown-time-seconds", "nan"), "must be 0 (never) or more seconds"),
        (("--fusion-threshold-mb", "-1"), "--fusion-threshold-mb is -1; it must be 0 or more"),
    ],
)
def test_what_can_not_be_done_says_what_to_use(
    flags: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = launch("-np", "1", *flags, "true", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize("flag", ["-cb", "--check-build"])
def test_check_build(flag: str, tmp_path: Path) -> None:
    done = launch(flag, cwd=tmp_path, timeout_s=60)
    assert done.returncode == 0
    assert "[X] TensorFlow 2." in done.stdout
    assert "[ ] PyTorch" in done.stdout
    assert "[ ] MPI" in done.stdout


FILE = """\
# of a cluster
verbose: false
params:
    fusion_threshold_mb: 32
    hierarchical_allreduce: false

stall_check:
  enabled: true
  warning_time_seconds: 7   # soon
timeline:
  filename: "trace #1.json"
"""


def test_a_file_has_flags_and_the_command_line_comes_first(tmp_path: Path) -> None:
    (tmp_path / "flags.yaml").write_text(FILE)
    flags = ["-np", "1", "--config-file", "flags.yaml", "--no-stall-check", "--cycle-time-ms=2"]
    done = launch(*flags, sys.executable, "-S", "-c", SHOW, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert eval(done.stdout.removeprefix("[0] ")) == {
        "HOROVOD_FUSION_THRESHOLD": str(32 * 2**20),
        "HOROVOD_STALL_CHECK_DISABLE": "1",
        "HOROVOD_STALL_CHECK_TIME_SECONDS": "7.0",
        "HOROVOD_TIMELINE": "trace #1.json",
    }
    assert "without effect: --no-hierarchical-allreduce, --cycle-time-ms (" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("params\n", "line 1: 'params' is no 'name: value'"),
        ("nonsense:\n  a: 1\n", "line 2: section is 'nonsense'; it must be one of params, "),
        ("timeline:\n  file: a\n", "line 2: a setting of timeline is 'file'; it must be one of "),
        ("autotune:\n  enabled: 2\n", "line 2: enabled is '2'; it must be one of true, false"),
        ("controller: nccl\n", "line 1: controller is 'nccl'; it must be one of gloo, mpi"),
        ("controller: mpi\n", "--mpi isn't supported: there is no MPI"),
    ],
)
def test_a_file_with_something_else_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "flags.yaml").write_text(text)
    done = launch("-np", "1", "--config-file", "flags.yaml", "true", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr


def test_the_command_of_its_own_runs_horovod_s_scripts(tmp_path: Path) -> None:
    code = "from tfddl._src.launcher.main import run_horovodrun; run_horovodrun()"
    done = subprocess.run(
        [sys.executable, "-c", code, "-np", "1", sys.executable, "-c", SHOW],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "'HOROVOD_SIZE': '1'" in done.stdout
