"""TensorBoard: what is in the event files."""

import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfddl
from tests import events
from tests.cases import monitor
from tests.group import Groups
from tfddl._src.callbacks.monitor_charts import DESCRIPTIONS
from tfddl._src.callbacks.monitor_writer import EventWriter
from tfddl.errors import UnsupportedError

CASES = "tests.cases.monitor"


@pytest.fixture
def job_dir(tmp_path: Path) -> Path:
    """Where a Monitor of tmp_path writes."""
    return tmp_path / "job"


@pytest.fixture
def alone() -> Iterator[None]:
    tfddl.init()
    yield
    tfddl.shutdown()


def test_two_workers(groups: Groups, tmp_path: Path, job_dir: Path) -> None:
    began_s = time.monotonic()
    logs, other = groups(2).run(
        f"{CASES}:watched", log_dir=str(tmp_path), slow=1, update_every_steps=2
    )
    took_s = time.monotonic() - began_s
    assert logs == other

    # Three epochs of 23 examples: 8 + 8 + 7 in three steps, points after the 2nd and the last.
    job = events.scalars(job_dir)
    steps = [2, 3, 5, 6, 8, 9]
    assert job.keys() >= DESCRIPTIONS.keys() - {"ranks/busy_ms", "ranks/step_ms", "ranks/examples"}
    for tag in job:
        if tag.startswith("speed/"):
            assert list(job[tag]) == steps, tag
    for name in ("loss", "accuracy"):
        for run, prefix in (("train", ""), ("validation", "val_")):
            points = events.scalars(job_dir / run)[f"epoch/{name}"]
            assert list(points) == [1, 2, 3]
            assert list(points.values()) == pytest.approx(logs[prefix + name], rel=1e-6)
    rates = job["step/learning_rate"]
    assert rates == pytest.approx({step: 0.1 - 0.01 * step for step in [0, *steps]}, rel=1e-5)
    assert list(job["step/loss"]) == steps
    for epoch, loss in enumerate(logs["loss"]):  # 16 examples, and then 7.
        parts = [job["step/loss"][3 * epoch + step] for step in (2, 3)]
        assert np.average(parts, weights=[16, 7]) == pytest.approx(loss, rel=1e-5)

    # Rank 1 sleeps 150 ms in each step.
    median, p95 = job["speed/step_ms_median"], job["speed/step_ms_p95"]
    for step in steps:
        assert 150 <= median[step] <= p95[step]
        assert 0 < job["speed/collectives_ms"][step] < p95[step]
        assert 0 < job["speed/collectives_percent"][step] < 100
        assert 7 / took_s < job["speed/examples_per_second"][step] < 8 / 0.15
    assert sum(job["epoch/seconds"].values()) < took_s

    ranks = [events.scalars(job_dir / f"rank_{rank}") for rank in range(2)]
    assert [list(r["ranks/examples"].values()) for r in ranks] == [[12.0] * 3, [11.0] * 3]
    busy = [np.array(list(r["ranks/busy_ms"].values())) for r in ranks]
    step_ms = [np.array(list(r["ranks/step_ms"].values())) for r in ranks]
    for mine, of_step in zip(busy, step_ms, strict=True):
        assert (mine > 0).all()
        assert (mine < of_step).all()
    # In the first epoch, each traces as long as it takes.
    assert busy[1][1:].sum() > busy[0][1:].sum(), "the slowest rank doesn't stand out"
    assert step_ms[0].sum() == pytest.approx(step_ms[1].sum(), rel=0.3), "ranks wait for another"

    texts = events.texts(job_dir)
    assert "**23 examples in 3 steps per epoch**, shuffled by seed 1" in texts["shards"][0]
    rows = re.findall(r"^\| (\d) \| \S+ \| (\d+) \| 3 \| (.*) \|$", texts["shards"][0], re.M)
    assert rows == [("0", "12", "3 × 4"), ("1", "11", "2 × 4, 1 × 3")]
    assert list(texts["ranks/table"]) == [1, 2, 3]
    slowest = int(busy[1][2] > busy[0][2])
    assert f"The others wait for **rank {slowest}**" in texts["ranks/table"][3]
    assert f"| **{slowest}** |" in texts["ranks/table"][3]

    pictures = events.images(job_dir)
    assert {tag: list(points) for tag, points in pictures.items()} == {
        "scores": [1, 2, 3],
        "ranks/picture": [1, 2, 3],
    }
    assert [p.shape for p in pictures["scores"][3]] == [(8, 3, 1)] * 5
    assert pictures["ranks/picture"][3][0].shape[2] == 3

    hparams = events.hparams(job_dir)
    start = hparams["session_start_info"].session_start_info
    assert {name: v.WhichOneof("kind") for name, v in start.hparams.items()} == {
        "learning_rate": "number_value",
        "batch_size": "number_value",
        "filters": "string_value",
        "data_dir": "string_value",
    }
    assert start.hparams["filters"].string_value == "(8, 16)"
    shown = hparams["experiment"].experiment
    assert [h.name for h in shown.hparam_infos] == list(monitor.FLAGS)
    named = {(m.name.group, m.name.tag) for m in shown.metric_infos}
    metrics = ("epoch/loss", "epoch/accuracy")
    assert named == set(itertools.product(("train", "validation"), metrics))
    assert "session_end_info" in hparams


@pytest.mark.parametrize("eager", [False, True])
def test_steps_that_are_executed_together_and_eagerly(
    groups: Groups, tmp_path: Path, job_dir: Path, eager: bool
) -> None:
    compiled = {"run_eagerly": True} if eager else {"steps_per_execution": 2}
    groups(2).run(
        f"{CASES}:watched", log_dir=str(tmp_path), compiled=compiled, epochs=2, order="block"
    )
    assert list(events.scalars(job_dir)["speed/collectives_ms"]) == [3, 6]
    for rank, examples in enumerate([12.0, 11.0]):
        points = events.scalars(job_dir / f"rank_{rank}")
        assert list(points["ranks/examples"].values()) == [examples] * 2
        for epoch in (1, 2):
            assert 0 < points["ranks/busy_ms"][epoch] < points["ranks/step_ms"][epoch]
    assert "| [0, 12) |" in events.texts(job_dir)["shards"][0]


def test_what_goes_wrong_stops_all_ranks(groups: Groups, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    both = groups(2).run(
        f"{CASES}:refusals", log_dir=str(tmp_path / "log"), under_a_file=str(file / "log")
    )
    for rank, messages in enumerate(both):
        folder, settings, missing, plain, broken, flat = messages
        other = "Rank 0 has stopped: " if rank else ""
        assert folder.startswith(f"DataError: {other}Monitor can't write to log_dir '{file}/log': ")
        assert "HINT: give it a directory that rank 0 may write to" in folder
        assert settings.startswith(
            "DisagreementError: rank 1 made a Monitor with other arguments than rank 0: "
            "update_every_steps=4, predictions None; rank 0: update_every_steps=3"
        )
        assert missing.startswith("DisagreementError: The ranks are about to train differently")
        assert "tfddl's callbacks: rank 0: Monitor; rank 1: none" in missing
        assert plain.startswith("UnsupportedError: tfddl's Monitor needs a model that the ranks")
        assert broken == f"DataError: {other}predictions failed: KeyError: 'no such image'"
        assert flat.startswith(f"DataError: {other}predictions returned 'masks' of shape (3, 8, 8)")


@pytest.mark.usefixtures("alone")
def test_one_worker_and_a_training_that_goes_on(tmp_path: Path, job_dir: Path) -> None:
    for _ in range(2):
        monitor.watched(str(tmp_path), epochs=2, update_every_steps=1)
    job = events.scalars(job_dir)
    assert len(list(job_dir.glob("events.*"))) == 2
    # 6 steps of 4, 4, 4, 4, 4, 3.
    assert list(job["speed/step_ms_median"]) == list(range(2, 13)), "the first isn't timed"
    assert set(job["speed/collectives_ms"].values()) == {0.0}
    assert list(job["step/loss"]) == list(range(1, 13))
    assert list(job["step/learning_rate"]) == list(range(13))
    rank = events.scalars(job_dir / "rank_0")
    assert list(rank["ranks/examples"].values()) == [23.0, 23.0]
    assert rank["ranks/busy_ms"] == rank["ranks/step_ms"]
    texts = events.texts(job_dir)
    assert "| 0 | " in texts["shards"][0]
    assert texts["ranks/table"][2].startswith("Epoch 2.\n")
    assert list(events.images(job_dir)) == ["scores"]


@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(("stops", "steps"), [(False, [4, 7, 11, 14]), (True, [4])])
def test_epochs_that_end_when_nobody_knew(
    tmp_path: Path, job_dir: Path, stops: bool, steps: list[int]
) -> None:
    monitor.of_unknown_length(str(tmp_path), stops)
    # The optimizer counts the attempt that finds no more data as a step.
    assert list(events.scalars(job_dir)["speed/examples_per_second"]) == steps
    examples = events.scalars(job_dir / "rank_0")["ranks/examples"]
    assert examples == ({1: 16.0} if stops else {1: 23.0, 2: 23.0})
    shards = events.texts(job_dir)["shards"][0]
    assert shards.startswith("Counted in the first epoch")
    assert re.search(r"^\| 0 \| \S+ \| 16 \| 4 \|$" if stops else r"\| 23 \| 6 \|$", shards, re.M)


@pytest.mark.usefixtures("alone")
def test_what_an_interrupted_training_leaves_can_be_read(tmp_path: Path, job_dir: Path) -> None:
    monitor.interrupted(str(tmp_path))
    job = events.scalars(job_dir)
    assert list(job["speed/step_ms_median"]) == [6]
    assert list(job["epoch/seconds"]) == [1]
    assert list(events.scalars(job_dir / "train")["epoch/loss"]) == [1]


@pytest.mark.parametrize("value", [0, -1, 2.5, None])
def test_update_every_steps_is_checked_at_once(value: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"update_every_steps is .*; expected an integer"):
        tfddl.callbacks.Monitor("log", update_every_steps=value)


def test_a_full_disk_is_told_once(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    writer = EventWriter(str(tmp_path))
    writer.scalars(".", {"a": 1.0}, 1)
    writer.flush()
    writer.flush()
    assert not recwarn.list, "nothing was added"
    writer._bytes = 10**9  # As if the file stayed as long as it is.
    writer.scalars(".", {"a": 1.0}, 2)
    with pytest.warns(RuntimeWarning, match="no longer grows; is the disk full"):
        writer.flush()
    writer._bytes = 10**9
    writer.scalars(".", {"a": 1.0}, 3)
    writer.flush()
