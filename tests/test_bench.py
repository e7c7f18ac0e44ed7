"""What `tfddl-bench` computes and shows: flags, statistics, tables, JSON, pictures."""

import argparse
import dataclasses
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cases.bench import undocumented
from tests.group import ROOT
from tests.hosts import HERE
from tfddl._src.launcher.hosts import parse_hosts
from tfddl.bench import cost_model, flags, plots, scaling
from tfddl.bench.config import (
    EXAMPLE_BYTES,
    SIZES,
    WORKLOADS,
    Config,
    Operation,
    Part,
    Style,
    format_size,
    parse_size,
)
from tfddl.bench.experiment import Experiment
from tfddl.bench.inter_host import receive, send
from tfddl.bench.interleave import count_rounds
from tfddl.bench.jobs import Kind, run_job
from tfddl.bench.machines import Memory, work_s
from tfddl.bench.main import main
from tfddl.bench.report import compare, markdown, report, table
from tfddl.bench.results import PLAIN, SINGLE, Labels, Results, Row, ratios, read_json, write_json
from tfddl.bench.targets import Target
from tfddl.bench.training import examples_per_s, sent_bytes, step_parts
from tfddl.errors import LaunchError

MB = 1e6
UNET: Labels = {"model": "unet", "pixels": 128, "batch": 8, "by": "RING", "style": "fit"}


def _config(*arguments: str, num_cores: int = 2) -> Config:
    given = flags.make_parser("x").parse_args(arguments)
    workers = flags.read_target(given).usual_workers(num_cores, is_quick=given.quick)
    return flags.read_config(given, workers=workers)


def _sum(num_bytes: int, *, mode: str = "graph", **values: float) -> Row:
    labels: Labels = {"operation": "allreduce", "workers": 2, "bytes": num_bytes, "by": "RING"}
    return Row("collectives", {**labels, "mode": mode}, {"ms": 2.0, **values})


def _results() -> Results:
    machine: Labels = {"workers": 2, "by": "RING", "hosts": "h", "processor": "p"}
    return Results(
        versions={"tensorflow": "2.21.0"},
        rows=[
            _sum(2**26, gb_per_s=0.5, ratio=0.1),
            _sum(4096, gb_per_s=0.002048, ratio=0.0004096),
            _sum(4096, mode="eager", gb_per_s=0.001, ratio=0.0002),
            Row("training", {"workers": 1, **UNET}, {"ratio": 0.99}),
            Row("training", {"workers": 2, **UNET}, {"ratio": 0.875, "compute_ms": 200.04}),
            Row("machines", machine, {"cores": 2, "others_busy": 0.1}),
        ],
        seconds=61.0,
    )


def _row(text: str, *starts_with: str) -> list[str]:
    rows = [re.split(r"  +", line.strip()) for line in text.splitlines()]
    (found,) = (row for row in rows if row[: len(starts_with)] == list(starts_with))
    return found


def test_the_tables() -> None:
    results = _results()
    text = report(results)
    headings = ["operation", "workers", "bytes", "by", "mode", "ms", "GB/s", "ratio"]
    assert _row(text, "operation") == headings
    assert _row(text, "allreduce", "2", "64 MiB") == [
        *("allreduce", "2", "64 MiB", "RING", "graph", "2", "0.5", "0.1")
    ]
    assert _row(text, "1") == ["1", "unet", "128", "8", "RING", "fit", "0.99", "–"]
    assert _row(text, "2", "unet") == ["2", "unet", "128", "8", "RING", "fit", "0.875", "200"]
    assert "tensorflow 2.21.0; 61 s." in text
    assert "TIMINGS" not in text
    assert "| 2 | unet | 128 | 8 | RING |" in report(results, markdown)
    busy = {"cores": 2.0, "others_busy": 0.3}
    results.rows[-1] = dataclasses.replace(results.rows[-1], values=busy)
    assert "THESE TIMINGS SAY LITTLE" in report(results)
    assert report(Results()) == ""
    lines = table(["order", "MB"], [["global", "7"], ["held", "2000"]]).splitlines()
    assert lines == ["order     MB", "global     7", "held    2000"]


def test_what_is_written_as_json_can_be_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    results = _results()
    write_json(results, before)
    found = json.loads(before.read_text())
    assert found["rows"][4] == {
        "table": "training",
        "labels": {"workers": 2, **UNET},
        "values": {"ratio": 0.875, "compute_ms": 200.04},
    }
    assert read_json(before) == results
    # Twice as fast a machine has other times, and the same ratios.
    results.rows[0] = _sum(2**26, ms=1.0, gb_per_s=1.0, ratio=0.12)
    results.rows[1] = _sum(512, ratio=0.3)
    write_json(results, after)
    assert main(["--diff", str(before), str(after)]) == 0
    lines = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
    what = "operation allreduce, workers 2, bytes 64 MiB, by RING, mode graph"
    assert lines[:2] == [
        ["in both", "what", "before", "after", "change"],
        [f"collectives: {what}", "ratio", "0.1", "0.12", "+20.0%"],
    ]
    assert len(lines) == 1 + 4
    assert compare(Results(), results).splitlines() == ["in both  what  before  after  change"]
    results.rows[-1] = dataclasses.replace(results.rows[-1], values={"cores": 2, "others_busy": 1})
    assert "THESE TIMINGS SAY LITTLE" in compare(_results(), results)
    assert "THESE TIMINGS SAY LITTLE" in compare(results, _results())
    (tmp_path / "other.json").write_text("{}")
    assert main(["--diff", str(before), str(tmp_path / "other.json")]) == 1
    assert "is no file of --json" in capsys.readouterr().err


def test_pictures(tmp_path: Path) -> None:
    results = _results()
    assert plots.bandwidths(results) == {
        "allreduce_2_workers": {
            "RING": [(4096, 0.002048), (2**26, 0.5)],
            "sum in memory": [(4096, pytest.approx(5.0)), (2**26, 5.0)],
        }
    }
    assert plots.efficiencies(results) == {"unet, RING, fit": [(1, 0.99), (2, 0.875)]}
    assert plots.draw(Results()) == {}
    pytest.importorskip("matplotlib", reason="needs matplotlib (the extra plots)")
    paths = plots.write_pictures(results, tmp_path)
    assert [path.name for path in paths] == ["bandwidth_allreduce_2_workers.png", "efficiency.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    axes: Any = plots.draw(results)["efficiency"].axes[0]
    (line,) = axes.get_lines()
    assert line.get_xydata().tolist() == [[1, 0.99], [2, 0.875]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["unet, RING, fit"]


def test_without_matplotlib_no_picture_is_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plots, "is_available", lambda: False)
    assert main([f"--plots={tmp_path}"]) == 1
    assert capsys.readouterr().err == (
        "tfddl-bench: DataError: --plots draws with matplotlib, which isn't installed. HINT: pip "
        "install 'tfddl[plots]'\n"
    )


def test_the_work_of_cores_is_counted(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")

    def write(*, busy_s: float, other_core_s: float = 0.0) -> None:
        busy = round(busy_s * ticks)
        columns = f"{busy} 0 0 {busy} {busy} {busy} {busy} 0 0 0"  # user … idle, I/O, interrupts
        (tmp_path / "stat").write_text(
            f"cpu 1 2\ncpu0 {columns}\ncpu1 {other_core_s * ticks:.0f} 0 0 0 0 0 0 0\nctxt 9\n"
        )

    write(busy_s=10)
    before = work_s([0], proc=tmp_path)
    write(busy_s=13, other_core_s=50)
    elapsed_s, busy_s, own_s = work_s([0], proc=tmp_path) - before
    assert busy_s == pytest.approx(3)
    assert elapsed_s > 0
    assert 0 <= own_s < 1


def test_rates_are_compared_with_their_neighbours() -> None:
    # The machine was half as fast in the second round: that tells nothing of either.
    assert ratios([9.0, 4.5], [10.0, 5.0]) == pytest.approx([0.9, 0.9])
    assert examples_per_s([[0.5, 1.5], [1.0, 1.0]], batch_size=3) == pytest.approx(6)


def test_the_parts_of_a_step() -> None:
    # In the first step rank 1 is late by 3, in the second rank 0 by 1.
    step_s = [[10.0, 10.0], [10.0, 10.0]]
    parts = step_parts(step_s, [[5.0, 2.0], [2.0, 3.0]])
    assert parts == {"compute_ms": 7e3, "waiting_ms": 1e3, "moving_ms": 2e3}
    assert step_parts(step_s, [[5.0, 2.0], []]) == {}
    assert step_parts(step_s, [[0.0, 0.0], [0.0, 0.0]]) == {}


def test_what_a_host_sends_is_counted_without_the_loopback(tmp_path: Path) -> None:
    for name, count in (("lo", 5), ("eth0", 20), ("eth1", 3)):
        (tmp_path / name / "statistics").mkdir(parents=True)
        (tmp_path / name / "statistics" / "tx_bytes").write_text(f"{count}\n")
    (tmp_path / "bonding_masters").touch()
    assert sent_bytes(tmp_path) == 23


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("4K", 4096), ("64kib", 65536), ("1 MiB", 2**20), ("2g", 2**31)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize("text", ["", "K", "4.5K", "-4", "4X", "4KK"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no size; sizes are like 4096"):
        parse_size(text)


def test_flags_become_a_config(tmp_path: Path) -> None:
    assert SIZES == tuple(4096 * 4**n for n in range(8))
    assert _config() == Config(workers=(1, 2))
    assert _config(num_cores=64).workers == (1, 2, 4)
    assert _config("--quick", num_cores=64).workers == (2,)
    assert _config("--quick").models == ("unet",)
    assert _config("--only=scaling").workers == (2, 4, 8, 16, 32, 64)
    assert _config("--only=scaling", "--sizes=8").sizes == (8,)
    assert _config("--only=scaling", "--quick").workers == (2, 8)
    given = _config(
        *("--quick", "--workers", "3,1", "--only", "collectives,start", "--sizes", "8,1M"),
        *("--models", "resnet50,lstm", "--batch-size", "2", "--image-size=64", "--rounds", "7"),
        *("--operations", "broadcast", "--collective", "ring", "--plots", str(tmp_path / "p")),
        *("--styles", "scope,fit", "--between-hosts", "ring", "--compare"),
    )
    assert given == Config(
        workers=(3, 1),
        only=(Part.COLLECTIVES, Part.START),
        sizes=(8, 2**20),
        models=("resnet50", "lstm"),
        batch_size=2,
        image_size=64,
        rounds=7,
        round_seconds=1.5,
        starts=1,
        compare=True,
        operations=(Operation.BROADCAST,),
        collective=("ring",),
        plots=tmp_path / "p",
        styles=(Style.SCOPE, Style.FIT),
        between_hosts="ring",
    )
    given.prepare()
    assert (tmp_path / "p").is_dir()
    resnet50, lstm = (dataclasses.replace(WORKLOADS[n], batch_size=2) for n in given.models)
    assert given.workloads == (dataclasses.replace(resnet50, shape=(64, 64, 3)), lstm)
    # A job's own flags, which come last, count.
    assert not _config("--compare", "--models=unet", "--no-compare", "--models=mlp").compare


def test_the_help_describes_every_flag_and_choice() -> None:
    actions = {action.dest: action for action in flags.make_parser("x")._actions}
    for field in dataclasses.fields(Config):
        assert actions[field.name].help, field.name
    for name, choices in (
        ("only", Part),
        ("models", WORKLOADS),
        ("styles", Style),
        ("operations", Operation),
    ):
        assert all(str(choice) in str(actions[name].help) for choice in choices), name
    default = str(actions["sizes"].help).partition("default: ")[2].partition(";")[0]
    assert tuple(map(parse_size, default.split(","))) == SIZES
    assert str(EXAMPLE_BYTES) in str(actions["file_size"].help)


def test_flags_for_hosts(tmp_path: Path) -> None:
    hostfile, key = tmp_path / "hosts", tmp_path / "key"
    hostfile.write_text("hostA slots=2\nhostB\n")
    key.write_text("")
    given = ["--hostfile", str(hostfile), "-p", "2222", "-i", str(key), "--remote-python", "/py"]
    assert _config(*given).workers == (2, 3)
    assert flags.read_target(flags.make_parser("x").parse_args(given)) == Target(
        hosts=parse_hosts("hostA:2,hostB:1"),
        reach=(
            "--ssh-port=2222",
            f"--ssh-identity-file={key}",
            "--ssh-command=ssh",
            "--remote-python=/py",
            "--launcher=ssh",
        ),
        python="/py",
    )
    with pytest.raises(LaunchError, match="--launcher slurm reaches hosts, and none are named"):
        flags.read_target(flags.make_parser("x").parse_args(["--launcher", "slurm"]))
    assert _config("-H=a,b,c", "--quick").workers == (3,)
    assert _config("-H=a:4", "--quick").workers == (2,)


def test_where_workers_run() -> None:
    target = Target(hosts=parse_hosts(f"{HERE[0]}:2,{HERE[1]}:2"), reach=("--ssh-port=1",))
    layouts = [[(h.name[-1], h.slots) for h in target.layout(n)] for n in (1, 2, 3, 4)]
    assert layouts == [
        [("2", 1)],
        [("2", 1), ("3", 1)],
        [("2", 2), ("3", 1)],
        [("2", 2), ("3", 2)],
    ]
    assert {f"--hosts={HERE[0]}:2,{HERE[1]}:1", "--ssh-port=1"} < set(target.command(3))
    assert f"--hosts={HERE[0]}:1" in target.command(0)
    assert "--num-proc=3" in Target().command(3)
    assert Target().command(0) == (sys.executable,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers=0"], "--workers is 0; it must be above 0"),
        (["--sizes=4,6"], "--sizes is 6; it must be a multiple of 4, above 0"),
        (["--rounds=0"], "--rounds is 0; it must be above 0"),
        (["--starts=-1"], "--starts is -1"),
        (["--round-seconds=nan"], "--round-seconds is nan; it must be above 0"),
        (["--image-size=100"], "--image-size is 100; it must be a multiple of 32"),
        (["--batch-size=0"], "--batch-size is 0"),
        (["--json=/nowhere/x.json"], "/nowhere isn't a directory that can be written to"),
        (["--diff", "/nowhere/x.json", "y.json"], "No such file or directory: '/nowhere/x.json'"),
        (["--plots=/dev/null/x"], "Not a directory: '/dev/null/x'"),
        (["-H=a:2,b:2", "--workers=2,5"], "5 workers don't fit on 2 hosts with 4 slots. HINT: "),
        (["-H=a:2,a:2"], "host a is named twice. HINT: once, as a:4"),
        (["-H=a:2", "--hostfile=x"], "both -H and --hostfile name hosts"),
        (["--hostfile=/no/such"], "can't read the hostfile /no/such"),
        (["-H=a:2", "-p", "0"], "the ssh port (-p) is 0; it must be 1..65535"),
        (["-H=a:2", "--start-timeout=0"], "--start-timeout is 0.0; it must be above 0 seconds"),
        (["-H=a:2", "--only=reading"], "--only reading is measured on this machine"),
        (["-H=a:64", "--only=scaling"], "--only scaling is measured on this machine"),
        (["--only=reading", "--file-size=20K"], "less than an example of 27648 bytes for each"),
        (["--only=reading", "--file-dir=/no"], "No such file or directory: '/no/tfddl-bench-"),
    ],
)
def test_what_can_not_be_measured(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("tfddl.bench.experiment.run_job")  # It doesn't come to that.
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"tfddl-bench: (Data|Launch|FileNotFound|NotADirectory)Error: ", line)
    assert message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers=x"], "argument --workers: invalid int list value: 'x'"),
        (["--workers="], "argument --workers: invalid int list value: ''"),
        (["--workers=2,2"], "argument --workers: '2,2' has something twice"),
        (
            ["--only=x"],
            "'x'; it must be one of collectives, training, steps, virtual, start, reading, "
            "feeding, scaling",
        ),
        (["--models=vgg"], "'vgg'; it must be one of unet, resnet50, mlp"),
        (["--sizes=big"], "'big' is no size; sizes are like 4096, 64K or 16M"),
        (["--styles=plain"], "'plain'; it must be one of fit, jit, scope, loop"),
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
    said: list[str] = []
    assert list(count_rounds(2, "U-Net", said.append)) == [0, 1]
    assert said == [
        "U-Net, round 1 of 2 done after 0.0 s; about 0 s left",
        "U-Net, round 2 of 2 done after 0.0 s",
    ]


def _run(script: str, *, num_workers: int = 2) -> tuple[list[tuple[float, str, Any]], list[str]]:
    """A job of which a shell takes the place; what it writes is what workers and tfddlrun write."""
    said: list[str] = []
    command = "sh", "-c", script
    reports = run_job(command, num_workers=num_workers, environment=os.environ, say=said.append)
    return reports, said


def test_reports_of_workers_are_read() -> None:
    lines = [
        "TensorFlow chatters",
        '[0] @tfddl-bench {"progress": "round 1"}',
        f'[0] @tfddl-bench {{"results": {json.dumps(_results().to_json())}}}',
        '@tfddl-bench {"done": null}',
        '[1] @tfddl-bench {"done": null}',
    ]
    reports, said = _run("cat <<'END'\n" + "\n".join(lines) + "\nEND")
    assert [name for _, name, _ in reports] == ["progress", "results", "done", "done"]
    assert Results.from_json(reports[1][2]) == _results()
    assert all(at_s > 0 for at_s, *_ in reports)
    assert said == ["round 1"]


def test_a_worker_without_a_last_report_has_failed() -> None:
    script = "echo '[0] @tfddl-bench {\"done\": null}'; echo 'rank 1 failed: why' >&2"
    with pytest.raises(LaunchError, match=r"a job of 2 workers failed\. It said.*\n    rank 1 f"):
        _run(script)
    _run(script, num_workers=1)
    with pytest.raises(LaunchError, match="    nothing"):
        _run("exit 3")


def test_starts_are_compared_with_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of jobs stands what their workers report; those of tfddl take a second more."""
    ran = []

    def fake(command: tuple[str, ...], **_: object) -> list[tuple[float, str, Any]]:
        at = command.index("tfddl.bench.worker")
        kind = Kind(command[at + 1])
        by = {Kind.START_PLAIN: PLAIN, Kind.START_TFDDL: command[-1].partition("=")[2]}[kind]
        ran.append((by, "--num-proc=2" in command))
        is_ours = kind is Kind.START_TFDDL
        samples = [
            {"init_s": s, "memory_mb": 100.0 + 8 * is_ours, "gradient_mb": 4.0}
            | {"memory_at_start_mb": 50.0 + is_ours}
            for s in (1.0, 3.0)
        ]
        reports = [(7.0, "stepped", None), (8.0 + is_ours, "stepped", None), (9.0, "by", by)]
        others = [(9.0, "others", ["ring"])] if is_ours else []
        return [*reports, *((9.0, "sample", sample) for sample in samples), *others]

    monkeypatch.setattr("tfddl.bench.experiment.run_job", fake)
    config = Config(only=(Part.START,), models=("mlp",), starts=2)
    results = Experiment(config, Target(), ["--starts=2"], {}, lambda text: None).run()
    once = [(PLAIN, False), (PLAIN, True), ("auto", True), ("ring", True)]
    assert ran == once * 2
    single, plain, auto, ring = results.table("starts")
    assert [row.labels["by"] for row in (single, plain, auto, ring)] == [
        *(SINGLE, PLAIN, "auto", "ring")
    ]
    assert auto.labels == {"workers": 2, "model": "mlp", "by": "auto"}
    assert single.labels["workers"] == 1
    assert single.values["ratio"] == 1
    assert "more_memory_mb" not in plain.values
    assert auto.values == {
        "start_s": 9.0,
        "init_s": 3.0,
        "memory_mb": 108.0,
        "memory_at_start_mb": 51.0,
        "gradient_mb": 4.0,
        "more_s": 1.0,
        "ratio": 9 / 8,
        "more_memory_mb": 8.0,
        "more_memory_at_start_mb": 1.0,
        "more_in_gradients": 2.0,
    }


def test_groups_without_tensorflow_are_measured(tmp_path: Path) -> None:
    """By the command, with which the server ends that forks them."""
    path = tmp_path / "bench.json"
    script = (
        "import sys; from tfddl.bench.main import main; code = main(sys.argv[1:]); "
        "assert 'tensorflow' not in sys.modules; sys.exit(code)"
    )
    quickly = ["--only=scaling", "--workers=2,3", "--sizes=8,256K", "--round-seconds=0.01"]
    done = subprocess.run(
        [sys.executable, "-c", script, *quickly, "--rounds=1", f"--json={path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = read_json(path)
    assert undocumented(found.rows) == []
    assert len(found.table("costs")) == 2
    assert len(found.table("prediction")) == 18
    rows = found.table("scaling")
    assert [row.labels for row in rows] == [
        {"by": by, "bytes": num_bytes, "workers": size}
        for by in scaling.BACKENDS
        for num_bytes in (8, 2**18)
        for size in (2, 3)
    ]
    for row in rows:
        assert 0 < row.values["cpu_ms"]
        assert 0 < row.values["connect_s"]
        others = int(str(row.labels["workers"])) - 1
        streams = others if row.labels["by"] == "TCP" and row.labels["bytes"] != 8 else 0
        assert row.values["connections"] == others + streams < row.values["descriptors"]
        assert 1 <= row.values["threads"]
        assert 1 < row.values["memory_mb"] < 1000
        [of_two] = [r for r in rows if r.labels == {**row.labels, "workers": 2}]
        ratio = row.values["cpu_ms"] / of_two.values["cpu_ms"]
        assert row.values["ratio"] == pytest.approx(ratio)
    assert "scaling, round 1 of 1 done" in done.stderr


@pytest.mark.parametrize(
    ("by", "size", "num_bytes", "expected"),
    [
        ("TCP", 2, 2**16, [1, 1, 2**16, 2**16]),
        ("TCP", 8, 2**16, [1, 1.75, 1.75 * 2**16, 0.875 * 2**16]),
        ("TCP", 2, 2**20, [1, 1.5, 2**20, 2**19]),
        # 4 MiB of all are posted, each byte read by all; more goes by chunks of 4 MiB.
        ("shared memory", 4, 2**20, [1, 3, 0, 3 * 2**20]),
        ("shared memory", 4, 2**20 + 4, [1, 3.75 + 2 * 3, 0, 2**20 + 4]),
        ("shared memory", 64, 2**16 + 4, [1, 3 * 63 / 64 + 2 * 2 * 63 / 64, 0, 2**16 + 4]),
    ],
)
def test_what_an_operation_consists_of(
    by: str, size: int, num_bytes: int, expected: list[float]
) -> None:
    assert cost_model.counts(by, size, num_bytes).tolist() == pytest.approx(expected)


def test_costs_are_found_in_what_they_make() -> None:
    """Of exact times, and none is negative where times are not."""
    for by, given in (
        ("TCP", cost_model.Costs(0.02, 0.01, 5e-7, 1e-7)),
        ("shared memory", cost_model.Costs(0.02, 0.01, 0.0, 1e-7)),
    ):
        rows = [
            Row(
                "scaling",
                {"by": by, "bytes": num_bytes, "workers": size},
                {"cpu_ms": given.of(cost_model.counts(by, size, num_bytes))},
            )
            for num_bytes in (8, 2**16, 2**24)
            for size in (2, 4, 8, 64)
        ]
        found = cost_model.fit_costs(rows)
        assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(given), abs=1e-12)
        for row in cost_model.modelled(rows)[: len(rows)]:
            assert row.values["model_ms"] == pytest.approx(row.values["cpu_ms"])
        noise = np.random.default_rng(1).uniform(0.3, 3.0, len(rows))
        noisy = [
            dataclasses.replace(row, values={"cpu_ms": row.values["cpu_ms"] * factor})
            for row, factor in zip(rows, noise, strict=True)
        ]
        assert min(dataclasses.astuple(cost_model.fit_costs(noisy))) >= 0


def test_predictions_follow_from_the_network() -> None:
    costs = cost_model.Costs(0.0, 0.0, 0.0, 0.0)
    # 16 MiB twice through 10 Gbit/s take 26.8 ms; the ring's 510 steps 0.025 ms each.
    for schedule, ranks, expected in (
        ("ring", 256, 510 * 0.025 + 26.84 * 255 / 256),
        ("tree", 256, 16 * (0.025 + 13.42)),
        ("Horovod's hierarchical", 256, 62 * 0.025 + 26.84 * 31 / 32),
        ("tfddl", 256, 20 * 0.025 + 26.84 * 31 / 32),
    ):
        found = cost_model.predict_ms(schedule, ranks, 10, 2**24, costs)
        assert found == pytest.approx(expected, rel=1e-3), schedule


def test_a_process_that_fails_is_noticed() -> None:
    ours, theirs = multiprocessing.Pipe()
    with ours:
        for sent in ([1.0], "rank 2 is lost"):
            theirs.send(sent)
        assert scaling.receive(ours, 3) == [1.0]
        with pytest.raises(LaunchError, match="rank 3 .* failed: rank 2 is lost"):
            scaling.receive(ours, 3)
        theirs.close()
        with pytest.raises(LaunchError, match=r"failed: it has ended\. HINT"):
            scaling.receive(ours, 3)


def test_a_stream_carries_bytes() -> None:
    with socket.create_server(("", 0)) as listener:
        thread = threading.Thread(target=receive, args=(listener, 10_000_000))
        thread.start()
        assert send(("127.0.0.1", listener.getsockname()[1]), 10_000_000) > 0
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_memory_is_what_the_process_holds(tmp_path: Path) -> None:
    before = Memory.now()
    held = np.ones(40 * 2**20, np.uint8)
    assert 38 * MB < Memory.now().kept - before.kept < 50 * MB
    np.save(tmp_path / "x.npy", held)
    del held
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert mapped.sum() == 40 * 2**20
    now = Memory.now()
    assert now.kept - before.kept < 10 * MB
    assert now.mapped - before.mapped > 38 * MB


def test_the_commands_of_the_documentation_and_the_help_are_understood() -> None:
    text = (ROOT / "docs" / "performance.md").read_text() + flags.make_parser(
        "tfddl-bench"
    ).format_help()
    commands = re.findall(r"^ *(?:srun \S+ )?tfddl-bench( [-#].*)?$", text, re.MULTILINE)
    lines = [command.partition("#")[0].split() for command in commands]
    assert len(lines) > 10
    for line in lines:
        flags.make_parser("tfddl-bench").parse_args(line)
