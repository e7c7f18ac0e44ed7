"""`tfddl-bench` with real workers: what it measures, and how it ends."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import events
from tests.group import ROOT, Groups
from tests.hosts import HERE, stand_in, two_hosts
from tests.processes import wait_until
from tfddl._src.cluster import Cluster
from tfddl._src.cluster.environments import tf_config
from tfddl.bench.codec import to_json
from tfddl.bench.config import EXAMPLE_BYTES, Config, Mode, Operation, Order, Style
from tfddl.bench.reading import check_all_were_read, write_examples
from tfddl.bench.results import Results

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


def test_what_is_measured_within_a_job(groups: Groups) -> None:
    config = Config(
        workers=(2,),
        sizes=(4096, 2**21),
        operations=tuple(Operation),
        models=("mlp",),
        batch_size=2,
        rounds=2,
        round_seconds=0.05,
    )
    found = groups(2, hosts=(1, 1)).run("tests.cases.bench:measure", config=to_json(config))
    results: Results = found[0][0]
    assert found[1][0].training == results.training  # Of all ranks, on each of them.
    assert {(s.operation, s.num_bytes, s.mode) for s in results.collectives} == {
        (operation, size, mode)
        for operation in Operation
        for size in (4096, 2**21)
        for mode in Mode
    }
    for speed in results.collectives:
        assert speed.call_s.number >= 8  # 2 ranks, 2 rounds, at least 2 calls
        assert 0 < speed.call_s.least <= speed.call_s.median <= speed.call_s.most
        assert speed.gb_per_s == pytest.approx(speed.num_bytes / speed.call_s.median / 1e9)
    (trained,) = results.training
    _check_training(json.loads(to_json(trained)))
    assert trained.style is Style.OPTIMIZER
    assert trained.gradient_bytes == 4 * MLP_WEIGHTS
    assert len(trained.sent_bytes) == 2
    (stream,) = results.streams
    assert stream.gb_per_s is not None
    assert stream.gb_per_s > 0
    assert [load.part for load in results.loads] == ["training", "collectives"]
    (machine,) = results.machines  # Both hosts are this one.
    assert len(machine.hosts) == 2
    assert "four dense layers, round 2 of 2 done" in found[0][2][1]


def _check_training(speed: dict[str, Any]) -> None:
    assert speed["images_per_s"]["number"] == speed["ratio"]["number"] == 2
    assert speed["ratio"]["least"] <= speed["ratio"]["median"] <= speed["ratio"]["most"]
    # As many images as there are workers and examples of each in a step.
    each_s = speed["workers"] * speed["batch_size"] / speed["images_per_s"]["median"]
    assert 0.2 < each_s / speed["step_s"] < 5  # A mean and a median, of rates and of times.
    if speed["workers"] > 1 and speed["style"] != "strategy":
        assert speed["parts"]["compute_s"] > 0
        assert speed["parts"]["moving_s"] > 0
        assert speed["parts"]["waiting_s"] >= 0


def test_workers_keep_a_few_batches_whatever_the_size_of_their_shard(
    groups: Groups, tmp_path: Path
) -> None:
    num_examples = 5001
    write_examples(tmp_path, num_examples)
    found = groups(2).run("tests.cases.bench:keep", directory=str(tmp_path))
    shard = num_examples / 2 * EXAMPLE_BYTES  # 69 MB; a batch is 0.4 MB
    for order in Order:
        reads = [of_rank[order] for of_rank in found]
        check_all_were_read(reads, num_examples)
        assert all(abs(r.examples - num_examples / 2) <= num_examples / 100 for r in reads)
        for read in reads:
            if order is Order.HELD:
                assert 0.9 * shard < read.kept < 1.3 * shard
            else:
                assert read.kept <= read.peak < 0.4 * shard, order
                assert read.mapped < 0.4 * shard, order


def test_the_command_measures_and_what_fails_says_why(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    small = ["--only=collectives", "--workers=2", "--rounds=1", "--sizes=4K"]
    done = _run(*small, "--transports=auto", f"--json={path}")
    found = json.loads(path.read_text())
    assert {speed["mode"] for speed in found["collectives"]} == {"graph", "eager"}
    assert found["layouts"] == {"2": {"localhost": 2}}
    assert found["versions"]["keras"].startswith("3.")
    assert re.search("^collective  workers ", done.stdout, re.MULTILINE)
    assert re.search(r"2 workers, .*, allreduce of 4096 bytes, round 1 of 1 done", done.stderr)
    done = _run(*small, "--transports=nonsense", status=1)
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
        *("--styles=optimizer,scope", f"--json={path}", f"--logdir={logdir}"),
        f"--plots={tmp_path}",
    )
    found = json.loads(path.read_text())
    _check_everything(found)
    assert {p.name for p in tmp_path.glob("*.png")} == {
        *(f"bandwidth_{name}_2_workers.png" for name in Operation),
        "efficiency.png",
    }
    for heading in ("collective  workers", "model", "start", "memory"):
        assert re.search(rf"^{heading} ", done.stdout, re.MULTILINE), heading
    curve = events.scalars(logdir / "job" / "RING")
    assert set(curve["bandwidth_gb_per_s/allreduce_2_workers"]) == {4, 8192}
    efficiency = events.scalars(logdir / "job" / "mlp__RING")["efficiency/over_workers"]
    assert set(efficiency) == {2}
    assert "charts/efficiency" in events.images(logdir / "job")
    assert "| mlp" in events.texts(logdir / "job")["tables"][0]


def _check_everything(found: dict[str, Any]) -> None:
    trained = {(t["workers"], t["transport"], t["style"]) for t in found["training"]}
    assert (1, "none (one worker)", "optimizer") in trained
    assert {
        (2, "RING", "optimizer"),
        (2, "RING", "scope"),
        (2, "TensorFlow's strategy", "strategy"),
    } <= trained
    for speed in found["training"]:
        _check_training(speed)
        assert speed["gradient_bytes"] == 4 * MLP_WEIGHTS
    assert {speed["operation"] for speed in found["collectives"]} == set(Operation)
    assert {speed["workers"] for speed in found["collectives"]} == {2}
    starts = {(start["workers"], start["transport"]): start for start in found["starts"]}
    assert {
        (0, "plain Keras, one process"),
        (2, "plain Keras"),
        (2, "TensorFlow's strategy"),
    } < set(starts)
    for start in starts.values():
        assert 0 < start["first_step_s"] < start["total_s"]["median"]
        assert 0 < start["import_s"] < start["total_s"]["median"]
        assert 100e6 < start["started_bytes"] < start["kept_bytes"]
    (machine,) = found["machines"]
    assert set(found["foreign_cores"]) == {"training", "collectives"}
    for taken in found["foreign_cores"].values():
        (cores,) = taken.values()
        assert 0 <= cores <= len(machine["cores"])


@pytest.mark.long
@pytest.mark.timeout(600)
def test_two_hosts_are_measured(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    ssh = f"--ssh-command={stand_in(tmp_path / 'ssh')}"
    where = f"-H={HERE[0]}:1,{HERE[1]}:1"
    done = _run(where, ssh, *TINY, "--sizes=4K", f"--json={path}")
    found = json.loads(path.read_text())
    # One per host, which is one for each slot, too.
    assert found["options"]["workers"] == [2]
    assert found["layouts"] == {"2": {HERE[0]: 1, HERE[1]: 1}}
    (machine,) = found["machines"]
    assert machine["hosts"] == list(HERE)
    transports = {speed["transport"] for speed in found["training"]}
    assert {s["transport"] for s in found["collectives"]} == transports
    assert len(transports) > 1
    assert "shared memory" not in transports  # Each is alone on its host.
    assert all(len(speed["sent_bytes"]) == 2 for speed in found["training"])
    assert all(stream["gb_per_s"] > 0 for stream in found["streams"])
    assert f"{', '.join(HERE)} (one machine): " in done.stdout
    assert f"Workers of {', '.join(HERE)}: 2 are 1 + 1." in done.stdout
    assert "than one plain process with all cores of the first host" in done.stdout


@pytest.mark.long
def test_a_file_is_read_and_removed(tmp_path: Path) -> None:
    done = _run("--only=reading", "--workers=1,2", "--file-size=200M", f"--file-dir={tmp_path}")
    assert f"{200 * 2**20 // EXAMPLE_BYTES} examples of 27648 bytes" in done.stdout
    rows = re.findall(r"^(\w+) +(\d) +(\S+) +(\S+) +(\S+) +(\S+)$", done.stdout, re.MULTILINE)
    assert [(order, workers) for order, workers, *_ in rows] == [
        (order, workers) for workers in ("1", "2") for order in ("global", "block", "held")
    ]
    for order, workers, shard, kept, peak, _ in rows:
        shards, most = (int(text.split("..")[-1]) for text in (shard, peak))
        assert abs(shards - 210 / int(workers)) <= 2
        if order == "held":
            assert abs(int(kept.split("..")[0]) - shards) < 20
        else:
            assert most < 40
    assert list(tmp_path.iterdir()) == []


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
    """Counted at the link between two network namespaces, while a model of 2 MB is trained."""
    with two_hosts() as names:
        one = _measured_in_job(names, tmp_path / "1.json", workers=1)
        two = _measured_in_job(names, tmp_path / "2.json", workers=2)
    assert [s["transport"] for s in one["training"]] == ["TCP", "TensorFlow's strategy"]
    assert two["training"][0]["transport"] == "shared memory, TCP between hosts"
    assert one["streams"][0]["gb_per_s"] > 0
    before, after = one["training"][0]["sent_bytes"], two["training"][0]["sent_bytes"]
    assert len(before) == len(after) == 2
    for host_before, host_after in zip(before, after, strict=True):
        assert 1.8e6 < host_before
        assert host_after < 1.1 * host_before  # Headers, heartbeats.


def _measured_in_job(names: tuple[str, str], path: Path, *, workers: int) -> dict[str, Any]:
    """The JSON of rank 0, of so many workers in each namespace."""
    addresses = tuple(f"10.77.0.{h}:{24000 + w}" for h in (1, 2) for w in range(workers))
    quickly = ["--sizes=1M", "--models=unet", "--image-size=32", "--rounds=1", "--compare"]
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
    found: dict[str, Any] = json.loads(path.read_text())
    return found
