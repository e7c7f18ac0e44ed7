"""Training is stopped and gone on with, by the same and by other numbers of workers."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.group import SOON_S, Groups
from tfddl._src.heartbeat import WorkerFlags

CASES = "tests.cases.resume"


def _ids(ranks: list[list[list[int]]]) -> list[int]:
    return sorted(example for batches in ranks for batch in batches for example in batch)


@pytest.mark.parametrize(
    ("size", "order", "under_scope"),
    [
        pytest.param(2, "global", False, marks=pytest.mark.long),
        (2, "global", True),
        pytest.param(3, "block", False, marks=pytest.mark.long),
    ],
)
def test_a_run_that_was_stopped_ends_bit_for_bit_in_the_same_weights(
    groups: Groups, tmp_path: Path, size: int, order: str, under_scope: bool
) -> None:
    """With dropout, BatchNormalization, validation and an EarlyStopping; in mid-epoch."""
    # Once in a store: of this machine's memory, so that rank 0 alone sees what is in it.
    directory = f"ram:/{tmp_path}" if under_scope else str(tmp_path)
    ranks = groups(size).run(
        f"{CASES}:interrupted", directory=directory, order=order, under_scope=under_scope
    )
    assert (tmp_path / "best.npz").exists() != under_scope
    for rank in ranks:
        steps = rank["steps"]
        whole, begun, rest = rank["seen"]
        assert begun == whole[: steps + 3]
        assert rest == whole[steps + 2 :]  # Saved after every second step.


@pytest.mark.parametrize(
    ("order", "batch_sizes"),
    [
        ("global", [4, 6, 12]),
        pytest.param("block", [4, 5, 7], marks=pytest.mark.long),
    ],
)
def test_other_numbers_of_workers_see_each_remaining_example_once(
    groups: Groups, tmp_path: Path, order: str, batch_sizes: list[int]
) -> None:
    """3 workers, then 2, then 1, all within the second epoch."""
    options: dict[str, Any] = {"directory": str(tmp_path), "order": order}
    first = groups(3).run(f"{CASES}:begin", interrupt_after=7, batch_size=batch_sizes[0], **options)
    second = groups(2).run(
        f"{CASES}:begin", interrupt_after=2, batch_size=batch_sizes[1], **options
    )
    [third] = groups(1).run(f"{CASES}:finish", batch_size=batch_sizes[2], **options)
    # Interrupted in a step's callbacks, before it was saved: the last step is trained again.
    seen = [batches[:-1] for batches in [*first, *second]]
    everyone = [
        example for batches in [*seen, third["seen"]] for batch in batches for example in batch
    ]
    assert sorted(everyone) == sorted(list(range(50)) * 3)
    if order == "block":
        return
    # 12 examples in every global batch: the same weights as one worker by itself.
    [whole] = groups(1).run(f"{CASES}:finish", directory=None, batch_size=12)
    for a, b in zip(whole["weights"], third["weights"], strict=True):
        assert np.abs(a - b).max() <= 1e-6 * np.abs(a).max()
    for name, values in whole["history"].items():
        np.testing.assert_allclose(third["history"][name], values, rtol=1e-5)


def test_fewer_examples_than_workers_are_left(groups: Groups, tmp_path: Path) -> None:
    """8 of 10 examples are done; of the three workers that follow, one has none to begin with."""
    begun, copy = tmp_path / "begun", tmp_path / "copy"
    groups(1).run(f"{CASES}:begin", directory=str(begun), interrupt_after=4, n=10, batch_size=3)
    shutil.copytree(begun, copy)
    [alone] = groups(1).run(f"{CASES}:finish", directory=str(copy), n=10, batch_size=9)
    ranks = groups(3).run(f"{CASES}:finish", directory=str(begun), n=10, batch_size=3)
    assert [len(batch) for batch in alone["seen"]] == [2, 5, 5, 5, 5]
    assert [rank["seen"][0] for rank in ranks[:2]] == [alone["seen"][0][:1], alone["seen"][0][1:]]
    for a, b in zip(alone["weights"], ranks[2]["weights"], strict=True):
        assert np.abs(a - b).max() <= 1e-6 * np.abs(a).max()
    assert alone["history"]["loss"] == pytest.approx(ranks[2]["history"]["loss"], rel=1e-5)


def test_more_workers_have_a_higher_rate_and_dropout_of_their_own(
    groups: Groups, tmp_path: Path
) -> None:
    """One worker's run is gone on with by two: nobody had the second's random state."""
    directory = str(tmp_path)
    groups(1).run(f"{CASES}:other_workers", directory=directory, interrupt_after=2)
    first, second = groups(2).run(
        f"{CASES}:other_workers", directory=directory, interrupt_after=None
    )
    assert (first["rate"], second["rate"]) == (pytest.approx(0.02), pytest.approx(0.02))
    assert len(first["seeds"]) == len(second["seeds"]) == 1
    assert not np.array_equal(first["seeds"][0], second["seeds"][0])
    for a, b in zip(first["weights"], second["weights"], strict=True):
        assert np.array_equal(a, b)


REFUSED: dict[str, tuple[str, list[str]]] = {
    "model": (
        "CheckpointError",
        ["of another model: its variable number", "HINT: give the callback another directory"],
    ),
    "optimizer": (
        "CheckpointError",
        ["a training with Adam; the model is compiled with SGD"],
    ),
    "data": (
        "CheckpointError",
        ["within epoch 1 of other data", "seed 1; now", "seed 8"],
    ),
    "arrays": (
        "UnsupportedError",
        ["stopped within epoch 1, after", "HINT: give fit what tfddl.shard_dataset returned"],
    ),
    "one rank": (
        "DisagreementError",
        ["tfddl's callbacks: rank 0: Checkpoint; rank 1: none", "on every rank"],
    ),
    "BackupAndRestore": ("UnsupportedError", ["HINT: use tfddl.callbacks.Checkpoint("]),
}


def test_what_can_not_be_gone_on_with_is_refused(groups: Groups, tmp_path: Path) -> None:
    directory = str(tmp_path)
    groups(2).run(f"{CASES}:begin", directory=directory, interrupt_after=9)
    for what, (kind, texts) in REFUSED.items():
        for found, message, seconds in groups(2).run(
            f"{CASES}:refused", directory=directory, what=what
        ):
            assert found == kind, what
            for text in texts:
                assert text in message
            assert seconds < SOON_S
    blocked = tmp_path / "file"
    blocked.touch()
    for found, message, _ in groups(2).run(
        f"{CASES}:refused", directory=str(blocked / "below"), what="folder"
    ):
        assert found == "CheckpointError"
        assert "can't be written to" in message


def test_a_damaged_checkpoint_is_passed_over(groups: Groups, tmp_path: Path) -> None:
    directory = str(tmp_path)
    seen = groups(2).run(f"{CASES}:begin", directory=directory, interrupt_after=9)
    newest = max(tmp_path.glob("step-*.npz"))
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    ranks = groups(2).run(f"{CASES}:finish", directory=directory)
    for rank, before in zip(ranks, seen, strict=True):
        assert rank["seen"][:2] == before[7:9]  # The last one saved is trained again, too.
    assert newest.with_name(f"{newest.name}.damaged").exists()


def test_a_full_disk_leaves_the_checkpoint_before(groups: Groups, tmp_path: Path) -> None:
    (files, messages), (_, others) = groups(2).run(f"{CASES}:full_disk", directory=str(tmp_path))
    assert files == [
        "",
        "best.npz step-0000000004.npz",
        "best.npz step-0000000004.npz",
        "best.npz step-0000000004.npz step-0000000012.npz",
        "best.npz step-0000000004.npz step-0000000012.npz step-0000000016.npz",
        "best: epoch 4",
    ]
    assert len(messages) == 1
    assert "could not be saved to" in messages[0]
    assert "Training goes on" in messages[0]
    assert others == []


@pytest.mark.parametrize("ends", [[], [3, 4, 7]])
def test_keras_callbacks_remember_over_a_resume(
    groups: Groups, tmp_path: Path, ends: list[int]
) -> None:
    """The second epoch was the best; ended before some of those after, when all of them wait."""
    for found in groups(2).run(f"{CASES}:remembered", directory=str(tmp_path), ends=ends):
        # Lowered after 2 epochs that are no better, and 2 of cooldown and 2 more.
        assert found["rates"] == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25]
        assert found["stoppers"] == [[0, 3, 6.0, 4], [7, 1, 3.0, 6]]
        assert found["restored"] == {1.0}, "the weights of the best epoch"
        assert found["saved"] == {1.0}, "ModelCheckpoint's best"


@pytest.mark.parametrize(
    ("what", "best"),
    [
        # The second epoch's would be the best, but isn't there.
        ("the loss isn't finite", {1: (1, 5.0), 2: (1, 5.0), 3: (1, 5.0), 4: (4, 4.0)}),
        ("the disk is full", {1: (1, 5.0), 2: (1, 5.0), 3: (1, 5.0), 4: (4, 4.0)}),
        # What fails there says nothing of the best that there is.
        ("the disk is full within an epoch", {1: (1, 5.0), 2: (1, 5.0), 3: (1, 5.0), 4: (4, 4.0)}),
        ("gone on with", {1: (1, 2.0), 2: (1, 2.0), 3: (3, 1.0), 4: (3, 1.0)}),
    ],
)
def test_the_best_is_the_best_that_was_saved(
    groups: Groups, tmp_path: Path, what: str, best: dict[int, tuple[int, float]]
) -> None:
    [found] = groups(1).run(f"{CASES}:best", directory=str(tmp_path), what=what)
    assert found == best


@pytest.mark.parametrize(
    "ways",
    [("SIGTERM", "tfddlrun"), pytest.param(("tfddlrun", "SIGTERM"), marks=pytest.mark.long)],
    ids=" then ".join,
)
def test_a_run_that_is_asked_to_end_saves_first(
    groups: Groups, tmp_path: Path, ways: tuple[str, str]
) -> None:
    """To one rank: all of them save after the next step, and end with status 75."""
    within, at_end = ways
    first, second = groups(2).run(
        f"{CASES}:asked_to_end",
        directory=str(tmp_path / "a"),
        within_by=within,
        at_end_by=at_end,
    )
    for rank in (first, second):
        steps = rank["steps"]
        assert rank["all"]  # No step twice, none left out.
        # The second is asked after the epoch's last step, and saves once it is validated.
        assert rank["seen"] == [4, steps - 4, 2 * steps]
    saved = WorkerFlags.PREEMPTED
    asked = {"SIGTERM": saved | WorkerFlags.GOT_SIGTERM, "tfddlrun": saved}
    assert first["flags"] == (saved, saved)
    assert second["flags"] == (asked[within], asked[at_end])


def test_a_handler_of_the_script_s_own_is_called(groups: Groups, tmp_path: Path) -> None:
    assert sum(groups(2).run(f"{CASES}:own_handler", directory=str(tmp_path / "b"))) == 1


def test_training_does_not_wait_for_the_disk(groups: Groups, tmp_path: Path) -> None:
    [told] = groups(1).run(f"{CASES}:slow_disk", directory=str(tmp_path))
    written = [line for line in told if line.startswith("written")]
    assert written == [f"written step-{n:010d}.npz" for n in (2, 4, 6, 8, 10)]
    assert told.index(written[0]) > told.index("step 3")
    assert told[-2:] == [written[-1], "end"]


def test_keras_own_callbacks_write_on_rank_0(groups: Groups, tmp_path: Path) -> None:
    results: list[tuple[list[str], str]] = groups(2).run(f"{CASES}:stock", directory=str(tmp_path))
    for found, log in results:
        assert found == ["1.weights.h5", "2.weights.h5", "best.keras", "board", "log.csv"]
        assert len(log.splitlines()) == 3


def test_steps_per_epoch_changes_no_order(groups: Groups) -> None:
    """Keras then makes an epoch's iterator while the epoch before is still going on."""
    [plain] = groups(1).run(f"{CASES}:orders")
    [given] = groups(1).run(f"{CASES}:orders", steps_per_epoch=13)
    assert plain == given
    assert plain[0] != plain[1] != plain[2]
