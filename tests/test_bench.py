"""What `tfddl-bench` computes and shows: flags, statistics, tables, JSON, pictures."""

import dataclasses
import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.group import ROOT
from tests.hosts import HERE
from tfddl._src.launcher.hosts import parse_hosts
from tfddl.bench import flags, plots
from tfddl.bench.codec import from_json, to_json
from tfddl.bench.config import (
    EXAMPLE_BYTES,
    SIZES,
    Config,
    InitOptions,
    Mode,
    Operation,
    Order,
    Part,
    Style,
    format_size,
    parse_size,
)
from tfddl.bench.experiment import SINGLE
from tfddl.bench.inter_host import listen, receive, send
from tfddl.bench.jobs import PLAIN, Kind, Task, run_job
from tfddl.bench.machines import Load, LoadMeter, Machine, foreign_load
from tfddl.bench.main import main
from tfddl.bench.progress import Progress
from tfddl.bench.reading import Read, check_all_were_read
from tfddl.bench.report import report
from tfddl.bench.results import (
    CollectiveSpeed,
    Reading,
    Results,
    Start,
    Stream,
    TrainingSpeed,
    read_json,
    write_json,
)
from tfddl.bench.rss import Rss
from tfddl.bench.stats import Spread, StepTimes, ratios
from tfddl.bench.table import markdown, table
from tfddl.bench.targets import Target
from tfddl.bench.workloads import WORKLOADS
from tfddl.errors import DataError, LaunchError

MB = 1e6
QUIET = Machine(identity="m", hosts=("localhost",), processor="a processor", cores=(0, 1))


def _config(*arguments: str, num_cores: int = 2) -> tuple[Config, Target]:
    return flags.read(flags.make_parser("x").parse_args(arguments), num_cores=num_cores)


def _results() -> Results:
    collective = CollectiveSpeed(
        workers=2,
        operation=Operation.ALLREDUCE,
        transport="RING",
        num_bytes=4096,
        mode=Mode.GRAPH,
        call_s=Spread.of([0.001, 0.003]),
        gb_per_s=0.002048,
        of_memory_sum=0.004096 / 10,
    )
    large = dataclasses.replace(collective, num_bytes=2**26, gb_per_s=0.5, of_memory_sum=0.1)
    trained = TrainingSpeed(
        workers=2,
        model="unet",
        image_size=128,
        batch_size=8,
        transport="RING",
        style=Style.OPTIMIZER,
        images_per_s=Spread.of([70.0]),
        plain_images_per_s=Spread.of([80.0]),
        ratio=Spread.of([0.875]),
        over_strategy=None,
        steps_per_round=5,
        step_s=0.2286,
        plain_step_s=0.2,
        parts=StepTimes(compute_s=0.2, waiting_s=0.01, moving_s=0.0186),
        bytes_written_per_byte_reduced=2.5,
        gradient_bytes=5_000_000,
        sent_bytes=(),
    )
    start = Start(
        workers=0,
        model="unet",
        transport=SINGLE,
        total_s=Spread.of([7.0]),
        import_s=3.0,
        init_s=0.0,
        first_step_s=4.0,
        started_bytes=200_000_000,
        kept_bytes=500_000_000,
        gradient_bytes=5_000_000,
    )
    plain = dataclasses.replace(start, workers=2, transport=PLAIN, kept_bytes=450_000_000)
    return Results(
        versions={"tensorflow": "2.21.0"},
        machines=[QUIET],
        layouts={2: {"localhost": 2}},
        collectives=[
            large,
            collective,
            *(dataclasses.replace(c, mode=Mode.EAGER) for c in (large, collective)),
        ],
        training=[
            dataclasses.replace(
                trained,
                workers=1,
                parts=None,
                ratio=Spread.of([0.99]),
                bytes_written_per_byte_reduced=None,
            ),
            trained,
        ],
        starts=[
            start,
            plain,
            dataclasses.replace(
                plain,
                transport="RING",
                total_s=Spread.of([9.0, 8.0]),
                started_bytes=204_000_000,
                kept_bytes=460_000_000,
            ),
        ],
        reading=[
            Reading(
                workers=2,
                order=Order.GLOBAL,
                shard_bytes=(1000 * EXAMPLE_BYTES, 1100 * EXAMPLE_BYTES),
                kept_bytes=(int(7.2e6), int(5.1e6)),
                peak_bytes=(int(9e6), int(9e6)),
                mapped_bytes=(0, 0),
            )
        ],
        loads=[
            Load(part="training", machine="m", elapsed_s=10.0, foreign_s=0.2),
            Load(part="collectives", machine="m", elapsed_s=10.0, foreign_s=2.0),
            Load(part="collectives", machine="m", elapsed_s=10.0, foreign_s=4.0),
        ],
        seconds=61.0,
    )


def _row(text: str, *starts_with: str) -> list[str]:
    rows = [re.split(r"  +", line.strip()) for line in text.splitlines()]
    (found,) = (row for row in rows if row[: len(starts_with)] == list(starts_with))
    return found


def test_the_tables() -> None:
    text = report(_results())
    nothing = Results(versions={"tensorflow": "2.21.0"}, seconds=1.0)
    timing = ["2", "2.9"]
    assert _row(text, "allreduce", "2", "64 MiB") == [
        *("allreduce", "2", "64 MiB", "RING", *timing, "0.5", "0.1", *timing, "0.5")
    ]
    assert text.index("4 KiB") < text.index("64 MiB")
    assert _row(text, "unet 128 x 8", "2") == [
        *("unet 128 x 8", "2", "RING", "fit", "70.0", "80.0", "0.875", "0.875..0.875"),
        *("229", "200", "10", "18.6", "2.50"),
    ]
    assert _row(text, "unet 128 x 8", "1")[-4:] == ["–"] * 4
    assert _row(text, SINGLE) == [SINGLE, "1", "7.0", "1", "3.0", "0.0", "4.0"]
    assert _row(text, "RING", "2") == ["RING", "2", "8.5", "+1.5", "2", "3.0", "0.0", "4.0"]
    assert _row(text, "unet", "2") == [
        *("unet", "2", "RING", "460", "450", "+10", "+4", "5.0", "+2.0")
    ]
    assert "2100 examples of 27648 bytes" in text
    assert _row(text, "global") == ["global", "2", "28..30", "5..7", "9", "0"]
    assert "\na processor, 2 cores.\ntensorflow 2.21.0; 61 s.\nMeanwhile" in text
    assert "(training), others kept 0.02 of 2 cores busy." in text
    assert "(collectives), others kept 0.30 of 2 cores busy: THESE TIMINGS SAY LITTLE." in text
    assert "| unet | 2 | RING | 460 |" in report(_results(), markdown)
    assert report(nothing) == "tensorflow 2.21.0; 1 s."
    lines = table(["order", "MB"], [["global", "7"], ["held", "2000"]]).splitlines()
    assert lines == ["order     MB", "global     7", "held    2000"]


def test_the_tables_of_two_hosts() -> None:
    (*_, trained) = _results().training
    over = dataclasses.replace(
        trained, over_strategy=Spread.of([1.5]), sent_bytes=(5_000_000, 4_900_000)
    )
    results = Results(
        versions={"tensorflow": "2.21.0"},
        machines=Machine.merged(
            [
                dataclasses.replace(QUIET, hosts=("hostA",)),
                dataclasses.replace(QUIET, hosts=("hostA",)),
                dataclasses.replace(QUIET, identity="2", hosts=("hostB",), cores=(0, 1, 2, 3)),
                # A container on the first machine, with other cores.
                dataclasses.replace(QUIET, hosts=("hostC",), cores=(1, 2)),
            ]
        ),
        layouts={3: {"hostA": 1, "hostB": 1, "hostC": 1}, 1: {"hostA": 1}},
        streams=[
            Stream(workers=3, gb_per_s=1.234),
            Stream(workers=3, gb_per_s=None, error="E: no"),
        ],
        training=[over],
        loads=[
            Load(part="training", machine="m", elapsed_s=1.0, foreign_s=0.1),
            Load(part="training", machine="2", elapsed_s=1.0, foreign_s=0.5),
        ],
        seconds=9.0,
    )
    lines = report(results).splitlines()
    assert lines[:2] == [
        "One TCP stream carries 1.23 GB/s between the hosts, one way.",
        "What one TCP stream carries between the hosts isn't known: E: no",
    ]
    row = _row(report(results), "unet 128 x 8")
    assert row[8] == "1.50"
    assert row[-2:] == ["5.0", "5.0, 4.9"]
    assert lines[-5:] == [
        "hostA, hostC (one machine): a processor, 3 cores.",
        "hostB: a processor, 4 cores.",
        "tensorflow 2.21.0; 9 s.",
        "Workers of hostA, hostB, hostC: 3 are 1 + 1 + 1; 1 are 1 + 0 + 0.",
        "Meanwhile (training), others kept 0.10 of 3 cores of hostA, hostC, 0.50 of 4 cores of "
        "hostB busy: THESE TIMINGS SAY LITTLE. Run it again on quiet machines.",
    ]


def test_what_is_written_as_json(tmp_path: Path) -> None:
    write_json(_results(), tmp_path / "bench.json")
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["training"][1]["bytes_written_per_byte_reduced"] == 2.5
    assert found["training"][1]["ratio"]["median"] == 0.875
    assert found["collectives"][0]["mode"] == "graph"
    assert found["starts"][2]["kept_bytes"] == 460_000_000
    assert found["foreign_cores"] == {
        "training": {"localhost": 0.02},
        "collectives": {"localhost": pytest.approx(0.3)},
    }
    assert read_json(tmp_path / "bench.json") == _results()


def test_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = _results()
    assert plots.bandwidths(results) == {
        "allreduce_2_workers": {
            "RING": [(4096, 0.002048), (2**26, 0.5)],
            "sum in memory": [(4096, pytest.approx(5.0)), (2**26, 5.0)],
        }
    }
    assert plots.efficiencies(results) == {"unet, RING": [(1, 0.99), (2, 0.875)]}
    assert plots.draw(Results()) == {}
    pytest.importorskip("matplotlib", reason="needs matplotlib (the extra plots)")
    paths = plots.write_pictures(results, tmp_path)
    assert [path.name for path in paths] == ["bandwidth_allreduce_2_workers.png", "efficiency.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    axes: Any = plots.draw(results)["efficiency"].axes[0]
    (line,) = axes.get_lines()
    assert line.get_xydata().tolist() == [[1, 0.99], [2, 0.875]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["unet, RING"]


def test_without_matplotlib_no_picture_is_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plots, "is_available", lambda: False)
    assert main([f"--plots={tmp_path}"]) == 1
    assert capsys.readouterr().err == (
        "tfddl-bench: DataError: --plots draws with matplotlib, which isn't installed. HINT: pip "
        "install 'tfddl[plots]'\n"
    )


def test_what_others_work_is_told_from_what_we_do(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")

    def write(*, busy_s: float, other_core_s: float = 0.0) -> None:
        columns = f"{busy_s * ticks:.0f} 0 0 999 9 8 7 0 0 0"  # user … idle, iowait, irq, softirq
        (tmp_path / "stat").write_text(
            f"cpu 1 2\ncpu0 {columns}\ncpu1 {other_core_s * ticks:.0f} 0 0 0 0 0 0 0\nctxt 9\n"
        )

    meter = LoadMeter([0], proc=tmp_path)
    write(busy_s=10)
    with meter.running():
        write(busy_s=13, other_core_s=50)
    with meter.running():
        write(busy_s=14)
    assert meter.busy_s == pytest.approx(4)
    meter.busy_s = 4.0
    assert meter.own_s < 1
    # It was 4 s of work, of which two workers did 1 and 2; one of them tells of the machine.
    meter.elapsed_s, meter.own_s = 4.0, 1.0
    second, other = LoadMeter([0]), LoadMeter([0])
    second.own_s = 2.0
    other.elapsed_s, other.busy_s, other.own_s = 1.0, 1.0, 1.5  # The clocks don't quite agree.
    assert foreign_load("p", [("m", meter), ("m", second), ("other", other)]) == [
        Load(part="p", machine="m", elapsed_s=4.0, foreign_s=1.0),
        Load(part="p", machine="other", elapsed_s=1.0, foreign_s=0.0),
    ]


def test_timings_are_summed_up() -> None:
    spread = Spread.of([4.0, 1.0, 2.0])
    assert (spread.median, spread.least, spread.most, spread.number) == (2.0, 1.0, 4.0, 3)
    assert spread.p95 == pytest.approx(3.8)
    # The machine was half as fast in the second round: that tells nothing of either.
    assert ratios([9.0, 4.5], [10.0, 5.0]).median == pytest.approx(0.9)


def test_the_parts_of_a_step() -> None:
    # In the first step rank 1 is late by 3, in the second rank 0 by 1.
    step_s = [[10.0, 10.0], [10.0, 10.0]]
    parts = StepTimes.of(step_s, [[5.0, 2.0], [2.0, 3.0]])
    assert parts == StepTimes(compute_s=7.0, waiting_s=1.0, moving_s=2.0)
    assert StepTimes.of(step_s, [[5.0, 2.0], []]) is None
    assert StepTimes.of(step_s, [[0.0, 0.0], [0.0, 0.0]]) is None


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


def test_flags_become_a_config(tmp_path: Path) -> None:
    assert SIZES == tuple(4096 * 4**n for n in range(8))
    assert _config() == (Config(workers=(1, 2)), Target())
    assert _config("--quick", num_cores=64)[0] == flags.quick(Target())
    given, _ = _config(
        *("--quick", "--workers", "3,1", "--only", "collectives,start", "--sizes", "8,1M"),
        *("--models", "resnet50", "--batch-size", "2", "--rounds", "7", "--compare"),
        *("--operations", "broadcast", "--transports", "ring", "--plots", str(tmp_path / "p")),
        *("--styles", "scope,optimizer", "--between-hosts", "ring"),
    )
    assert given == dataclasses.replace(
        flags.quick(Target()),
        workers=(3, 1),
        only=(Part.COLLECTIVES, Part.START),
        sizes=(8, 2**20),
        models=("resnet50",),
        batch_size=2,
        rounds=7,
        compare=True,
        operations=(Operation.BROADCAST,),
        transports=("ring",),
        plots=tmp_path / "p",
        styles=(Style.SCOPE, Style.OPTIMIZER),
        between_hosts="ring",
    )
    assert (tmp_path / "p").is_dir()
    assert given.init_options() == (InitOptions(collective="ring", between_hosts="ring"),)
    assert given.workloads == (dataclasses.replace(WORKLOADS["resnet50"], batch_size=2),)
    assert from_json(Config, to_json(given)) == given
    usual_workers = [Target().usual_workers(n) for n in (1, 2, 3, 64)]
    assert usual_workers == [(1, 2), (1, 2), (1, 2), (1, 2, 4)]


def test_the_help_describes_every_flag_and_choice() -> None:
    actions = {action.dest: action for action in flags.make_parser("x")._actions}
    for field in dataclasses.fields(Config):
        assert actions[field.name].help, field.name
    for name, choices in (
        ("only", Part),
        ("models", WORKLOADS),
        ("styles", (Style.OPTIMIZER, Style.SCOPE)),
        ("operations", Operation),
        ("orders", Order),
    ):
        assert all(str(choice) in str(actions[name].help) for choice in choices), name
    default = str(actions["sizes"].help).partition("default: ")[2].removesuffix(")")
    assert tuple(map(parse_size, default.split(","))) == SIZES
    assert str(EXAMPLE_BYTES) in str(actions["file_size"].help)


def test_flags_for_hosts(tmp_path: Path) -> None:
    hostfile, key = tmp_path / "hosts", tmp_path / "key"
    hostfile.write_text("hostA slots=2\nhostB\n")
    key.write_text("")
    config, target = _config(
        *("--hostfile", str(hostfile), "-p", "2222", "-i", str(key), "--remote-python", "/py")
    )
    assert config.workers == (2, 3)
    assert target == Target(
        hosts=parse_hosts("hostA:2,hostB:1"),
        reach=(
            "--ssh-port=2222",
            f"--ssh-identity-file={key}",
            "--ssh-command=ssh",
            "--remote-python=/py",
        ),
        python="/py",
    )
    assert _config("-H=a,b,c", "--quick")[0].workers == (3,)
    assert _config("-H=a:4", "--quick")[0].workers == (2,)


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
    assert f"--hosts={HERE[0]}:1" in target.single_command()
    assert "--num-proc=3" in Target().command(3)
    assert Target().single_command() == (sys.executable,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers=0"], r"--workers is (0,); each must be 1..1024"),
        (["--workers="], "--workers is empty"),
        (["--workers=2,2"], "--workers has something twice: 2, 2"),
        (["--sizes=6"], "--sizes has 6 bytes; a float32 tensor has a multiple of 4"),
        (["--rounds=0"], "--rounds is 0; it must be at least 1"),
        (["--starts=-1"], "--starts is -1"),
        (["--round-seconds=nan"], "--round-seconds is nan; it must be more than 0"),
        (["--image-size=100"], "the image size is 100; it must be a multiple of 32"),
        (["--batch-size=0"], "the batch size is 0"),
        (["--json=/nowhere/x.json"], "--json: /nowhere isn't a directory that can be written to"),
        (["--plots=/dev/null/x"], "--plots /dev/null/x can't be made: Not a directory"),
        (["-H=a:2,b:2", "--workers=2,5"], "5 workers don't fit on 2 hosts with 4 slots. HINT: "),
        (["-H=a:2,a:2"], "host a is named twice. HINT: once, as a:4"),
        (["-H=a:2", "--hostfile=x"], "both -H and --hostfile name hosts"),
        (["--hostfile=/no/such"], "can't read the hostfile /no/such"),
        (["-H=a:2", "-p", "0"], "the ssh port (-p) is 0; it must be 1..65535"),
        (["-H=a:2", "--start-timeout=0"], "--start-timeout is 0.0; it must be above 0 seconds"),
        (["-H=a:2", "--only=reading"], "--only reading is measured on this machine"),
        (["--only=reading", "--file-size=20K"], "less than an example of 27648 bytes for each"),
        (["--only=reading", "--file-size=999999999G"], "has less than "),
        (["--only=reading", "--file-dir=/no"], "--file-dir: /no isn't a directory that can be"),
    ],
)
def test_what_can_not_be_measured(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("tfddl.bench.main.Experiment")  # It doesn't come to that.
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"tfddl-bench: (Data|Launch)Error: ", line)
    assert message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers=x"], "argument --workers: 'x'; expected, with commas between: whole numbers"),
        (["--only=x"], "'x'; expected, with commas between: collectives, training, start, reading"),
        (["--models=vgg"], "'vgg'; expected, with commas between: unet, resnet50, mlp"),
        (["--sizes=big"], "'big'; expected, with commas between: sizes such as 4096, 64K or 16M"),
        (["--styles=plain"], "'plain'; expected, with commas between: optimizer, scope"),
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
    progress = Progress(said.append)
    with progress.within("2 workers"), progress.within("U-Net"):
        assert list(progress.rounds(2)) == [0, 1]
    progress.say("done")
    assert said == [
        "2 workers, U-Net, round 1 of 2 done after 0.0 s; about 0 s left",
        "2 workers, U-Net, round 2 of 2 done after 0.0 s",
        "done",
    ]


TASK = Task(kind=Kind.START, config=Config(workers=(2,)), workload=WORKLOADS["mlp"])


def _run(script: str, *, num_workers: int = 2) -> tuple[object, list[str]]:
    """A job of which a shell takes the place; what it writes is what workers and tfddlrun write."""
    said: list[str] = []
    command = ("sh", "-c", script, "sh")
    outcome = run_job(
        command, TASK, num_workers=num_workers, environment=os.environ, say=said.append
    )
    return outcome, said


def test_reports_of_workers_are_read() -> None:
    lines = [
        "TensorFlow chatters",
        '[0] @tfddl-bench {"progress": "round 1"}',
        '[1] @tfddl-bench {"has_stepped": true}',
        f'[0] @tfddl-bench {{"results": {to_json(_results())}}}',
        '[0] @tfddl-bench {"others": ["ring"]}',
        '@tfddl-bench {"is_done": true}',
        '[1] @tfddl-bench {"is_done": true}',
    ]
    outcome, said = _run("cat <<'END'\n" + "\n".join(lines) + "\nEND")
    expected = Results()
    expected.add(_results())
    assert outcome.results == expected  # type: ignore[attr-defined]
    assert outcome.others == ("ring",)  # type: ignore[attr-defined]
    assert outcome.step_s > 0  # type: ignore[attr-defined]
    assert said == ["round 1"]


def test_a_worker_without_a_last_report_has_failed() -> None:
    script = "echo '[0] @tfddl-bench {\"is_done\": true}'; echo 'rank 1 failed: why' >&2"
    with pytest.raises(LaunchError, match=r"a job of 2 workers failed\. It said.*\n    rank 1 f"):
        _run(script)
    _run(script, num_workers=1)
    with pytest.raises(LaunchError, match="    nothing"):
        _run("exit 3")


def test_a_stream_carries_bytes() -> None:
    with listen() as listener:
        thread = threading.Thread(target=receive, args=(listener, 10_000_000))
        thread.start()
        assert send("127.0.0.1", listener.getsockname()[1], 10_000_000) > 0
        thread.join(timeout=20)
        assert not thread.is_alive()


def test_memory_is_what_the_process_holds(tmp_path: Path) -> None:
    before = Rss.now()
    held = np.ones(40 * 2**20, np.uint8)
    assert 38 * MB < Rss.now().kept - before.kept < 50 * MB
    np.save(tmp_path / "x.npy", held)
    del held
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert mapped.sum() == 40 * 2**20
    now = Rss.now()
    assert now.kept - before.kept < 10 * MB
    assert now.mapped - before.mapped > 38 * MB


def test_examples_that_are_missed_are_noticed() -> None:
    reads = [Read(examples=2, ids=ids, kept=0, peak=0, mapped=0) for ids in (0 + 2, 1 + 3)]
    check_all_were_read(reads, 4)
    with pytest.raises(DataError, match="read 4 examples instead of 5"):
        check_all_were_read(reads, 5)
    with pytest.raises(DataError):
        check_all_were_read([reads[0], reads[0]], 4)


def test_the_commands_of_the_documentation_and_the_help_are_understood() -> None:
    text = (ROOT / "docs" / "performance.md").read_text() + flags.make_parser(
        "tfddl-bench"
    ).format_help()
    commands = re.findall(r"^ *(?:srun \S+ )?tfddl-bench( [-#].*)?$", text, re.MULTILINE)
    lines = [command.partition("#")[0].split() for command in commands]
    assert len(lines) > 10
    for line in lines:
        flags.make_parser("tfddl-bench").parse_args(line)
