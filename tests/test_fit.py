"""What `fit` with a DistributedOptimizer agrees on, on several real workers."""

from pathlib import Path

import numpy as np
import pytest

from tests import fork_server
from tests.group import SOON_S, Groups
from tests.one_process import in_one_process
from tfddl._src.sharding import shard_range

CASES = "tests.cases.fit"


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("what", "line", "hint"),
    [
        ("steps", "steps per epoch: {others}: {steps}; {last}: {fewer}", "or pass steps_per_epoch"),
        ("epochs", "epochs: {others}: 2; {last}: 3", "the same epochs to fit on every rank"),
        ("initial_epoch", "initial_epoch: {others}: 0; {last}: 1", "broadcast_object(initial_epo"),
        (
            "data",
            "data: {others}: 24 examples in global order, seed 1, batches of 4; "
            "{last}: 24 examples in global order, seed 2, batches of 4",
            "the same data, batch_size, seed and order on every rank",
        ),
        ("iterations", "optimizer.iterations: {others}: 0; {last}: 7", "the same checkpoint"),
        ("validation", "validation: {others}: False; {last}: True", "on every rank, or on none"),
        ("validation_freq", "validation_freq: {others}: 1; {last}: 2", "the same validation_freq"),
        ("optimizer", "optimizer: {others}: SGD; {last}: Adam", "the same optimizer on every rank"),
        ("root_rank", "root_rank: {others}: 0; {last}: 1", "the same root_rank on every rank"),
        ("learning_rate", "learning rate: {others}: 0.100000001; {last}: 0.5", "the same learning"),
        (
            "variables",
            "trainable variables: {others}: number 0 is dense/kernel float32 (5, 8); "
            "{last}: number 0 is other/kernel float32 (6, 9)",
            "build the same model on every rank",
        ),
    ],
)
def test_ranks_with_other_plans_stop_before_the_first_step(
    groups: Groups, size: int, what: str, line: str, hint: str
) -> None:
    names = {
        "others": "rank 0" if size == 2 else "ranks 0..1",
        "last": f"rank {size - 1}",
        "steps": 3 if size == 2 else 2,
        "fewer": 1,
    }
    for kind, message, seconds, seen in groups(size).run(f"{CASES}:differ", what=what):
        assert kind == "DisagreementError"
        assert line.format(**names) in message
        assert "HINT: " in message
        assert hint in message
        assert "stopped before the first step" in message
        assert seconds < SOON_S
        assert seen == []


@pytest.mark.long
def test_shards_of_different_numbers_of_batches_on_eight_workers(groups: Groups) -> None:
    """103 examples, 8 workers, batches of 4: seven ranks would run 4 steps, and one 3."""
    found = groups(8).run(
        f"{CASES}:shards_by_hand", n=103, batch_size=4, fit={"epochs": 2}, compare=False
    )
    for kind, message, seconds, seen in found:
        assert kind == "DisagreementError"
        assert "steps per epoch: ranks 0..6: 4; rank 7: 3" in message
        assert "use tfddl.shard_dataset" in message
        assert seconds < SOON_S
        assert seen == []


def test_shards_of_different_numbers_of_batches_on_three_workers(groups: Groups) -> None:
    """13 examples, 3 workers, batches of 4: 5, 4, 4 examples are 2, 1 and 1 steps."""
    found = groups(3).run(
        f"{CASES}:shards_by_hand", n=13, batch_size=4, fit={"epochs": 2}, compare=False
    )
    for kind, message, _, seen in found:
        assert kind == "DisagreementError"
        assert "steps per epoch: rank 0: 2; ranks 1..2: 1" in message
        assert "pass steps_per_epoch=1 to fit on every rank" in message
        assert seen == []


def test_shards_by_hand_with_validation_split_and_initial_epoch(
    groups: Groups, tmp_path: Path
) -> None:
    """`fit` on slices, with validation_split and initial_epoch, against one process."""
    size, n, batch_size = 2, 21, 4
    fit = {"epochs": 12, "validation_split": 0.25, "initial_epoch": 2}
    ranks = groups(size).run(
        f"{CASES}:shards_by_hand", n=n, batch_size=batch_size, fit=fit, compare=True
    )
    train, held_out = _split(n, size, 0.25)
    batches = _union([_batched(indices, batch_size) for indices in train])
    for rank, indices in zip(ranks, train, strict=True):
        assert rank["seen"] == _batched(indices, batch_size) * 10
    validation = [i for part in held_out for i in part]
    spec = {"n": n, "loss": "scce", "optimizer": "sgd", "validation": validation}
    [expected] = in_one_process([(spec, [batches] * 10)], tmp_path)
    for rank in ranks:
        for path, value in expected["weights"].items():
            difference = np.abs(rank["weights"][path] - value).max() / np.abs(value).max()
            assert difference <= 1e-5
        assert rank["history"].keys() == {"loss", "val_loss"}
        for key, values in rank["history"].items():
            np.testing.assert_allclose(values, expected["history"][key], rtol=1e-5)


def _split(n: int, size: int, fraction: float) -> tuple[list[list[int]], list[list[int]]]:
    """Keras takes the end of what it is given for validation."""
    train, held_out = [], []
    for rank in range(size):
        indices = list(range(*shard_range(n, rank, size)))
        cut = int(len(indices) * (1 - fraction))
        train.append(indices[:cut])
        held_out.append(indices[cut:])
    return train, held_out


def _batched(indices: list[int], size: int) -> list[list[int]]:
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def _union(per_rank: list[list[list[int]]]) -> list[list[int]]:
    return [[i for part in step for i in part] for step in zip(*per_rank, strict=True)]


@pytest.mark.parametrize(
    ("hook", "call", "expected"),
    [
        # 3 steps per epoch; a rank that wants to stop says so with its next step.
        ("on_train_batch_end", 1, (2, 1)),
        pytest.param("on_train_batch_end", 4, (5, 2), marks=pytest.mark.long),
        ("on_train_batch_end", 3, (3, 1)),
        ("on_epoch_end", 2, (6, 2)),
        ("on_epoch_begin", 2, (5, 2)),
        ("on_train_begin", 1, (2, 1)),
    ],
)
def test_stop_training_ends_all_ranks_at_the_same_step(
    groups: Groups, hook: str, call: int, expected: tuple[int, int]
) -> None:
    found = groups(2).run(f"{CASES}:stop", hook=hook, call=call, rank=1)
    assert found == [expected, expected]


def test_stock_callbacks_decide_alike(groups: Groups) -> None:
    first, *others = groups(3).run(f"{CASES}:early_stopping")
    epochs, values = first
    assert len(epochs) < 20, "EarlyStopping never stopped"
    assert values[-1] < 0.1, "ReduceLROnPlateau never reduced"
    assert all(other == first for other in others)


def test_a_callback_list_of_ones_own_is_followed_and_left_as_it_was(groups: Groups) -> None:
    assert groups(2).run(f"{CASES}:own_callback_list") == [([0, 1], True)] * 2


def test_data_of_unknown_length_wants_steps(groups: Groups) -> None:
    for kind, message, _ in groups(2).run(f"{CASES}:unknown_length", everywhere=True):
        assert kind == "UnsupportedError"
        assert "fit got data of unknown length" in message
        assert "pass steps_per_epoch=… to fit on every rank" in message
    for kind, message, _ in groups(2).run(f"{CASES}:unknown_length", everywhere=False):
        assert kind == "DisagreementError"
        assert "steps per epoch: rank 0: 3; rank 1: unknown" in message
        assert "pass steps_per_epoch=3 to fit on every rank" in message


def test_a_generator_with_steps_trains(groups: Groups) -> None:
    assert groups(2).run(f"{CASES}:generator_with_steps") == [6, 6]


@pytest.mark.parametrize(
    ("kind", "steps", "together"),
    [
        ("sequence", 2, 1),
        ("of unknown length", 2, 1),
        ("dataset", 4, 2),
        pytest.param("dataset", 7, 1, marks=pytest.mark.long),
        pytest.param("arrays", 2, 1, marks=pytest.mark.long),
        pytest.param("generator", 2, 1, marks=pytest.mark.long),
    ],
)
def test_an_epoch_ends_early_where_all_data_has_ended(
    groups: Groups, tmp_path: Path, kind: str, steps: int, together: int
) -> None:
    """As with plain Keras, which says so, and goes on."""
    directory = str(tmp_path)
    for found in groups(2).run(
        f"{CASES}:early_ends", kind=kind, steps=steps, together=together, directory=directory
    ):
        plain, ours = found["seen"]
        assert ours == plain
        assert len(plain) == found["iterations"] == {2: 7, 4: 10, 7: 20}[steps]
        warned = {2: 1, 4: 2, 7: 4}[steps]
        assert found["warned"] == [warned, warned]
        for one, mine in zip(*found["weights"], strict=True):
            np.testing.assert_allclose(mine, one, rtol=1e-5, atol=1e-7)
        if steps == 2:
            assert found["resumed"] == ([0, 1, 2, 3], 2, 7)
        if kind == "of unknown length":  # Keras shuffles what has one.
            one, mine = found["last losses"]
            assert mine == pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize("ring", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_rank_that_runs_out_of_data_says_so(groups: Groups, ring: bool) -> None:
    """RING can't tell at once that the others go on: it asks them for a while."""
    limits = {"timeout_s": 5.0, "start_timeout_s": 60.0}
    group = groups(2, collective="ring", **limits) if ring else groups(2, collective="auto")
    (first_ok, first), (last_ok, last) = group.outcomes(f"{CASES}:runs_out")
    assert first_ok
    assert last_ok
    assert last[0] == "DataError"
    ran_out = "ran out of data after 2 of 4 steps of the epoch"
    assert f"rank 1 {ran_out}, and not all other ranks did" in last[1]
    if ring:
        group.close()
        assert first[0] == "DeadlineExceededError"
        return
    # What TensorFlow makes of it within a graph.
    assert first[0] == "InvalidArgumentError"
    assert "rank 0: allreduce sum <step>" in first[1]
    assert f"rank 1: barrier <end of epoch 0, {ran_out}>" in first[1]
    assert groups(2, collective="auto").run(f"{CASES}:generator_with_steps") == [6, 6]


def test_sums_of_losses_add_up(groups: Groups) -> None:
    """A loss that is a sum, with op="sum", against one process that takes all examples at once."""
    for together, alone in groups(2).run(f"{CASES}:summed_loss"):
        np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_under_a_strategy_scope_it_is_refused(groups: Groups) -> None:
    for messages in groups(2).run(f"{CASES}:under_scope"):
        assert len(messages) == 3
        for message in messages:
            assert "they would be averaged twice. HINT: leave the scope" in message


def test_refusals(groups: Groups) -> None:
    expected = [
        "optimizer is 'adam'; expected a Keras 3 optimizer such as keras.optimizers.Adam(1e-3).",
        "This optimizer is distributed already. HINT: wrap it once.",
        "Gradients can't be combined by max; op must be average, sum or adasum.",
        "compression is 'fp8'; it must be one of none, fp16, bf16.",
        "A loss with reduction ['sum'] isn't a mean over the batch",
        "rank 0: the generator that fit got has no batch; expected at least one.",
        "Parts has layers without variables, and no call() that would make them",
    ]
    for rank, messages in enumerate(groups(2).run(f"{CASES}:refusals")):
        for message, beginning in zip(messages, expected, strict=True):
            assert message.startswith(beginning.replace("rank 0", f"rank {rank}"))


def test_models_that_are_built_late_start_from_rank_0(groups: Groups) -> None:
    first, second = groups(2).run(f"{CASES}:builds_late")
    assert len(first) == 7
    for name, weights in first.items():
        for mine, other in zip(weights, second[name], strict=True):
            assert mine.tobytes() == other.tobytes(), name


def test_a_train_step_of_ones_own_and_dropout(groups: Groups) -> None:
    (first, first_dropped, weights), (second, second_dropped, other) = groups(2).run(
        f"{CASES}:own_train_step"
    )
    assert first == second, "logs differ"
    assert first[2:] == [0.5, 0.5], "what train_step returns is averaged"
    assert first_dropped != second_dropped, "all ranks drop the same"
    for mine, others in zip(weights, other, strict=True):
        assert mine.tobytes() == others.tobytes()


def test_evaluate_on_one_rank_within_fit(groups: Groups) -> None:
    (alone, validated), (_, other) = groups(2).run(f"{CASES}:evaluate_on_one_rank")
    assert alone == pytest.approx(validated, rel=1e-5)
    assert validated == other


def test_evaluate_within_an_epoch_changes_only_what_was_metered(groups: Groups) -> None:
    first, second = groups(2).run(f"{CASES}:evaluate_within_an_epoch")
    assert first[0] == second[0]
    assert first[1] == second[1], "all ranks log the same"
    assert len(first[1]) == 2


def test_an_optimizer_that_compile_does_not_know_is_refused(groups: Groups) -> None:
    for kind, message, _ in groups(2).run(f"{CASES}:hidden_optimizer"):
        assert kind == "UnsupportedError"
        assert "model.hidden is a DistributedOptimizer, but model.optimizer is not" in message


def test_a_plain_optimizer_is_left_alone(groups: Groups) -> None:
    assert groups(2).run(f"{CASES}:other_optimizers") == [(3, 4), (3, 8)]


@pytest.mark.parametrize("by_hand", [False, True])
def test_batch_statistics_are_those_of_all_examples(groups: Groups, by_hand: bool) -> None:
    """Ranks with 4, 5 and 6 examples that lie far apart; two steps on the same ones."""
    ranks = groups(3).run(f"{CASES}:batch_statistics", by_hand=by_hand)
    x = np.concatenate([rank["x"] for rank in ranks])
    old = 0.6**2  # What is left of the statistics that a layer begins with: 0 and 1.
    for rank in ranks:
        np.testing.assert_allclose(rank["mean"], (1 - old) * x.mean(0), rtol=1e-5)
        if by_hand:
            # Pooled afterwards: the means of the ranks, moved by 1 - old, lie around their mean.
            within = np.average([r["x"].var(0) for r in ranks], axis=0, weights=[4, 5, 6])
            spread = (1 - old) ** 2 * (x.var(0) - within)
            expected = old + (1 - old) * within + spread
        else:
            expected = old + (1 - old) * x.var(0)
        np.testing.assert_allclose(rank["var"], expected, rtol=1e-5)
        assert np.array_equal(rank["var"], ranks[0]["var"])


def test_train_on_batch_averages_before_and_after_fit(groups: Groups) -> None:
    assert groups(2).run(f"{CASES}:batches_by_hand") == [None, None]


def test_a_saved_model_loads_where_tfddl_is_not(groups: Groups, tmp_path: Path) -> None:
    groups(2).run(f"{CASES}:saves", directory=str(tmp_path))
    script = (
        "import os, sys; sys.modules['tfddl'] = None\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "import keras, numpy as np; from tests import problem\n"
        "x = problem.data({'n': 24, 'loss': 'scce'})[0][:, 1:]\n"
        "for name in ('model.keras', 'model.h5'):\n"
        "    model = keras.models.load_model(name)\n"
        "    assert type(model.optimizer) is keras.optimizers.AdamW, type(model.optimizer)\n"
        "    assert int(model.optimizer.iterations) == 6, model.optimizer.iterations\n"
        "    assert abs(float(model.optimizer.weight_decay) - 0.02) < 1e-9\n"
        "    found = model.predict(x, verbose=0)\n"
        "    np.testing.assert_allclose(found, np.load('predictions.npy'), rtol=1e-5)\n"
    )
    log = tmp_path / "log"
    process = fork_server.start("tests.fork_server:execute", script, log=log)
    assert process.wait(timeout=120) == 0, log.read_text()


@pytest.mark.parametrize("hook", ["on_epoch_end", "on_train_end"])
def test_a_callback_may_shut_down(groups: Groups, hook: str) -> None:
    for error, text, _ in groups(2).run(f"{CASES}:shut_down_within", hook=hook):
        assert (error, text) == ("no error", "")
