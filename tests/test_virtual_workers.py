"""Virtual workers: the same bits on any number of processes; and where two runs part."""

import json
import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests import fork_server
from tests.group import CaseError, Groups
from tfddl._src import fingerprints
from tfddl._src.sharding import GlobalPlan
from tfddl._src.virtual_workers import Node, TreeSum, nodes_of, own_workers
from tfddl.errors import DataError


def _join(first: str, second: str) -> str:
    return f"({first} {second})"


def _by_processes(virtual_workers: int, size: int) -> str:
    total: TreeSum[str] = TreeSum(_join)
    for rank in range(size):
        own: TreeSum[str] = TreeSum(_join)
        for worker in own_workers(virtual_workers, rank, size):
            own.push(Node(worker, 1), str(worker))
        for node, value in own.nodes:
            total.push(node, value)
    return total.total()


@pytest.mark.parametrize(
    ("virtual_workers", "order"),
    [
        (1, "0"),
        (2, "(0 1)"),
        (3, "((0 1) 2)"),
        (5, "(((0 1) (2 3)) 4)"),
        (7, "(((0 1) (2 3)) ((4 5) 6))"),
        (8, "(((0 1) (2 3)) ((4 5) (6 7)))"),
    ],
)
def test_the_order_is_that_of_a_tree(virtual_workers: int, order: str) -> None:
    assert _by_processes(virtual_workers, 1) == order


def test_no_number_of_processes_changes_the_order() -> None:
    for virtual_workers in range(1, 34):
        expected = _by_processes(virtual_workers, 1)
        for size in range(1, virtual_workers + 1):
            assert _by_processes(virtual_workers, size) == expected, (virtual_workers, size)


def test_each_level_of_the_tree_has_one_sum_at_most() -> None:
    for virtual_workers in (8, 13, 64):
        for size in (1, 2, 3, 5):
            for rank in range(size):
                nodes = nodes_of(own_workers(virtual_workers, rank, size))
                assert len(nodes) <= 2 * virtual_workers.bit_length()
        sums: TreeSum[int] = TreeSum(lambda a, b: a + b)
        for worker in range(virtual_workers):
            sums.push(Node(worker, 1), 1)
            assert len(sums.nodes) <= virtual_workers.bit_length()
        assert sums.total() == virtual_workers


def test_blocks_that_are_aligned_are_one_node() -> None:
    assert [nodes_of(own_workers(8, rank, 4)) for rank in range(4)] == [
        [Node(0, 2)],
        [Node(2, 2)],
        [Node(4, 2)],
        [Node(6, 2)],
    ]
    assert nodes_of(own_workers(8, 1, 3)) == [Node(3, 1), Node(4, 2)]


SMALL: dict[str, Any] = {  # 3 steps of 14, 14 and 13 examples
    **{"virtual_workers": 5, "n": 41, "epochs": 2, "dropout": True},
    "optimizer_options": {"global_clipnorm": 0.05},
}
LONG: dict[str, dict[str, Any]] = {
    "adam, dropout, normalization, augmentation": {
        **{"virtual_workers": 8, "n": 59, "epochs": 3},
        **{"dropout": True, "batch_normalization": "own", "augment": True},
    },
    # Its gradients are too large for one round trip.
    "sgd, block order, large": {
        **{"virtual_workers": 8, "n": 61, "optimizer": "sgd", "order": "block"},
        **{"wide": [256, 300], "dropout": True},
    },
    "adamw, accumulation, clipping": {
        **{"virtual_workers": 8, "n": 67, "optimizer": "adamw"},
        "optimizer_options": {"gradient_accumulation_steps": 2, "global_clipnorm": 0.05},
    },
    "embedding, class weights": {
        **{"virtual_workers": 8, "n": 59, "embedding": True, "class_weight": True},
    },
    "mixed_float16, normalization": {
        **{"virtual_workers": 8, "n": 59, "policy": "mixed_float16", "batch_normalization": "own"},
    },
    "padding examples": {
        **{"virtual_workers": 8, "batch_size": 1, "n": 45, "dropout": True},
        "batch_normalization": "own",
    },
    "steps_per_execution": {"virtual_workers": 8, "n": 80, "steps_per_execution": 3},
    "under the scope, accumulation": {
        **{"virtual_workers": 8, "n": 59, "scope": True, "dropout": True, "embedding": True},
        **{"batch_normalization": "own", "optimizer": "adamw"},
        "optimizer_options": {"gradient_accumulation_steps": 2, "clipnorm": 0.05},
    },
    "under the scope, mixed_float16": {
        **{"virtual_workers": 8, "n": 59, "scope": True, "policy": "mixed_float16"},
        "steps_per_execution": 2,
    },
    "a train_step of its own": {"virtual_workers": 8, "n": 59, "own_step": True},
    "noise in inference": {"virtual_workers": 8, "n": 59, "noise": True, "dropout": True},
    "run_eagerly": {"virtual_workers": 8, "n": 24, "run_eagerly": True, "dropout": True},
}
AS_PLAIN_KERAS = {
    "adam, dropout, clipping": SMALL,
    "sgd": {"virtual_workers": 8, "n": 41, "epochs": 2, "optimizer": "sgd"},
    "adamw": {**SMALL, "virtual_workers": 3, "optimizer": "adamw"},
}


def _results(
    groups: Groups,
    size: int,
    specs: dict[str, Any],
    init: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """What all ranks come to."""
    group = groups(size, intra_op_threads=1, **(init or {}))
    case = "tests.cases.virtual_workers:train_all"
    first, *others = group.run(case, specs=specs, timeout_s=240, **options)
    for other in others:
        _check_same(first, other)
    return first


def _check_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name, found in first.items():
        different = [what for what in found if found[what] != second[name][what]]
        assert not different, name


def _batches(spec: dict[str, Any]) -> list[list[list[list[int]]]]:
    size = spec["virtual_workers"]
    plan = GlobalPlan(num_examples=spec["n"], size=size, batch_size=3, seed=1)
    return [
        [
            [plan.batch(epoch=e, step=step, rank=v).indices.tolist() for v in range(size)]
            for step in range(plan.steps)
        ]
        for e in range(spec["epochs"])
    ]


def _with_plain_keras(specs: dict[str, Any], directory: Path) -> dict[str, list[bytes]]:
    jobs = [(spec, _batches(spec)) for spec in specs.values()]
    log, results = directory / "log", directory / "results"
    process = fork_server.start("tests.virtual_problem:main", jobs, results, log=log)
    try:
        assert process.wait(timeout=180) == 0, log.read_text()
    finally:
        process.kill()
    return dict(zip(specs, pickle.loads(results.read_bytes()), strict=True))


def test_two_processes_train_as_plain_keras(groups: Groups, tmp_path: Path) -> None:
    path = tmp_path / "recorded"
    case = "tests.cases.virtual_workers:everyday"
    # The default group has a thread per operation on two cores, and on more cores batches are too
    # small for threads to share one.
    one, other = groups(2).run(case, spec=SMALL, path=str(path), timeout_s=120)
    assert one == other
    (plain,) = _with_plain_keras({"": SMALL}, tmp_path).values()
    assert one["weights"] == plain
    assert one["by hand"] == plain
    without = {what: found for what, found in one.items() if what not in ("by hand", "scoped")}
    assert one["scoped"] == without
    last = json.loads(path.read_text().splitlines()[-1])
    assert (last["epoch"], last["step"]) == (1, 2)
    assert len(last["batches"]) == 2 * SMALL["virtual_workers"]
    assert len(last["gradients"]) == 3
    assert len(last["variables"]) == 3 + 2 + 2 * 3


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 3, 4, 5, 8])
def test_any_number_of_processes_trains_as_one(groups: Groups, tmp_path: Path, size: int) -> None:
    files = [tmp_path / "one", tmp_path / "several"]
    one, several = (
        _results(groups, processes, LONG, fingerprints=str(path))
        for processes, path in zip((1, size), files, strict=True)
    )
    _check_same(one, several)
    assert fingerprints.compare(*files) is None


@pytest.mark.long
@pytest.mark.parametrize(
    "init",
    [
        {"hosts": (2, 1)},
        {"hosts": (1, 1, 1)},
        {"hosts": (2, 1), "between_hosts": "ring"},
        {"collective": "ring"},
    ],
    ids=str,
)
def test_no_way_between_processes_changes_the_sums(groups: Groups, init: dict[str, Any]) -> None:
    names = ("sgd, block order, large", "embedding, class weights", "padding examples")
    specs = {"small": SMALL, **{name: LONG[name] for name in names}}
    _check_same(_results(groups, 1, specs), _results(groups, 3, specs, init))


@pytest.mark.long
def test_several_optimizers_train_as_plain_keras(groups: Groups, tmp_path: Path) -> None:
    found = _results(groups, 3, AS_PLAIN_KERAS)
    plain = _with_plain_keras(AS_PLAIN_KERAS, tmp_path)
    assert {name: result["weights"] for name, result in found.items()} == plain


@pytest.mark.long
def test_restarts_on_other_numbers_of_processes(groups: Groups, tmp_path: Path) -> None:
    """All within the first epoch, of 10 steps; two of the three are killed."""
    spec = {**LONG["adam, dropout, normalization, augmentation"], "n": 235, "epochs": 2}
    case = "tests.cases.virtual_workers:go_on"
    whole = _results(groups, 1, {"whole": spec})["whole"]
    options: dict[str, Any] = {
        "spec": spec,
        "directory": str(tmp_path / "checkpoints"),
        "timeout_s": 180,
    }
    for size, steps, how in ((2, 3, "kill"), (4, 3, "stop"), (1, 2, "kill")):
        group = groups(size, intra_op_threads=1)
        expected = pytest.raises(CaseError, match="died") if how == "kill" else nullcontext()
        with expected:
            group.run(case, steps=steps, how=how, **options)
    ends = groups(3, intra_op_threads=1).run(case, **options)
    for end in ends:
        _check_same({"whole": whole}, {"whole": end})


@pytest.mark.long
def test_a_loop_goes_on_with_other_numbers_of_processes(groups: Groups, tmp_path: Path) -> None:
    (plain,) = _with_plain_keras({"": SMALL}, tmp_path).values()
    case, saved = "tests.cases.virtual_workers:loop", str(tmp_path / "saved.npz")
    groups(3, intra_op_threads=1).run(case, spec=SMALL, saved=saved, end=[0, 1])
    ends = groups(4, intra_op_threads=1).run(case, spec=SMALL, saved=saved)
    assert ends == [plain] * 4
    [(_, text), *_] = groups(2, intra_op_threads=1).outcomes(
        case, spec={**SMALL, "virtual_workers": 6}, saved=saved
    )
    assert "a state of virtual_workers=5; expected 6" in text


@pytest.mark.long
def test_what_cannot_be_the_same_is_refused(groups: Groups, tmp_path: Path) -> None:
    said = groups(2, intra_op_threads=1).run(
        "tests.cases.virtual_workers:refused", directory=str(tmp_path), timeout_s=120
    )[0]
    expected = (
        "with virtual_workers=4; the model is compiled with virtual_workers=6",
        "fit got virtual_workers=4, but the optimizer has virtual_workers=6",
        "the model isn't compiled for virtual workers",
        "BatchNormalization(synchronized=True) needs what all 4 virtual workers have",
        "train_on_batch was called of a model that is compiled with virtual_workers",
        "test_on_batch was called of a model that is compiled with virtual_workers",
        "evaluate was called by a callback of the fit that trains this model",
        "virtual_workers is 1 and there are 2 workers",
        "processor 0; rank 1: 4 virtual workers, 1 threads per operation",
        "was called in the step of a virtual worker; 2 workers run 4 of them",
        "With virtual_workers and intra_op_threads=2, a step has sparse gradients",
        "virtual_workers=4 and batch_size=2; fit got batch_size=1",
    )
    for text, found in zip(expected, said, strict=True):
        assert text in found
    default = groups(2).outcomes("tests.cases.virtual_workers:refused", directory=str(tmp_path))
    assert all("but not how many threads an operation has" in text for _, text in default)


@pytest.mark.long
def test_models_are_compiled_again(groups: Groups) -> None:
    for found in groups(2, intra_op_threads=1).run(
        "tests.cases.virtual_workers:compiled_again", spec=SMALL
    ):
        assert found["plain, virtual"] == found["virtual"]
        assert found["virtual, plain"] == found["plain"]
        assert found["plain"] != found["virtual"]


def test_trainings_without_virtual_workers_are_recorded_too(groups: Groups, tmp_path: Path) -> None:
    said = groups(2).run("tests.cases.virtual_workers:recorded", directory=str(tmp_path))
    begin = "The recordings part in epoch 0, step 1: first in variables, of which 0 dense/kernel"
    assert all(text.startswith(begin) for text in said)


def test_a_difference_names_step_and_variables(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    zeros = fingerprints.digest(np.zeros(3))
    ones = fingerprints.digest(np.ones(3))
    assert zeros != fingerprints.digest(np.zeros(3, "float32")) != ones
    bfloat16 = tf.bfloat16.as_numpy_dtype
    assert fingerprints.digest(np.zeros(3, bfloat16)) != fingerprints.digest(np.ones(3, bfloat16))
    same = {"batches": {"x": zeros}, "variables": {"a": zeros, "b": zeros}}
    other = {"variables": {"a": zeros, "b": ones}}
    first.write_text("".join(fingerprints.render((0, step), same) for step in (1, 2, 3)))
    lines = [((0, 1), same), ((0, 2), {"variables": {"a": ones, "b": ones}}), ((0, 2), other)]
    second.write_text("".join(fingerprints.render(*line) for line in lines))
    found = fingerprints.compare(first, second)
    assert found == fingerprints.Difference(epoch=0, step=2, kind="variables", names=("b",))
    assert str(found) == (
        "The recordings part in epoch 0, step 2: first in variables, of which b differs."
    )
    assert fingerprints.compare(first, first) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no JSON", "can't be read as a recording: JSONDecodeError"),
        (fingerprints.render((4, 1), {}), "have no step in common, of 1 and 1"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, text: str, message: str) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text(fingerprints.render((0, 1), {}))
    bad.write_text(text)
    with pytest.raises(DataError, match=message):
        fingerprints.compare(good, bad)
