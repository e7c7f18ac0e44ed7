"""Edges between fits, stops, orders and odd inputs."""

from pathlib import Path
from typing import Any

import pytest

from tests.group import SOON_S, Groups

CASES = "tests.cases.edges"


@pytest.mark.parametrize("size", [1, 2])
def test_a_stop_within_an_epoch_is_gone_on_with(groups: Groups, tmp_path: Path, size: int) -> None:
    steps = 3 if size == 1 else 4  # A second worker hears of it with the next step.
    for found in groups(size).run(f"{CASES}:stopped_within_an_epoch", directory=str(tmp_path)):
        assert found["begun"] == [0, steps * 4 * size, []]


def test_a_wish_to_stop_ends_with_the_fit_it_was_made_in(groups: Groups) -> None:
    assert groups(2).run(f"{CASES}:fits_after_a_failed_one") == [[5, 5]] * 2


def test_positions_add_up_over_several_stops(groups: Groups, tmp_path: Path) -> None:
    """12 examples in batches of 4, then one of 7 of the 28 that are left."""
    [found] = groups(1).run(f"{CASES}:twice_with_other_batches", directory=str(tmp_path))
    assert found == [12, 19]


def test_data_of_unknown_length_is_gone_on_with(groups: Groups, tmp_path: Path) -> None:
    [found] = groups(1).run(f"{CASES}:unknown_length", directory=str(tmp_path))
    assert found == [3, 2]


def test_logs_may_hold_anything(groups: Groups, tmp_path: Path) -> None:
    for best in groups(2).run(f"{CASES}:odd_logs", directory=str(tmp_path)):
        assert best == {"value": -2.0, "of": "mine"}
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("size", [1, 2])
def test_predictions_come_in_order(groups: Groups, size: int) -> None:
    assert groups(size).run(f"{CASES}:predictions") == [None] * size


def test_validation_counts_once(groups: Groups) -> None:
    for found in groups(2).run(f"{CASES}:metrics_of_validation"):
        in_fit, alone, (kind, message) = found
        assert in_fit == alone > 0
        assert kind == "UnsupportedError"
        assert "There are 1 examples for 2 workers; those that have none need padding" in message


def test_statistics_far_from_zero(groups: Groups) -> None:
    for variances in groups(2).run(f"{CASES}:far_means_and_no_weight"):
        assert all(0 < variance < 0.1 for variance in variances)


def test_a_warm_up_arrives(groups: Groups) -> None:
    assert groups(2).run(f"{CASES}:warm_up") == [pytest.approx(0.2)] * 2


@pytest.mark.parametrize(
    ("case", "kind", "text"),
    [
        ("unreadable_in_predict", "DataError", "example 33"),
        ("repeated", "UnsupportedError", "HINT: leave repeat() out"),
    ],
)
def test_refused_on_all_ranks(groups: Groups, case: str, kind: str, text: str) -> None:
    results: list[Any] = groups(2).run(f"{CASES}:{case}")
    for found, message, seconds in results:
        assert found == kind
        assert text in message
        assert seconds < SOON_S


def test_xla_stays_out_of_steps_of_the_user_s_own(groups: Groups) -> None:
    assert groups(2).run(f"{CASES}:xla_on_gpus") == [[False, True]] * 2
    assert groups(1).run(f"{CASES}:xla_on_gpus") == [[True, True]]


def test_collectives_within_what_xla_compiles_are_refused(groups: Groups) -> None:
    for found in groups(2).run(f"{CASES}:compiled_by_xla"):
        assert found.pop("sum") == 8.0
        # TensorFlow's words, for a graph that was made outside; but they name the node.
        assert "collective" in found.pop("made before")[1].lower()
        for kind, message in found.values():
            assert kind == "CompiledError", message
            assert "is called within a tf.function(jit_compile=True): XLA can't" in message
            assert "HINT: leave jit_compile out there" in message
