"""The flags of `horovodrun`, given to `tfddlrun`: small processes, without TensorFlow."""

import sys
from pathlib import Path

import pytest

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
        *(sys.executable, "-S", "-c", "print('ran')", "--autotune"),
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "[0] ran\n")
    lines = done.stderr.splitlines()
    assert all(line.startswith("tfddlrun: without effect: ") for line in lines)
    told = [line.split(" (")[0].removeprefix("tfddlrun: without effect: ") for line in lines]
    assert told == [
        "--cycle-time-ms, --autotune",
        "--blacklist-cooldown-range",
        "--max-np",
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
        (("--host-discovery-script", "./d.sh"), "HINT: -H or --hostfile"),
        (("--config-file", "c.yaml"), "HINT: give them on the command line"),
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
