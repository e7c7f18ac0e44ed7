"""`evaluate` and `predict` of several workers, and the callbacks."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import tensorflow as tf

from tests.group import SOON_S, Groups
from tfddl._src.comm.errors import PeerLostOpError
from tfddl._src.keras_hooks import evaluate

CASES = "tests.cases.evaluate"


@pytest.mark.parametrize(("size", "n"), [(2, 23), (3, 5)])
def test_metrics_are_exact_and_predictions_in_order(groups: Groups, size: int, n: int) -> None:
    found = groups(size).run(f"{CASES}:everything", n=n)
    assert all(logs == found[0] for logs in found)


@pytest.mark.parametrize("lengths", [[7, 6], [6, 3], [0, 7]])
def test_predictions_are_gathered_in_chunks(groups: Groups, lengths: list[int]) -> None:
    """Of 3 rows, of one where a row is larger than a chunk, and of 5."""
    rows = [
        [100.0 * rank + 2 * i, 100.0 * rank + 2 * i + 1]
        for rank, count in enumerate(lengths)
        for i in range(count)
    ]
    expected = [(dtype, rows) for dtype in ("float64", "float32", "float32")]
    for found in groups(2).run(f"{CASES}:in_chunks", lengths=lengths):
        assert found == expected


def test_fewer_examples_than_workers(groups: Groups) -> None:
    """Only arrays: a shard needs an example for every worker."""
    found = groups(3).run(f"{CASES}:few", n=2)
    assert all(logs == found[0] for logs in found)


def test_a_callback_looks_for_itself(groups: Groups) -> None:
    (loss, rows), (other_loss, other_rows) = groups(2).run(f"{CASES}:within_fit")
    assert loss == other_loss
    assert (rows, other_rows) == (21, 0)


@pytest.mark.parametrize("call", ["evaluate", "predict"])
def test_what_only_one_rank_calls_is_named_with_its_line(groups: Groups, call: str) -> None:
    (kind, message, seconds), (other_kind, other, _) = groups(2).run(
        f"{CASES}:on_one_rank", call=call
    )
    assert kind == other_kind == "DisagreementOpError"
    for text in (message, other):
        assert f"rank 0: allgather <model.{call}, which all ranks call together>" in text
        assert "rank 1: barrier" in text
    assert f'On rank 0, model.{call} was called by \'"{call}": lambda: model.{call}(x' in message
    assert "evaluate.py, line " in message
    assert "all ranks must call it together. HINT: call it outside of what only some" in message
    assert seconds < SOON_S


def test_validation_on_one_rank_is_named(groups: Groups) -> None:
    for kind, message, _ in groups(2).run(f"{CASES}:on_one_rank", call="fit"):
        assert kind == "DisagreementError"
        assert "validation: rank 0: True; rank 1: False" in message
        assert "on every rank, or on none" in message


@pytest.mark.parametrize(
    "error", [PeerLostOpError("rank 1 has ended"), tf.errors.UnavailableError(None, None, "closed")]
)
def test_a_call_that_other_ranks_have_left_is_named_with_its_line(error: Exception) -> None:
    runtime = SimpleNamespace(cluster=SimpleNamespace(rank=0))
    with (
        mock.patch.object(evaluate, "current", return_value=runtime),
        pytest.raises(type(error)) as raised,
        evaluate._naming_absent_ranks("model.predict", "L"),
    ):
        raise error
    [note] = raised.value.__notes__
    assert note.startswith("On rank 0, model.predict was called by L. With tfddl.Distributed")


def test_under_horovod_they_are_each_rank_s_own(groups: Groups) -> None:
    first, second = groups(2).run(f"{CASES}:by_horovod")
    # Rank 0 validated by itself, rank 1 didn't.
    assert not any(name.startswith("val_") for name in second["some"])
    for name, value in first["some, afterwards"].items():
        assert first["some"][f"val_{name}"] == [pytest.approx(value, rel=1e-5)]
    # Where all do, what fit logs is of all ranks' parts, whole or not.
    positives = sum(found["parts, afterwards"]["positives"] for found in (first, second))
    for found in (first, second):
        assert found["parts"]["val_positives"] == [positives]
        for name, value in found["all, afterwards"].items():
            assert found["all"][f"val_{name}"][-1] == pytest.approx(value, rel=1e-5)
    assert first["tfddl's"] == second["tfddl's"]


def test_learning_rates(groups: Groups) -> None:
    """Three steps in an epoch: from 0.2 to 0.4 in six, then constant, then half."""
    for rank in groups(2).run(f"{CASES}:learning_rates"):
        warm = [0.2 + 0.2 * (step + 1) / 6 for step in range(6)]
        rates = [*warm, 0.4, 0.4, 0.4, 0.2, 0.2, 0.2]
        assert rank["rates"] == pytest.approx(rates, rel=1e-6)
        # SGD's velocity has the learning rate in it, and is scaled along.
        changes = [after / before for before, after in rank["speeds"][1:]]
        assert changes == pytest.approx(
            [rate / before for before, rate in itertools.pairwise(rates)], rel=1e-5
        )
        assert rank["seen"] == [0.5] * 4
        assert rank["scaled"] == pytest.approx(0.01 * 2**0.5)


def test_a_rate_that_one_rank_changes_is_an_error_on_all(groups: Groups) -> None:
    for kind, message, seconds in groups(2).run(f"{CASES}:one_rank_lowers_the_rate"):
        assert kind == "DisagreementError"
        assert "different learning rates in epoch 1" in message
        assert "rank 0: 0.100000001; rank 1: 0.0500000007" in message
        assert "on every rank" in message
        assert seconds < SOON_S


def test_all_start_from_the_rank_that_is_named(groups: Groups) -> None:
    assert groups(2).run(f"{CASES}:root_rank") == [[43.0, 3.0]] * 2


def test_validation_collapses_without_pooled_statistics(groups: Groups) -> None:
    """The source's accuracy fell from 0.99 in training to 0.59 in validation."""
    for train, validation in groups(2).run(f"{CASES}:normalization", pooled=False):
        assert train > 0.95
        assert validation < 0.8
    for train, validation in groups(2).run(f"{CASES}:normalization", pooled=True):
        assert train > 0.95
        assert validation > 0.95


def test_a_file_that_vanishes_ends_all_ranks(groups: Groups, tmp_path: Path) -> None:
    results = groups(2).run(f"{CASES}:vanishing", directory=str(tmp_path))
    for kind, message, seconds in results:
        assert kind == "DataError"
        assert ".npy" in message
        assert seconds < SOON_S
    assert "Rank 1 has stopped: " in results[0][1]


def test_stock_callbacks_act_alike(groups: Groups, tmp_path: Path) -> None:
    first, second = groups(2).run(f"{CASES}:stock", directory=str(tmp_path))
    assert first == second
    # What isn't a number reaches all in the first step; all end with the second or the third.
    assert len(first["batches"]) in (8, 9)
    assert first["epochs"] == [0, 1, 2]
    assert first["rates"] == [0.1, 0.05, 0.1 / 3]
    assert len(first["log"].splitlines()) == 4
