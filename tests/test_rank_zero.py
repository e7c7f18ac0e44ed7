"""Callbacks that act on rank 0 only: trackers', whoever wrote them, and `OnRankZero`."""

from pathlib import Path

import pytest

import tfddl
from tests.group import SOON_S, Groups
from tfddl.errors import NotInitializedError

CASES = "tests.cases.rank_zero"


def test_trackers_report_once(groups: Groups) -> None:
    first, second = groups(2).run(f"{CASES}:acts")
    assert second["events"] == []
    # Instances are made everywhere; what is given as a class or a function is not.
    assert second["made"] == ["tracker", "own", "fit", "evaluate", "list"]
    assert first["made"] == ["tracker", "own", "acted", "fit", "evaluate", "tracker", "list"]

    def of(name: str) -> list[tuple[str, int | None]]:
        return [(event, at) for whose, event, at in first["events"] if whose == name]

    training = [
        ("begin", 3),
        *[("batch", 0), ("batch", 1), ("batch", 2), ("loss", 0)],
        *[("batch", 0), ("batch", 1), ("batch", 2), ("loss", 1)],
        ("end", None),
    ]
    assert of("own") == training
    assert of("list") == [("begin", None), *training[1:]]  # The user has told it no parameters.
    assert of("tracker") == [*training, ("test", None)]
    assert of("plain") == [("epoch", None)] * 2
    assert of("evaluate") == [("test", None)]


def test_one_worker_needs_nothing_of_it(groups: Groups) -> None:
    [found] = groups(1).run(f"{CASES}:acts")
    assert len(found["events"]) == 3 * 16 + 2 + 2  # Of 6 steps an epoch, twice.


def test_a_callback_of_rank_0_ends_training_everywhere(groups: Groups) -> None:
    after_epoch, within = zip(*groups(3).run(f"{CASES}:stops"), strict=True)
    assert after_epoch == (2, 2, 2)
    assert within == (2, 2, 2)


def test_a_writer_of_keras_keeps_its_best(groups: Groups, tmp_path: Path) -> None:
    first, _ = groups(2).run(f"{CASES}:keeps_best", directory=str(tmp_path))
    resumed, best, *losses = first
    assert len(losses) == 2
    assert resumed == losses[0]
    assert best == min(losses)


def test_what_trains_must_act_on_every_rank(groups: Groups) -> None:
    first, second = groups(2).run(f"{CASES}:refused")
    for name, (kind, text) in first.items():
        assert kind == "UnsupportedError"
        if name == "NoneType":
            assert text.startswith("OnRankZero was given what makes a NoneType; expected a Keras")
        else:
            assert text.startswith(f"OnRankZero was given {name}, which changes the training")
    # What would have to be called to be known is rank 0's.
    assert [kind for kind, _ in second.values()] == ["UnsupportedError"] * 3 + ["no error"] * 2


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("weights", "sequential/dense/kernel and 3 more"),
        ("learning rate", "sgd/learning_rate"),
        ("slots", "sgd/sequential_dense_kernel_momentum"),
        ("swapped", None),
        ("another model", None),
        ("own draws", None),
    ],
)
def test_it_changes_nothing_that_ranks_must_have_alike(
    groups: Groups, what: str, changed: str | None
) -> None:
    first, second = groups(2).run(f"{CASES}:changes", what=what, alone=True)
    assert second == ("no error", "")
    if changed is None:
        assert first == ("no error", "")
        return
    kind, text = first
    assert kind == "UnsupportedError"
    assert f"Act acts on rank 0 only, but in on_train_end it has changed {changed}: the" in text


def test_on_every_rank_a_callback_may_change_weights(groups: Groups) -> None:
    found = groups(2).run(f"{CASES}:changes", what="weights", alone=False)
    assert found == [("no error", "")] * 2


@pytest.mark.long
def test_a_collective_of_rank_0_alone_is_an_error_on_all(groups: Groups) -> None:
    group = groups(2)
    for kind, text, seconds in group.run(f"{CASES}:calls_a_collective"):
        assert kind == "DeadlockOpError", text
        assert "score" in text
        assert seconds < SOON_S
    group.close()  # After a deadlock its ranks aren't in step any more.


def test_it_needs_to_know_its_rank() -> None:
    with pytest.raises(NotInitializedError):
        tfddl.callbacks.OnRankZero(lambda: None)
