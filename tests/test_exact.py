"""N workers end in the weights, logs and metrics of one process that knows nothing of tfddl."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.group import ROOT, Groups

BASE = {"n": 23, "n_val": 11, "loss": "scce", "optimizer": "sgd", "batch_size": 4, "epochs": 10}

# name: (workers, the problem, how many examples each rank trains on in an epoch)
CASES: dict[str, tuple[int, dict[str, Any], list[int]]] = {
    "sgd, 3 workers, nothing divides": (3, {**BASE, "seed": 5}, [8, 8, 7]),
    "everything divides": (2, {**BASE, "n": 24, "n_val": 8, "loss": "mse"}, [12, 12]),
    "adam, regularizer, AUC and precision": (
        2,
        {**BASE, "loss": "bce", "optimizer": "adam", "l2": True, "seed": 1},
        [12, 11],
    ),
    "adamw, class weights": (
        3,
        {**BASE, "optimizer": "adamw", "class_weight": True, "seed": 2},
        [8, 8, 7],
    ),
    "adam, sample weights": (
        2,
        {**BASE, "optimizer": "adam", "sample_weight": True, "seed": 3},
        [12, 11],
    ),
    "a loss divided by the sum of the weights": (
        2,
        {**BASE, "sample_weight": True, "reduction": "mean_with_sample_weight"},
        [12, 11],
    ),
    "accumulation and clipping": (
        3,
        {
            **BASE,
            "seed": 4,
            "optimizer_options": {"gradient_accumulation_steps": 3, "global_clipnorm": 0.05},
        },
        [8, 8, 7],
    ),
    "clipping by norm": (2, {**BASE, "optimizer_options": {"clipnorm": 0.03}}, [12, 11]),
    "clipping by value": (2, {**BASE, "optimizer_options": {"clipvalue": 0.02}}, [12, 11]),
    "moving averages of the weights": (
        2,
        {**BASE, "optimizer_options": {"use_ema": True, "ema_overwrite_frequency": 3}},
        [12, 11],
    ),
    "steps_per_execution": (2, {**BASE, "steps_per_execution": 2, "seed": 6}, [12, 11]),
    "run_eagerly": (2, {**BASE, "run_eagerly": True, "seed": 7}, [12, 11]),
    "block order": (3, {**BASE, "order": "block", "seed": 8}, [8, 8, 7]),
    # 7 examples are 3 + 2 + 2: in the last two steps the last rank has none, and runs one that
    # doesn't count.
    "batches of one": (3, {**BASE, "n": 7, "n_val": 4, "batch_size": 1}, [3, 3, 1]),
}
STAND_INS = {"batches of one": [[0, 1, 2], [3, 4], [5, 6]]}


@pytest.fixture(scope="module")
def workers(groups: Groups) -> dict[str, list[dict[str, Any]]]:
    """What every rank of every case arrived at."""
    return {
        name: groups(size).run("tests.cases.training:train", spec=spec)
        for name, (size, spec, _) in sorted(CASES.items(), key=lambda item: item[1][0])
    }


@pytest.fixture(scope="module")
def one_process(
    workers: dict[str, list[dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What one process arrives at, on the union of the examples that the ranks had in each step."""
    output = tmp_path_factory.mktemp("one") / "results"
    jobs = [(CASES[name][1], _batches(name, ranks)) for name, ranks in workers.items()]
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.one_process", str(output)],
        input=pickle.dumps(jobs),
        cwd=ROOT,
        check=True,
        timeout=180,
    )
    return dict(zip(workers, pickle.loads(Path(output).read_bytes()), strict=True))


def _batches(name: str, ranks: list[dict[str, Any]]) -> list[list[list[int]]]:
    epochs = CASES[name][1]["epochs"]
    if name in STAND_INS:
        return [STAND_INS[name]] * epochs
    steps = [
        [example for rank in shares for example in rank]
        for shares in zip(*(rank["seen"] for rank in ranks), strict=True)
    ]
    per_epoch = len(steps) // epochs
    return [steps[i : i + per_epoch] for i in range(0, len(steps), per_epoch)]


@pytest.mark.parametrize("name", CASES)
def test_every_example_is_trained_on_once(
    workers: dict[str, list[dict[str, Any]]], name: str
) -> None:
    size, spec, processed = CASES[name]
    ranks = workers[name]
    assert len(ranks) == size
    for batches in _batches(name, ranks):
        assert sorted(i for batch in batches for i in batch) == list(range(spec["n"]))
    stand_ins = 2 if name in STAND_INS else 0
    for rank, (found, expected) in enumerate(zip(ranks, processed, strict=True)):
        run = sum(len(batch) for batch in found["seen"])
        not_counting = stand_ins * spec["epochs"] if rank == size - 1 else 0
        assert run - not_counting == expected * spec["epochs"]


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_of_one_process(
    workers: dict[str, list[dict[str, Any]]],
    one_process: dict[str, dict[str, Any]],
    name: str,
) -> None:
    one = one_process[name]
    steps = len(workers[name][0]["seen"])
    assert steps >= 20
    for rank in workers[name]:
        assert rank["weights"].keys() == one["weights"].keys()
        for path, expected in one["weights"].items():
            difference = np.abs(rank["weights"][path] - expected).max() / np.abs(expected).max()
            assert difference <= 1e-5, path
        assert rank["iterations"] == one["iterations"]
    first = workers[name][0]["weights"]
    for rank in workers[name][1:]:
        for path, value in first.items():
            assert value.tobytes() == rank["weights"][path].tobytes(), "ranks differ"


@pytest.mark.parametrize("name", [name for name in CASES if "divided by" not in name])
def test_logs_are_those_of_one_process(
    workers: dict[str, list[dict[str, Any]]],
    one_process: dict[str, dict[str, Any]],
    name: str,
) -> None:
    expected = one_process[name]["history"]
    for rank in workers[name]:
        assert rank["history"].keys() == expected.keys()
        assert rank["history"] == workers[name][0]["history"], "ranks log different things"
        for key, values in expected.items():
            np.testing.assert_allclose(rank["history"][key], values, rtol=1e-5, err_msg=key)
