"""Scripts as Horovod's users wrote them, run unedited by `tfddlrun --horovod`."""

import ast
import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.group import ROOT
from tests.launching import launch, launched, of_ranks
from tests.processes import stop, wait_until

LONG = pytest.mark.long


def _run(script: str, *arguments: str, workers: int, flags: tuple[str, ...] = ()) -> list[str]:
    """The lines of both outputs, each with the rank in front."""
    options = ["--horovod", "-np", str(workers), *flags, "--"]
    command = [sys.executable, f"tests/scripts/horovod/{script}.py", *arguments]
    done = launch(*options, *command, cwd=ROOT, timeout_s=280, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()


def _alike(lines: list[str], start: str, workers: int) -> str:
    """What all ranks printed alike."""
    first, *others = of_ranks(lines, start, workers)
    assert others == [first] * (workers - 1), "\n".join(lines)
    return first


def _number(line: str, name: str) -> float:
    match = re.search(rf"\b{name} (\S+)", line)
    assert match, line
    return float(match[1])


def _has(lines: list[str], text: str) -> bool:
    return any(text in line for line in lines)


@pytest.mark.parametrize("workers", [pytest.param(2, marks=LONG), pytest.param(3, marks=LONG)])
def test_mnist_with_a_tape(tmp_path: Path, workers: int) -> None:
    lines = _run("tf2_mnist", str(tmp_path), workers=workers)
    assert _number(_alike(lines, "accuracy", workers), "accuracy") > 0.85
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.index")] == ["ckpt-1.index"]


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=LONG)])
def test_mnist_of_2018_in_a_session(tmp_path: Path, workers: int) -> None:
    lines = _run("tensorflow_mnist_2018", str(tmp_path), "240", workers=workers)
    assert _alike(lines, "weights", workers)
    # Each rank's own, since it drops out.
    assert all(_number(line, "accuracy") > 0.7 for line in of_ranks(lines, "accuracy", workers))
    assert (tmp_path / f"model.ckpt-{240 // workers}.index").exists()
    text = "tf.placeholder is of TensorFlow 1: operations are parts of a graph from now on"
    assert _has(lines, text)


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=LONG)])
def test_mnist_with_fit_and_all_callbacks(tmp_path: Path, workers: int) -> None:
    lines = _run("tf2_keras_mnist", str(tmp_path), workers=workers)
    assert _number(_alike(lines, "accuracy", workers), "accuracy") > 0.8
    full = 0.02 * workers
    # Warmed up over two epochs, held, and cut by half twice.
    expected = [(full + 0.02) / 2, full, full, full, full / 2, full / 4]
    rates = [float(rate) for rate in _alike(lines, "rates", workers).split()[1:]]
    assert rates == pytest.approx(expected, abs=1e-5)
    names = {f"checkpoint-{epoch}.h5" for epoch in range(1, 7)} | {"best.keras"}
    assert {path.name for path in tmp_path.iterdir()} == names
    for old in ("compile(experimental_run_tf_function", "optimizer(lr=", "optimizer.lr"):
        assert sum(f"Keras2Warning: {old}" in line for line in lines) == 1, old


@LONG
@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("tf2_synthetic_benchmark", ()),
        ("tf2_synthetic_benchmark", ("--fp16-allreduce",)),
        ("tf2_keras_synthetic_benchmark", ("--fp16-allreduce",)),
    ],
)
def test_synthetic_benchmarks(script: str, flags: tuple[str, ...]) -> None:
    lines = _run(script, *flags, workers=2)
    assert math.isfinite(_number(_alike(lines, "weights", 2), "weights"))
    assert _has(lines, "Total img/sec on 2 CPU(s): ")


@LONG
@pytest.mark.parametrize("workers", [2, 3])
def test_unet_resumes_from_rank_0_s_file(tmp_path: Path, workers: int) -> None:
    first = _run("unet", str(tmp_path), "--epochs=2", workers=workers)
    line = _alike(first, "dice", workers)
    steps = _number(line, "steps") / 2
    assert _alike(first, "epochs", workers) == "epochs 1 2"
    assert _has(first, "Workers had different numbers of examples in a step")
    again = _run("unet", str(tmp_path), "--epochs=5", workers=workers)
    assert _alike(again, "resume from", workers) == "resume from epoch 2"
    assert _alike(again, "epochs", workers) == "epochs 3 4 5"
    line = _alike(again, "dice", workers)
    assert _number(line, "steps") == 5 * steps
    assert _number(line, "val_dice") > 0.7
    assert _number(line, "lr") == pytest.approx(2e-3 * workers)
    names = {f"unet-{epoch}.h5" for epoch in range(1, 6)} | {"unet.h5"}
    assert {path.name for path in tmp_path.iterdir()} == names


@LONG
@pytest.mark.parametrize("workers", [2, 3])
def test_a_script_of_2018_resumes_by_its_epoch(tmp_path: Path, workers: int) -> None:
    first = _run("keras_unet_2018", str(tmp_path), "2", workers=workers)
    assert _alike(first, "resume from", workers) == "resume from epoch 0"
    steps = math.ceil(60 / 8 / workers)
    assert _number(_alike(first, "loss", workers), "steps") == 2 * steps
    again = _run("keras_unet_2018", str(tmp_path), "6", workers=workers)
    assert _alike(again, "resume from", workers) == "resume from epoch 2"
    assert _alike(again, "epochs", workers) == "epochs 3 4 5 6"
    line = _alike(again, "loss", workers)
    assert _number(line, "steps") == 4 * steps
    assert _number(line, "lr") == pytest.approx(3e-3 * workers)
    assert _number(line, "loss") < _number(_alike(first, "loss", workers), "loss")
    found = {path.name for path in (tmp_path / "weights").iterdir()}
    assert found == {"best_weights.hdf5", *(f"checkpoint-{epoch}.hdf5" for epoch in (2, 4, 6))}
    # After init, on rank 0 only: imports come before it.
    for old in ("tf.Session(config=", "K.flatten", "logs['val_acc"):
        assert sum(f"Keras2Warning: {old}" in line for line in first) <= 1, old


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=LONG)])
def test_all_wrappers_and_collectives(tmp_path: Path, workers: int) -> None:
    scripts = ["horovod/wrappers.py", "", "horovod/collectives.py", str(tmp_path)]
    lines = _run("../several", *scripts, workers=workers)
    _alike(lines, "all wrappers done", workers)
    assert sum("refused: gradient_predivide_factor" in line for line in lines) == workers
    _alike(lines, "all collectives done", workers)
    assert _alike(lines, "no maximum of slices", workers)
    assert sum("ranks disagree" in line for line in lines) == 2 * workers
    assert sum("broadcast_global_variables is of TensorFlow 1" in x for x in lines) == workers
    events = json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    traced = [e for e in events if e["name"].startswith("allreduce") and "traced" in e["name"]]
    assert sorted(e["pid"] for e in traced) == list(range(workers))
    assert {e["args"]["bytes"] for e in traced} == {12}
    assert len({e["args"].get("waited_for_rank") for e in traced} - {None}) == 1
    assert all(e["dur"] >= 0 for e in events if e["ph"] == "X")


@LONG
def test_process_sets() -> None:
    _alike(_run("process_sets", workers=3), "all sets done", 3)


@LONG
@pytest.mark.parametrize("workers", [2, 3])
def test_elastic_states(workers: int) -> None:
    lines = _run("legacy_elastic_state", workers=workers)
    assert _alike(lines, "trained", workers) == "trained to epoch and batch (3, 0) ['reset']"


@LONG
@pytest.mark.parametrize("script", ["tf2_mnist_elastic", "tf2_keras_mnist_elastic"])
@pytest.mark.parametrize("fails", [False, True])
def test_elastic_training(tmp_path: Path, script: str, fails: bool) -> None:
    arguments = [str(tmp_path), *(["105"] if fails else [])]
    lines = _run(script, *arguments, workers=2, flags=("--max-restarts=1",))
    assert _number(_alike(lines, "accuracy", 2), "accuracy") > 0.85
    begun = _alike(lines, "training from", 2)
    is_new = {"tf2_mnist_elastic": "batch 0", "tf2_keras_mnist_elastic": "epoch 0 batch 0"}
    assert (is_new[script] in begun) is not fails
    if fails:
        assert _has(lines, "rank 1 failed: exit code 7")
        last = {"tf2_mnist_elastic": "batch 101", "tf2_keras_mnist_elastic": "epoch 4 batch 4"}
        assert last[script] in begun


@LONG
@pytest.mark.parametrize("script", ["tf2_mnist_elastic", "tf2_keras_mnist_elastic"])
def test_elastic_training_takes_in_a_worker(tmp_path: Path, script: str) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost:2")
    elastic = ("--host-discovery-script", f"cat {hosts}", "--min-np=2", "--resize-interval=0")
    command = [sys.executable, f"tests/scripts/horovod/{script}.py", str(tmp_path)]
    lines = []
    with launched(
        "--horovod", *elastic, "--", *command, cwd=ROOT, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        begun = stopped = 0
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            begun += "training from" in line
            if begun == 2 and not stopped:
                # It trains for seconds only: without this, the change might come too late. Both
                # ranks have begun: before that, they can't be asked to save.
                (stopped, *_) = _pids_of(command)
                stop(stopped)
                hosts.write_text("localhost:3")
            elif "waiting until the workers have saved" in line:
                os.kill(stopped, signal.SIGCONT)
    assert process.returncode == 0, "\n".join(lines)
    assert _has(lines, "with 3 workers instead of 2: localhost:3")
    assert _number(_alike(lines, "accuracy", 3), "accuracy") > 0.85
    assert "batch 0" not in _alike(lines, "training from", 3)


def _pids_of(command: list[str]) -> list[int]:
    """The workers that run this."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_text().split("\0")
            if line[-3:-1] == command[-2:] and "tfddl.launcher" not in line:
                found.append(int(path.parent.name))
    return found


@LONG
@pytest.mark.parametrize("workers", [2, 3])
def test_run_a_function(workers: int) -> None:
    lines = _run("run_function", str(workers), workers=1)
    texts = [line.removeprefix("[0] ") for line in lines]
    assert str([(rank, 80 + rank) for rank in range(workers)]) in texts
    assert str([10] * workers) in texts
    assert "failed with no such key: True" in texts


@LONG
def test_workers_keep_their_processes_while_their_number_changes(tmp_path: Path) -> None:
    """2, 4, then 3 workers in one epoch: each example once, as in an undisturbed training."""
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost:2")
    script = [sys.executable, "tests/scripts/horovod/elastic_ids.py", str(tmp_path)]
    line = ["--horovod", "--host-discovery-script", f"cat {hosts}", "--resize-interval=0"]
    line += ["--min-np=2", "--max-np=4", *script, "--examples", "1200"]
    with launched(*line, cwd=ROOT, stderr=subprocess.STDOUT) as process:
        for there, then in (("1 of 2", "localhost:4"), ("3 of 4", "localhost:3")):
            wait_until((tmp_path / there).exists)
            hosts.write_text(then)
        out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    lines = out.splitlines()
    assert _has(lines, "2 of 4 workers have kept their processes")
    assert _has(lines, "3 of 3 workers have kept their processes")
    by_process = _examples(tmp_path)
    sizes = sorted(sorted({size for size, _ in found}) for found in by_process.values())
    assert sizes == [[2, 3, 4], [2, 3, 4], [3, 4], [4]]
    assert sorted(_all(by_process)) == list(range(1200))
    _train_undisturbed(tmp_path / "alone", "1200", lines, workers=3)


@LONG
def test_others_keep_their_processes_where_one_is_killed(tmp_path: Path) -> None:
    arguments = [str(tmp_path), "--kill-at", "240", "--pause", "0"]
    lines = _run("elastic_ids", *arguments, workers=3, flags=("--max-restarts=1",))
    assert _has(lines, "2 of 3 workers have kept their processes")
    by_process = _examples(tmp_path)
    assert sorted(map(len, by_process.values())) == [20, 20, 40, 40]
    # What was committed isn't done again; the killed one has written down its part before.
    assert sorted(_all(by_process)) == list(range(480))
    _train_undisturbed(tmp_path / "alone", "480", lines, workers=3)


def _examples(folder: Path) -> dict[str, list[tuple[int, list[int]]]]:
    """By process: in each step, how many workers there were, and its own examples."""
    rows = {
        path.name: [line.split() for line in path.read_text().splitlines()]
        for path in folder.glob("ids.*")
    }
    return {
        name: [(int(row[1]), [int(text) for text in row[4:]]) for row in found]
        for name, found in rows.items()
    }


def _all(by_process: dict[str, list[tuple[int, list[int]]]]) -> list[int]:
    return [one for found in by_process.values() for _, mine in found for one in mine]


def _train_undisturbed(folder: Path, examples: str, lines: list[str], *, workers: int) -> None:
    """Compares the weights with those of two workers that nothing happens to."""
    folder.mkdir()
    alone = _run("elastic_ids", str(folder), "--examples", examples, "--pause", "0", workers=2)
    found, expected = (
        ast.literal_eval(_alike(text, "weights", number).removeprefix("weights "))
        for text, number in ((lines, workers), (alone, 2))
    )
    assert found == pytest.approx(expected, rel=1e-5)
