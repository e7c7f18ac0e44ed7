"""What a job logs are the means over its examples, however its batches are cut."""

from typing import Any

import pytest

from tests.group import Groups

CASES = "tests.cases.logs"

ALL = ("arrays", "shard", "generator", "dataset")
ARRAYS = {"validation": ("arrays",)}
SHARD = ("shard",)

# Structures of outputs, ways of training, kinds of validation data; a number that isn't a mean over
# examples shows in any of them.
SETTINGS: list[Any] = [
    (1, {"structure": "dictionary", "weighted": True}),
    (2, {"structure": "dictionary", "weighted": True, "validation": ("generator", "dataset")}),
    (2, {"structure": "list", "under_scope": True, "steps_per_execution": 2, **ARRAYS}),
    *(
        pytest.param(size, setting, marks=pytest.mark.long)
        for size, setting in (
            # Up to 3 examples in a step: some steps have none for the last ranks.
            (3, {"structure": "nested", "batch_size": 1, "weighted": True, "validation": SHARD}),
            (1, {"structure": "nested", "under_scope": True, "steps_per_execution": 2}),
            (2, {"structure": "list", "run_eagerly": True, "validation": ALL}),
            (3, {"structure": "dictionary", "under_scope": True, "batch_size": 1}),
            (2, {"structure": "nested", "policy": "mixed_bfloat16"}),
            (2, {"structure": "dictionary", "policy": "mixed_float16", "under_scope": True}),
        )
    ),
]


@pytest.mark.parametrize(("size", "setting"), SETTINGS)
def test_all_losses_and_metrics_are_means_over_examples(
    groups: Groups, size: int, setting: dict[str, Any]
) -> None:
    """Of single outputs too, which Keras weighs by batches where these have no static size."""
    ranks = groups(size).run(f"{CASES}:everywhere", **setting)
    half = setting.get("policy", "float32") != "float32"
    for way, (found, true) in ranks[0].items():
        assert found.keys() == true.keys(), way
        assert found == pytest.approx(true, rel=1e-3 if half else 1e-5), way
    for rank in ranks[1:]:
        assert {way: logs for way, (logs, _) in rank.items()} == {
            way: logs for way, (logs, _) in ranks[0].items()
        }


@pytest.mark.parametrize(("size", "batch_size"), [(1, 3), (2, 2), (3, 1)])
def test_steps_of_ones_own_log_means_over_examples(
    groups: Groups, size: int, batch_size: int
) -> None:
    for rank in groups(size).run(f"{CASES}:own_steps", batch_size=batch_size):
        assert rank["found"] == pytest.approx(rank["true"], rel=1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_early_stopping_by_the_loss_of_one_output(groups: Groups, size: int) -> None:
    ranks = groups(size).run(f"{CASES}:stops_early")
    for found, true in ranks:
        assert found == pytest.approx(true, rel=1e-5)
        assert len(found) == 2, "the second epoch is worse than the first"
        assert found == ranks[0][0]


@pytest.mark.parametrize("size", [1, 3])
def test_losses_divided_by_the_weights(groups: Groups, size: int) -> None:
    """In evaluation means by weight; the last step of a shard of 13 is one rank's."""
    for logged in groups(size).run(f"{CASES}:by_weight", n=13):
        for way, (found, true) in logged.items():
            assert found == pytest.approx(true, rel=1e-5), way


def test_batches_by_hand_log_the_rank_s_own(groups: Groups) -> None:
    for logged in groups(2).run(f"{CASES}:batches_by_hand"):
        for found, true in logged:
            assert found == pytest.approx(true, rel=1e-5)


@pytest.mark.parametrize(
    ("own_data", "verbose", "rates"),
    [
        (False, 1, ["3.8000"]),  # 19 examples in the 5 seconds after the first of 6 steps
        (True, 1, [None]),
        (False, 1, ["7.5000", "7.5000"]),  # 8, 8 and 7
        (False, 2, ["7.5000", "7.5000"]),
        # Each takes the other to have as many as itself, of 23.
        (True, 1, ["8.0000", "7.0000"]),
    ],
)
def test_the_progress_bar_shows_the_job_s_examples_per_second(
    groups: Groups, own_data: bool, verbose: int, rates: list[str | None]
) -> None:
    ranks = groups(len(rates)).run(
        f"{CASES}:examples_per_second", own_data=own_data, verbose=verbose
    )
    for found, rate in zip(ranks, rates, strict=True):
        assert found["rates"] == [[] if rate is None else [rate]] * 2
        assert found["logged"] == ["loss", "val_loss"]
