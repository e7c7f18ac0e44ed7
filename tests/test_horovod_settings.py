"""What Horovod's users set in the environment."""

import sys

import pytest

from tests.group import ROOT
from tests.launching import launch
from tfddl._src.horovod.settings import Settings
from tfddl.errors import StartError


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Settings()),
        ({"HOROVOD_STALL_CHECK_TIME_SECONDS": "5"}, Settings(stall_warning_s=5.0)),
        ({"HOROVOD_STALL_CHECK_TIME_SECONDS": ""}, Settings()),
        ({"HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "90.5"}, Settings(stall_shutdown_s=90.5)),
        ({"HOROVOD_STALL_CHECK_DISABLE": "0"}, Settings()),
        ({"HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "0"}, Settings(stall_shutdown_s=0.0)),
        (
            # Horovod's check does both.
            {"HOROVOD_STALL_CHECK_DISABLE": "1", "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "9"},
            Settings(stall_warning_s=0.0, stall_shutdown_s=0.0),
        ),
        ({"HOROVOD_TIMELINE": "trace.json"}, Settings(timeline="trace.json")),
        # `start_timeline` will be called.
        ({"HOROVOD_TIMELINE": "DYNAMIC"}, Settings()),
        ({"HOROVOD_CYCLE_TIME": "x"}, Settings(without_effect=("HOROVOD_CYCLE_TIME",))),
        ({"HOROVOD_FUSION_THRESHOLD": "4096"}, Settings(fusion_bytes=4096)),
        ({"HOROVOD_DYNAMIC_PROCESS_SETS": "1"}, Settings(dynamic_process_sets=True)),
    ],
)
def test_variables_with_an_effect_are_read(environ: dict[str, str], expected: Settings) -> None:
    assert Settings.of(environ) == expected


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
@pytest.mark.parametrize(
    "name", ["HOROVOD_STALL_CHECK_TIME_SECONDS", "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"]
)
def test_values_that_are_no_seconds_are_refused(name: str, text: str) -> None:
    with pytest.raises(StartError, match=f"{name} is '{text}'; expected seconds"):
        Settings.of({name: text})


def test_no_number_of_bytes_is_refused() -> None:
    with pytest.raises(StartError, match="HOROVOD_FUSION_THRESHOLD is '-1'; expected a number of"):
        Settings.of({"HOROVOD_FUSION_THRESHOLD": "-1"})


@pytest.mark.long
def test_missing_ranks_are_named_and_time_out() -> None:
    stalls = ["--stall-check-warning-time-seconds=3", "--stall-check-shutdown-time-seconds=9"]
    command = [sys.executable, "tests/scripts/stalling.py"]
    done = launch("-np", "3", *stalls, "--", *command, cwd=ROOT, timeout_s=150)
    assert done.returncode == 0, done.stderr
    for name in "abcd":
        assert f"gave up {name}: " in done.stdout, done.stdout
    for rank, name, missing in (
        (0, "<a>", "ranks 1..2"),
        (0, "<b>", "ranks 1..2"),
        (1, "<c>", "ranks 0, 2"),
        (2, "<d> among ranks 1..2", "rank 1"),
    ):
        warning = f"s in allreduce average {name} of float32 (3): {missing} ha"
        found = [
            line
            for line in done.stderr.splitlines()
            if line.startswith(f"[{rank}] rank {rank} has waited") and warning in line
        ]
        assert found, done.stderr
        assert (
            rank != 2 or "rank 1 waits in allreduce average <c> of float32 (3) itself" in found[-1]
        )
