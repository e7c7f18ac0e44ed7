"""`tfddl-bench` with real workers: what it measures, and how it ends."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import events
from tests.cases.bench import undocumented
from tests.group import ROOT, Groups
from tests.hosts import HERE, stand_in, two_hosts
from tests.processes import wait_until
from tfddl._src.cluster import Cluster
from tfddl._src.cluster.environments import tf_config
from tfddl.bench.config import EXAMPLE_BYTES, Config, Operation, Style
from tfddl.bench.reading import ORDERS, make_file
from tfddl.bench.results import PLAIN, SINGLE, STRATEGY, Results, read_json

COMMAND = [sys.executable, "-m", "tfddl.bench"]
TINY = ["--models=mlp", "--batch-size=2", "--rounds=2", "--round-seconds=0.1", "--starts=1"]
TIMEOUT_S = 560
MLP_WEIGHTS = 3072 * 1024 + 1024 + 2 * (1024 * 1024 + 1024) + 1024 * 1000 + 1000


def _run(*arguments: str, status: int = 0) -> "subprocess.CompletedProcess[str]":
    found = subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert found.returncode == status, found.stdout + found.stderr
    return found


@pytest.mark.long
def test_what_is_measured_within_a_job(groups: Groups) -> None:
    config = Config(
        sizes=(4096, 2**21),
        operations=tuple(Operation),
        models=("mlp", "embedding"),
        styles=(Style.FIT, Style.LOOP),
        batch_size=2,
        rounds=2,
        round_seconds=0.05,
    )
    found = groups(2, hosts=(1, 1)).run("tests.cases.bench:measure", config=config)
    results = Results(rows=found[0][0])
    assert found[1][0] == found[0][0]  # Of all ranks, on each of them.
    assert undocumented(results.rows) == []
    collectives = results.table("collectives")
    assert {
        tuple(row.labels[n] for n in ("operation", "bytes", "mode")) for row in collectives
    } == {
        (operation, size, mode)
        for operation in Operation
        for size in (4096, 2**21)
        for mode in ("graph", "eager")
    }
    for row in collectives:
        assert 0 < row.values["ms"]
        assert row.values["gb_per_s"] == pytest.approx(
            int(row.labels["bytes"]) / row.values["ms"] / 1e6
        )
    trained = results.table("training")
    assert [(row.labels["model"], row.labels["style"]) for row in trained] == [
        *(("mlp", "fit"), ("mlp", "loop"), ("embedding", "fit"), ("embedding", "loop"))
    ]
    for row in trained:
        _check_training(row.labels, row.values)
        assert row.values["sent_mb"] >= 0
    assert trained[0].values["gradient_mb"] == pytest.approx(4e-6 * MLP_WEIGHTS)
    (stream,) = results.table("stream")
    assert stream.values["gb_per_s"] > 0
    (machine,) = results.table("machines")  # Both hosts are this one.
    assert len(str(machine.labels["hosts"]).split(", ")) == 2
    assert 0 <= machine.values["others_busy"] <= machine.values["cores"]
    assert "mlp, round 2 of 2 done" in found[0][2][1]
    assert found[1][2] == []


@pytest.mark.long
def test_what_a_step_costs_by_part(groups: Groups) -> None:
    config = Config(models=("mlp100k", "embedding"), rounds=1, round_seconds=0.05)
    costs, _ = groups(2).run("tests.cases.bench:step_cost", config=config)
    assert [row.labels["model"] for row in costs] == ["mlp100k", "embedding"]
    assert undocumented(costs) == []
    for row in costs:
        values = row.values
        assert values["hooks_ms"] > 0
        assert 0 < values["sum_ms"] < values["step_ms"]
        parts = [values[f"{part}_ms"] for part in ("plain", "hooks", "header", "entering", "sum")]
        assert sum(parts) == pytest.approx(values["step_ms"])
        assert values["ratio"] == pytest.approx(values["plain_ms"] / values["step_ms"])


def _check_training(labels: Mapping[str, Any], values: Mapping[str, float]) -> None:
    assert values["ratio_min"] <= values["ratio"] <= values["ratio_max"]
    # As many examples as there are workers and examples of each in a step.
    each_ms = 1e3 * labels["workers"] * labels["batch"] / values["examples_per_s"]
    assert 0.2 < each_ms / values["step_ms"] < 5  # A mean and a median, of rates and of times.
    if labels["workers"] > 1 and labels["by"] != STRATEGY:
        assert values["compute_ms"] > 0
        assert values["moving_ms"] > 0
        assert values["waiting_ms"] >= 0


@pytest.mark.long
def test_workers_keep_a_few_batches_whatever_the_size_of_their_shard(
    groups: Groups, tmp_path: Path
) -> None:
    num_examples = 5001
    make_file(tmp_path, num_examples)
    found = groups(2).run("tests.cases.bench:keep", directory=str(tmp_path))
    shard_mb = num_examples / 2 * EXAMPLE_BYTES / 1e6  # 69 MB; a batch is 0.4 MB
    for order in ORDERS:
        reads = [of_rank[order] for of_rank in found]
        assert sum(read["shard_mb"] for read in reads) == pytest.approx(2 * shard_mb)
        for read in reads:
            assert read["shard_mb"] == pytest.approx(shard_mb, rel=0.02)
            if order == "held":
                assert 0.9 * shard_mb < read["kept_mb"] < 1.3 * shard_mb
            else:
                assert read["kept_mb"] <= read["peak_mb"] < 0.4 * shard_mb, order
                assert read["mapped_mb"] < 0.4 * shard_mb, order


@pytest.mark.long
def test_the_command_measures_and_what_fails_says_why(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    small = ["--only=collectives", "--workers=2", "--rounds=1", "--sizes=4K"]
    done = _run(*small, "--collective=auto", f"--json={path}")
    found = read_json(path)
    assert {row.labels["mode"] for row in found.table("collectives")} == {"graph", "eager"}
    assert found.versions["keras"].startswith("3.")
    assert found.options["sizes"] == [4096]
    assert re.search("^operation  workers ", done.stdout, re.MULTILINE)
    assert "measure: 2 on localhost:2" in done.stderr
    assert re.search(r"2 workers, .*, allreduce of 4096 bytes, round 1 of 1 done", done.stderr)
    done = _run(*small, "--collective=nonsense", status=1)
    assert "tfddl-bench: LaunchError: a job of 2 workers failed. It said" in done.stderr
    assert "collective is 'nonsense'; it must be one of" in done.stderr
    assert re.search(r"tfddlrun: rank \d failed: exit code 1", done.stderr)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_everything_for_one_and_two_workers(tmp_path: Path) -> None:
    path, logdir = tmp_path / "bench.json", tmp_path / "logs"
    operations = ",".join(Operation)
    done = _run(
        *("--workers=1,2", *TINY, "--sizes=4,8K", f"--operations={operations}", "--compare"),
        *("--styles=fit,scope,loop", f"--json={path}", f"--logdir={logdir}"),
        f"--plots={tmp_path}",
    )
    _check_everything(read_json(path))
    assert undocumented(read_json(path).rows) == []
    assert {p.name for p in tmp_path.glob("*.png")} == {
        *(f"bandwidth_{name}_2_workers.png" for name in Operation),
        "efficiency.png",
    }
    for heading in ("operation  workers", "model  pixels", "workers  model +by"):
        assert re.search(rf"^{heading} ", done.stdout, re.MULTILINE), heading
    assert "charts/efficiency" in events.images(logdir / "job")
    assert "| mlp" in events.texts(logdir / "job")["tables"][0]


def _check_everything(found: Results) -> None:
    trained = {
        (row.labels["workers"], row.labels["by"], row.labels["style"])
        for row in found.table("training")
    }
    assert (1, "none (one worker)", "fit") in trained
    assert {
        *((2, "RING", style) for style in ("fit", "scope", "loop")),
        (2, STRATEGY, "loop"),
    } <= trained
    for row in found.table("training"):
        _check_training(row.labels, row.values)
        assert row.values["gradient_mb"] == pytest.approx(4e-6 * MLP_WEIGHTS)
    assert any("over_strategy" in row.values for row in found.table("training"))
    assert {row.labels["operation"] for row in found.table("collectives")} == set(Operation)
    assert {row.labels["workers"] for row in found.table("collectives")} == {2}
    starts = found.table("starts")
    assert {(1, SINGLE), (2, PLAIN), (2, STRATEGY), (2, "RING")} < {
        (row.labels["workers"], row.labels["by"]) for row in starts
    }
    for row in starts:
        assert 0 < row.values["first_step_s"] < row.values["start_s"]
        assert 0 < row.values["import_s"] < row.values["start_s"]
        assert 100 < row.values["memory_at_start_mb"] < row.values["memory_mb"]
    for row in found.table("machines"):
        assert 0 <= row.values["others_busy"] <= row.values["cores"]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_two_hosts_are_measured(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    ssh = f"--ssh-command={stand_in(tmp_path / 'ssh')}"
    where = f"-H={HERE[0]}:1,{HERE[1]}:1"
    done = _run(where, ssh, *TINY, "--sizes=4K", f"--json={path}")
    found = read_json(path)
    # One per host, which is one for each slot, too.
    assert found.options["workers"] == [2]
    assert {row.labels["hosts"] for row in found.table("machines")} == {", ".join(HERE)}
    trained = found.table("training")
    by = {row.labels["by"] for row in trained}
    assert {row.labels["by"] for row in found.table("collectives")} == by
    assert len(by) > 1
    assert "shared memory" not in by  # Each is alone on its host.
    assert all("sent_mb" in row.values for row in trained)
    assert all(row.values["gb_per_s"] > 0 for row in found.table("stream"))
    assert len(found.table("stream")) == len(by)
    assert f"measure: 2 on {HERE[0]}:1,{HERE[1]}:1" in done.stderr


@pytest.mark.long
def test_a_file_is_read_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    directory = tmp_path / "files"
    directory.mkdir()
    _run(
        *("--only=reading", "--workers=1,2", "--file-size=200M", f"--file-dir={directory}"),
        f"--json={path}",
    )
    rows = read_json(path).table("reading")
    assert undocumented(rows) == []
    assert [(row.labels["order"], row.labels["workers"]) for row in rows] == [
        (order, workers) for workers in (1, 2) for order in ORDERS
    ]
    for row in rows:
        assert row.values["shard_mb"] == pytest.approx(210 / int(row.labels["workers"]), abs=2)
        if row.labels["order"] == "held":
            assert row.values["ratio"] == pytest.approx(1, abs=0.2)
        else:
            assert row.values["peak_mb"] < 40
    assert list(directory.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_it_ends_no_worker_stays_on_any_host(
    number: signal.Signals, tmp_path: Path
) -> None:
    mark = uuid.uuid4().hex
    where = [f"-H={HERE[0]}:1,{HERE[1]}:1", f"--ssh-command={stand_in(tmp_path / 'ssh')}"]
    with subprocess.Popen(
        [*COMMAND, *where, "--only=collectives", "--rounds=1000", "--sizes=4K"],
        cwd=ROOT,
        env={**os.environ, "TFDDL_TEST_MARK": mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert any("round 1 of 1000" in line for line in process.stderr)
            assert len(_marked(mark)) >= 4  # This one, a launcher and two workers.
            process.send_signal(number)
            status = process.wait(timeout=60)
        finally:
            process.kill()
    assert status == (-signal.SIGKILL if number is signal.SIGKILL else 128 + number)
    wait_until(lambda: not _marked(mark), timeout_s=60)


def _marked(mark: str) -> list[int]:
    """The processes that have inherited it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


@pytest.mark.long
def test_what_a_host_sends_does_not_grow_with_its_workers(tmp_path: Path) -> None:
    """Counted at the link between two network namespaces, while a model of 25 MB is trained."""
    with two_hosts() as names:
        one = _measured_in_job(names, tmp_path / "1.json", workers=1)
        two = _measured_in_job(names, tmp_path / "2.json", workers=2)
    ours, strategy = one.table("training")
    assert (ours.labels["by"], strategy.labels["by"]) == ("TCP", STRATEGY)
    of_four = two.table("training")[0]
    assert of_four.labels["by"] == "shared memory, TCP between hosts"
    assert one.table("stream")[0].values["gb_per_s"] > 0
    assert 24 < ours.values["sent_mb"]
    assert of_four.values["sent_mb"] < 1.1 * ours.values["sent_mb"]  # Headers, heartbeats.


def _measured_in_job(names: tuple[str, str], path: Path, *, workers: int) -> Results:
    """What rank 0 writes, of so many workers in each namespace."""
    addresses = tuple(f"10.77.0.{h}:{24000 + w}" for h in (1, 2) for w in range(workers))
    quickly = ["--sizes=1M", "--models=mlp", "--batch-size=2", "--rounds=1", "--compare"]
    with ExitStack() as stack:
        processes = []
        for rank in range(len(addresses)):
            inside = ["ip", "netns", "exec", names[rank // workers]]
            process = subprocess.Popen(
                [*inside, *COMMAND, "--in-job", *quickly, "--round-seconds=0.1", f"--json={path}"],
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "TF_CONFIG": tf_config.render(Cluster(addresses, rank)),
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        texts = [process.communicate(timeout=170) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), texts
    assert [out for out, _ in texts[1:]] == [""] * (len(processes) - 1)
    return read_json(path)
