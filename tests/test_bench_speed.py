"""The command that measures speed, start and memory: what it computes, and that it runs."""

import contextlib
import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests import events
from tests.group import ROOT
from tests.processes import wait_until
from tfddl.bench.crew import Crew
from tfddl.bench.ground import ThisMachine
from tfddl.bench.load import ForeignLoad, Moment
from tfddl.bench.machines import Machine
from tfddl.bench.main import main, settings_from
from tfddl.bench.orders import LONE, Call, Called, Mode, Operation, Ran
from tfddl.bench.progress import Progress
from tfddl.bench.settings import SIZES, Part, Settings, format_size, parse_size, quick_settings
from tfddl.bench.spread import Spread, StepTimes, ratios
from tfddl.bench.training import images_per_s, step_times, written_per_reduced
from tfddl.bench.workloads import WORKLOADS, Workload
from tfddl.errors import DataError, LaunchError

COMMAND = [sys.executable, "-m", "tfddl.bench"]
TINY = ["--models=mlp", "--batch-size=2", "--rounds=2", "--round-seconds=0.1", "--starts=1"]


def _run(*arguments: str, timeout_s: float = 280) -> "subprocess.CompletedProcess[str]":
    found = subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found


@pytest.mark.long
def test_two_workers_are_measured_in_all_respects(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    done = _run("--workers=2", *TINY, "--sizes=4K,2M", f"--json={path}", f"--plots={tmp_path}")
    found = json.loads(path.read_text())
    transports = {entry["transport"] for entry in found["training"]}
    assert "RING" in transports  # Every CPU has it, whatever it would rather use.
    _check_collectives(found, transports)
    _check_training(found)
    assert [start["workers"] for start in found["starts"]][:2] == [0, 2]
    for start in found["starts"]:
        assert 0 < start["first_step_s"] < start["total_s"]["median"]
        assert 0 < start["import_s"] < start["total_s"]["median"]
    assert set(found["foreign_cores"]) == {"training", "collectives"}
    (machine,) = found["machines"]
    for taken in found["foreign_cores"].values():
        (cores,) = taken.values()
        assert 0 <= cores <= machine["cores"]
    assert found["layouts"] == {"2": {"localhost": 2}}
    assert found["versions"]["keras"].startswith("3.")
    assert {p.name for p in tmp_path.glob("*.png")} == {
        "bandwidth_allreduce_2_workers.png",
        "efficiency.png",
    }
    assert "round 2 of 2" in done.stderr
    for table in ("collective  workers", "model", "start", "memory"):
        assert re.search(rf"^{table} ", done.stdout, re.MULTILINE), table


def _check_collectives(found: dict[str, Any], transports: set[str]) -> None:
    speeds = found["collectives"]
    assert {(s["transport"], s["num_bytes"], s["mode"]) for s in speeds} == {
        (transport, num_bytes, mode)
        for transport in transports
        for num_bytes in (2**12, 2**21)
        for mode in ("graph", "eager")
    }
    for speed in speeds:
        call_s = speed["call_s"]
        assert 0 < call_s["least"] <= call_s["median"] <= call_s["p95"] <= call_s["most"]
        assert call_s["number"] >= 8  # 2 ranks, 2 rounds, at least 2 calls
        assert speed["gb_per_s"] == pytest.approx(speed["num_bytes"] / call_s["median"] / 1e9)
    sums = {added["num_bytes"]: added["gb_per_s"] for added in found["memory_sums"]}
    assert set(sums) == {2**12, 2**21}
    # Nothing moves between processes faster than one core reads and writes; but other programs
    # may have disturbed that one more.
    assert all(s["gb_per_s"] < 10 * sums[s["num_bytes"]] for s in speeds)


def _check_training(found: dict[str, Any]) -> None:
    for speed in found["training"]:
        assert speed["images_per_s"]["number"] == speed["ratio"]["number"] == 2
        assert speed["ratio"]["least"] <= speed["ratio"]["median"] <= speed["ratio"]["most"]
        # As many images as there are workers and examples of each in a step.
        each_s = 2 * 2 / speed["images_per_s"]["median"]
        assert 0.05 < each_s / speed["step_s"] < 20  # Not measured in the same steps.
        parts = speed["parts"]
        assert parts["compute_s"] > 0
        assert parts["moving_s"] > 0
        assert parts["waiting_s"] >= 0
    for memory in found["memory"]:
        num_weights = 3072 * 1024 + 1024 + 2 * (1024 * 1024 + 1024) + 1024 * 1000 + 1000
        assert memory["gradient_bytes"] == 4 * num_weights
        assert 100e6 < memory["lone_started_bytes"] < memory["lone_kept_bytes"]
        assert 100e6 < memory["started_bytes"] < memory["kept_bytes"]


@pytest.mark.long
def test_everything_for_one_two_and_three_workers(tmp_path: Path) -> None:
    path, logdir = tmp_path / "bench.json", tmp_path / "logs"
    operations = ",".join(Operation)
    arguments = [f"--operations={operations}", "--compare", f"--json={path}", f"--logdir={logdir}"]
    _run("--workers=1,2,3", *TINY, "--sizes=4,8K", *arguments)
    found = json.loads(path.read_text())
    ways = {(entry["workers"], entry["transport"]) for entry in found["training"]}
    assert (1, "none (one worker)") in ways
    for workers in (2, 3):
        assert {(workers, "RING"), (workers, "TensorFlow's strategy")} <= ways
    assert {speed["operation"] for speed in found["collectives"]} == set(Operation)
    assert {speed["workers"] for speed in found["collectives"]} == {2, 3}
    curve = events.scalars(logdir / "job" / "RING")
    assert set(curve["bandwidth_gb_per_s/allreduce_2_workers"]) == {4, 8192}
    efficiency = events.scalars(logdir / "job" / "mlp__RING")["efficiency/over_workers"]
    assert set(efficiency) == {2, 3}
    pictures = events.images(logdir / "job")
    assert set(pictures) == {
        *(f"charts/bandwidth_{name}_{n}_workers" for name in Operation for n in (2, 3)),
        "charts/efficiency",
    }
    assert "| mlp" in events.texts(logdir / "job")["tables"][0]


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_it_ends_no_worker_stays(number: signal.Signals) -> None:
    with tempfile.TemporaryDirectory() as directory:
        process = subprocess.Popen(
            [*COMMAND, "--workers=2", "--only=collectives", "--rounds=1000", "--sizes=4K"],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": directory},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        for line in process.stderr:
            if "round 1 of 1000" in line:
                break
        assert len(_workers(directory)) >= 4  # lone ones, and at least one job
        process.send_signal(number)
        status = process.wait(timeout=60)
        process.stderr.close()
        assert status == (-signal.SIGKILL if number is signal.SIGKILL else 128 + number)
        wait_until(lambda: not _workers(directory), timeout_s=60)
        if number is not signal.SIGKILL:
            assert list(Path(directory).iterdir()) == []


def _workers(directory: str) -> list[int]:
    """Those whose socket is there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # It has ended meanwhile.
            line = path.read_bytes()
            if b"tfddl.bench.worker" in line and directory.encode() in line:
                found.append(int(path.parent.name))
    return found


def _crew(way: str, num_workers: int, directory: Path) -> Crew:
    ground = ThisMachine()
    team = ground.team(num_workers)
    return Crew(way, team=team, ground=ground, environment=os.environ, directory=directory)


def test_a_worker_that_dies_is_named_with_what_it_said() -> None:
    with tempfile.TemporaryDirectory() as directory:
        crew = _crew(LONE, 2, Path(directory))
        with pytest.raises(LaunchError, match=r"rank \d has gone\. They said") as caught, crew:
            _ask_before_and_after_a_death(crew)
        assert "tfddlrun: rank 1 failed: killed by SIGKILL" in str(caught.value)
        assert list(Path(directory).iterdir()) == []


def _ask_before_and_after_a_death(crew: Crew) -> None:
    order = Call(operation=Operation.ALLREDUCE, mode=Mode.GRAPH, num_bytes=4096, calls=3)
    called = crew.ask(order)
    assert all(isinstance(of_rank, Called) for of_rank in called)
    assert [len(of_rank.call_s) for of_rank in called] == [3, 3]
    os.kill(crew.hellos[1].pid, signal.SIGKILL)
    crew.ask(order)


def test_a_job_that_can_not_start_says_why() -> None:
    with tempfile.TemporaryDirectory() as directory:
        crew = _crew("nonsense", 1, Path(directory))
        with pytest.raises(LaunchError, match="collective is 'nonsense'; it must be one of"), crew:
            pass


def test_what_others_work_is_told_from_what_we_do(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    (tmp_path / "7").mkdir()
    (tmp_path / str(os.getpid())).mkdir()

    def write(*, busy_s: float, ours_s: float, other_core_s: float = 0.0) -> None:
        columns = f"{busy_s * ticks:.0f} 0 0 999 9 8 7 0 0 0"  # user … idle, iowait, irq, softirq
        (tmp_path / "stat").write_text(
            f"cpu 1 2\ncpu0 {columns}\ncpu1 {other_core_s * ticks:.0f} 0 0 0 0 0 0 0\nctxt 9\n"
        )
        fields = "S 1 1 1 0 -1 0 0 0 0 0"
        worked = f"{ours_s * ticks:.0f} 0"
        (tmp_path / "7" / "stat").write_text(f"7 (a) name) {fields} {worked} 0 0")
        (tmp_path / str(os.getpid()) / "stat").write_text(f"8 (us) {fields} 0 0 0 0")

    machine = Machine(identity="m", processor="", cores=(0,))

    def now() -> list[Moment]:
        return [Moment.now(machine, [pid], proc=tmp_path) for pid in (7, os.getpid())]

    load = ForeignLoad()
    assert load.cores_taken == {}
    write(busy_s=10, ours_s=4)
    before = now()
    write(busy_s=13, ours_s=5, other_core_s=50)
    # It was 3 s of work, of which 1 was ours, and one of us tells of the machine.
    after = [dataclasses.replace(moment, at_s=before[0].at_s + 4) for moment in now()]
    other = [Moment(machine="other", at_s=t, busy_s=t, ours_s=0) for t in (1.0, 2.0)]
    load.add([*before, other[0]], [*after, other[1]])
    assert load.cores_taken == {"m": pytest.approx(0.5), "other": pytest.approx(1.0)}


def test_timings_are_summed_up() -> None:
    spread = Spread.of([4.0, 1.0, 2.0])
    assert (spread.median, spread.least, spread.most, spread.number) == (2.0, 1.0, 4.0, 3)
    assert spread.p95 == pytest.approx(3.8)
    # The machine was half as fast in the second round: that tells nothing of either.
    assert ratios([9.0, 4.5], [10.0, 5.0]).median == pytest.approx(0.9)


def test_the_parts_of_a_step() -> None:
    # In the first step rank 1 is late by 3, in the second rank 0 by 1.
    step_s = [[10.0, 10.0], [10.0, 10.0]]
    collective_s = [[5.0, 2.0], [2.0, 3.0]]
    parts = StepTimes.of(step_s, collective_s)
    assert parts == StepTimes(compute_s=7.0, waiting_s=1.0, moving_s=2.0)
    ran = [
        Ran(step_s=(10.0, 10.0), collective_s=c, counters={}, kept_bytes=0)
        for c in ((5.0, 2.0), (2.0, 3.0))
    ]
    assert step_times(ran) == parts
    without = dataclasses.replace(ran[0], collective_s=())
    assert step_times([ran[0], without]) is None
    assert step_times([dataclasses.replace(ran[0], collective_s=(0.0, 0.0))] * 2) is None


def test_images_and_bytes_of_all_ranks_count() -> None:
    counters = {"bytes_reduced": 100, "bytes_written": 250}
    ran = [
        Ran(step_s=(1.0, 3.0), counters=counters, kept_bytes=0),
        Ran(step_s=(1.0, 1.0), counters=counters, kept_bytes=0),
    ]
    assert images_per_s(ran, 8) == pytest.approx(8 * 2 / 4 + 8 * 2 / 2)
    assert written_per_reduced([ran, ran]) == 2.5
    assert written_per_reduced([[dataclasses.replace(ran[0], counters={})]]) is None


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("4K", 4096), ("64kib", 65536), ("1 MiB", 2**20), ("2g", 2**31)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize("text", ["", "K", "4.5K", "-4", "4X", "4KK"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(DataError, match="is no size; sizes are like 4096, 64K or 16M"):
        parse_size(text)


def test_arguments_become_settings(tmp_path: Path) -> None:
    usual = settings_from([], prog="x", num_cores=2)
    assert usual == Settings(workers=(1, 2))
    assert settings_from(["--quick"], prog="x", num_cores=64) == quick_settings(ThisMachine())
    given = settings_from(
        [
            *("--quick", "--workers", "3,1", "--only", "collectives,start", "--sizes", "8,1M"),
            *("--models", "resnet50", "--batch-size", "2", "--rounds", "7", "--compare"),
            *("--operations", "broadcast", "--transports", "ring", "--plots", str(tmp_path / "p")),
        ],
        prog="x",
        num_cores=2,
    )
    assert given == dataclasses.replace(
        quick_settings(ThisMachine()),
        workers=(3, 1),
        only=(Part.COLLECTIVES, Part.START),
        sizes=(8, 2**20),
        models=(dataclasses.replace(WORKLOADS["resnet50"], batch_size=2),),
        rounds=7,
        compare=True,
        operations=(Operation.BROADCAST,),
        transports=("ring",),
        plots=tmp_path / "p",
    )
    assert (tmp_path / "p").is_dir()
    usual_workers = [ThisMachine().usual_workers(n) for n in (1, 2, 3, 64)]
    assert usual_workers == [(1, 2), (1, 2), (1, 2), (1, 2, 4)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers=0"], r"--workers is \(0,\); each must be 1..1024"),
        (["--workers="], "--workers is empty"),
        (["--workers=2,2"], "--workers has something twice: 2, 2"),
        (["--sizes=6"], "--sizes has 6 bytes; a float32 tensor has a multiple of 4"),
        (["--rounds=0"], "--rounds is 0; it must be at least 1"),
        (["--starts=-1"], "--starts is -1"),
        (["--round-seconds=nan"], "--round-seconds is nan; it must be more than 0"),
        (["--image-size=100"], "the image size is 100; it must be a multiple of 32"),
        (["--batch-size=0"], "the batch size is 0"),
        (["--json=/nowhere/x.json"], "--json: /nowhere isn't a folder that can be written to"),
        (["--plots=/dev/null/x"], "--plots /dev/null/x can't be made: Not a directory"),
    ],
)
def test_what_can_not_be_measured(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(rf"tfddl-bench: DataError: {message}.*\n", said), said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers=x"], "argument --workers: 'x'; expected, with commas between: whole numbers"),
        (["--only=x"], "'x'; expected, with commas between: collectives, training, start"),
        (["--models=vgg"], "'vgg'; expected, with commas between: unet, resnet50, mlp"),
        (["--sizes=big"], "'big'; expected, with commas between: sizes such as 4096, 64K or 16M"),
        (["x"], "unrecognized arguments: x"),
    ],
)
def test_what_can_not_be_read(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_progress_tells_what_is_left() -> None:
    out = io.StringIO()
    progress = Progress(out)
    with progress.within("2 workers"), progress.within("U-Net"):
        assert list(progress.rounds(2)) == [0, 1]
    progress.say("done")
    first, second, last = out.getvalue().splitlines()
    assert re.fullmatch(
        r"tfddl-bench: \[  0 s\] 2 workers, U-Net, round 1 of 2 done after 0.0 s; about 0 s left",
        first,
    )
    assert second.endswith("round 2 of 2 done after 0.0 s")
    assert last.endswith("s] done")


def test_only_models_that_can_be_halved() -> None:
    with pytest.raises(DataError, match="multiple of 32"):
        Workload(model="unet", label="U-Net", image_size=16, batch_size=1)
    assert SIZES == tuple(4096 * 4**n for n in range(8))
