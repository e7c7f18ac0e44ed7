"""N workers end in the weights, logs and metrics of one process that knows nothing of tfddl."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.group import Groups
from tests.one_process import in_one_process

BASE = {"n": 47, "n_val": 11, "loss": "scce", "optimizer": "sgd", "batch_size": 4}
TWO = {**BASE, "epochs": 4}  # 6 steps of 8 or 7 examples
SCOPE = {"under_scope": True}  # A plain optimizer, compiled under tfddl.strategy().scope().
THREE = {**BASE, "epochs": 5}  # 4 steps of 12 or 11 examples

# name: (workers, the problem, how many examples each rank trains on in an epoch)
CASES: dict[str, tuple[int, dict[str, Any], list[int]]] = {
    "long: sgd, 3 workers, nothing divides": (3, {**THREE, "seed": 5}, [16, 16, 15]),
    "adam, regularizer, AUC and precision": (
        2,
        {**TWO, "loss": "bce", "optimizer": "adam", "l2": True, "seed": 1},
        [24, 23],
    ),
    "adamw, class weights, steps_per_execution": (
        2,
        {**TWO, "optimizer": "adamw", "class_weight": True, "steps_per_execution": 4, "seed": 2},
        [24, 23],
    ),
    "accumulation, clipping by global norm": (
        3,
        {
            **THREE,
            "seed": 4,
            "optimizer_options": {"gradient_accumulation_steps": 3, "global_clipnorm": 0.05},
        },
        [16, 16, 15],
    ),
    "sample weights, clipping by value, moving averages of the weights": (
        2,
        {
            **TWO,
            "loss": "mse",
            "sample_weight": True,
            "seed": 3,
            "optimizer_options": {
                "clipvalue": 0.02,
                "use_ema": True,
                "ema_overwrite_frequency": 3,
            },
        },
        [24, 23],
    ),
    "run_eagerly": (2, {**TWO, "run_eagerly": True, "seed": 7}, [24, 23]),
    "block order": (3, {**THREE, "order": "block", "seed": 8}, [16, 16, 15]),
    # 7 examples are 3 + 2 + 2: in the last two steps the last rank has none, and runs one that
    # doesn't count.
    "batches of one": (3, {**BASE, "n": 7, "n_val": 4, "batch_size": 1, "epochs": 7}, [3, 3, 1]),
    "long: adamw, class weights": (
        3,
        {**THREE, "optimizer": "adamw", "class_weight": True, "seed": 2},
        [16, 16, 15],
    ),
    "long: adam, sample weights": (
        2,
        {**TWO, "optimizer": "adam", "sample_weight": True, "seed": 3},
        [24, 23],
    ),
    "long: clipping by value, moving averages of the weights": (
        2,
        {
            **TWO,
            "loss": "mse",
            "optimizer_options": {
                "clipvalue": 0.02,
                "use_ema": True,
                "ema_overwrite_frequency": 3,
            },
        },
        [24, 23],
    ),
    "batch normalization, adam": (
        2,
        {**TWO, "batch_normalization": "conv", "optimizer": "adam", "seed": 10},
        [24, 23],
    ),
    # Clipped, because batches of two or three examples multiply every rounding.
    "long: batch normalization, batches of one": (
        3,
        {
            **BASE,
            "batch_normalization": "dense",
            "n": 7,
            "n_val": 4,
            "batch_size": 1,
            "epochs": 7,
            "optimizer_options": {"global_clipnorm": 0.05},
        },
        [3, 3, 1],
    ),
    # In some steps all of a rank's examples have a weight of zero, but are in the moments.
    "long: batch normalization, a loss divided by the sum of the weights": (
        2,
        {
            **TWO,
            "batch_normalization": "dense",
            "sample_weight": "some zero",
            "reduction": "mean_with_sample_weight",
            "batch_size": 2,
            "epochs": 2,
            "l2": True,
        },
        [24, 23],
    ),
    "long: batch normalization, run_eagerly": (
        2,
        {**TWO, "batch_normalization": "conv", "run_eagerly": True, "seed": 12},
        [24, 23],
    ),
    "long: batch normalization, steps_per_execution, 3 workers": (
        3,
        {**THREE, "batch_normalization": "conv", "steps_per_execution": 3, "optimizer": "adam"},
        [16, 16, 15],
    ),
    "long: batch normalization, accumulation, clipping by global norm": (
        3,
        {
            **THREE,
            "batch_normalization": "conv",
            "seed": 4,
            "optimizer_options": {"gradient_accumulation_steps": 3, "global_clipnorm": 0.05},
        },
        [16, 16, 15],
    ),
    "long: scope: batch normalization, adam": (
        2,
        {**TWO, **SCOPE, "batch_normalization": "conv", "optimizer": "adam", "seed": 10},
        [24, 23],
    ),
    "scope: adam, regularizer, AUC, steps_per_execution": (
        2,
        {**TWO, **SCOPE, "loss": "bce", "optimizer": "adam", "l2": True, "steps_per_execution": 4},
        [24, 23],
    ),
    "scope: accumulation, clipping by global norm": (
        3,
        {
            **THREE,
            **SCOPE,
            "seed": 4,
            "optimizer_options": {"gradient_accumulation_steps": 3, "global_clipnorm": 0.05},
        },
        [16, 16, 15],
    ),
    "scope: dice of the global batch": (
        3,
        {**THREE, **SCOPE, "loss": "dice", "l2": True, "n_val": 0, "seed": 10},
        [16, 16, 15],
    ),
    "long: scope, adamw, class weights": (
        3,
        {**THREE, **SCOPE, "optimizer": "adamw", "class_weight": True, "seed": 2},
        [16, 16, 15],
    ),
    "long: scope, a loss divided by the sum of the weights": (
        2,
        {**TWO, **SCOPE, "sample_weight": True, "reduction": "mean_with_sample_weight"},
        [24, 23],
    ),
    "long: scope, moving averages of the weights, eagerly": (
        2,
        {
            **TWO,
            **SCOPE,
            "run_eagerly": True,
            "optimizer_options": {"use_ema": True, "ema_overwrite_frequency": 3},
        },
        [24, 23],
    ),
    "long: scope, block order": (3, {**THREE, **SCOPE, "order": "block"}, [16, 16, 15]),
    "long: scope, batches of one": (
        3,
        {**BASE, **SCOPE, "n": 7, "n_val": 4, "batch_size": 1, "epochs": 7},
        [3, 3, 1],
    ),
    "long: steps_per_execution": (2, {**TWO, "steps_per_execution": 4, "seed": 6}, [24, 23]),
    "long: compiled: adam, AUC and precision, regularizer, steps_per_execution": (
        2,
        {
            **TWO,
            "jit_compile": True,
            "loss": "bce",
            "optimizer": "adam",
            "l2": True,
            "seed": 1,
            "steps_per_execution": 4,
        },
        [24, 23],
    ),
    "compiled: embedding, a loss divided by the sum of the weights, clipping": (
        3,
        {
            **THREE,
            "jit_compile": True,
            "embedding": True,
            "sample_weight": True,
            "reduction": "mean_with_sample_weight",
            "optimizer_options": {"global_clipnorm": 0.05, "use_ema": True},
        },
        [16, 16, 15],
    ),
    "compiled: batches of one, accumulation": (
        3,
        {
            **BASE,
            "jit_compile": True,
            "n": 7,
            "n_val": 4,
            "batch_size": 1,
            "epochs": 7,
            "optimizer_options": {"gradient_accumulation_steps": 3},
        },
        [3, 3, 1],
    ),
    # The forward pass has an exchange within, and isn't compiled.
    "long: compiled: batch normalization, adam": (
        2,
        {**TWO, "jit_compile": True, "batch_normalization": "conv", "optimizer": "adam"},
        [24, 23],
    ),
    "long: compiled: one worker": (1, {**TWO, "n": 24, "epochs": 4, "jit_compile": True}, [24]),
    "long: everything divides": (2, {**TWO, "n": 48, "n_val": 8, "loss": "mse"}, [24, 24]),
    "a loss divided by the sum of the weights, regularizer": (
        2,
        {**TWO, "sample_weight": True, "reduction": "mean_with_sample_weight", "l2": True},
        [24, 23],
    ),
    # Validation is per worker with this loss.
    "long: dice of the global batch, regularizer": (
        3,
        {**THREE, "loss": "dice", "l2": True, "n_val": 0, "seed": 10},
        [16, 16, 15],
    ),
    "long: dice of the global batch, adam, accumulation": (
        2,
        {
            **TWO,
            "loss": "dice",
            "n_val": 0,
            "optimizer": "adam",
            "optimizer_options": {"gradient_accumulation_steps": 2},
            "steps_per_execution": 2,
        },
        [24, 23],
    ),
    "dice of the global batch, batches of one, gradients added up": (
        3,
        {
            **BASE,
            "n": 7,
            "n_val": 0,
            "batch_size": 1,
            "epochs": 7,
            "loss": "dice",
            "distributed_options": {"op": "sum"},
        },
        [3, 3, 1],
    ),
    "long: clipping by norm": (2, {**TWO, "optimizer_options": {"clipnorm": 0.03}}, [24, 23]),
    "long: four workers": (
        4,
        {**BASE, "epochs": 7, "optimizer": "adam", "seed": 9},
        [12, 12, 12, 11],
    ),
}
STAND_INS = {name: [[0, 1, 2], [3, 4], [5, 6]] for name in CASES if "batches of one" in name}
LONG = [name for name in CASES if name.startswith("long")]
NAMES = [
    *[name for name in CASES if name not in LONG],
    *[pytest.param(name, marks=pytest.mark.long) for name in LONG],
]


class Runs:
    """What the workers, and then one process, arrive at; a case runs when it is first asked for."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._workers: dict[str, list[dict[str, Any]]] = {}
        self._one: dict[str, dict[str, Any]] = {}

    def workers(self, name: str) -> list[dict[str, Any]]:
        """Of every rank."""
        if name not in self._workers:
            size, spec, _ = CASES[name]
            self._workers[name] = self._groups(size).run("tests.cases.training:train", spec=spec)
        return self._workers[name]

    def one_process(self, name: str, directory: Path) -> dict[str, Any]:
        """Of one process, on the union of the examples that the ranks had in each step."""
        if name not in self._one:
            todo = [known for known in self._workers if known not in self._one]
            jobs = [(CASES[known][1], _batches(known, self._workers[known])) for known in todo]
            results = in_one_process(jobs, directory)
            self._one.update(zip(todo, results, strict=True))
        return self._one[name]


@pytest.fixture(scope="module")
def runs(groups: Groups) -> Runs:
    return Runs(groups)


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


@pytest.mark.parametrize("name", NAMES)
def test_every_example_is_trained_on_once(runs: Runs, name: str) -> None:
    size, spec, processed = CASES[name]
    ranks = runs.workers(name)
    assert len(ranks) == size
    for batches in _batches(name, ranks):
        assert sorted(i for batch in batches for i in batch) == list(range(spec["n"]))
    stand_ins = 2 if name in STAND_INS else 0
    for rank, (found, expected) in enumerate(zip(ranks, processed, strict=True)):
        run = sum(len(batch) for batch in found["seen"])
        not_counting = stand_ins * spec["epochs"] if rank == size - 1 else 0
        assert run - not_counting == expected * spec["epochs"]


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_those_of_one_process(runs: Runs, name: str, tmp_path: Path) -> None:
    workers = runs.workers(name)
    one = runs.one_process(name, tmp_path)
    steps = len(workers[0]["seen"])
    assert steps >= 20
    for rank in workers:
        assert rank["weights"].keys() == one["weights"].keys()
        for path, expected in one["weights"].items():
            difference = np.abs(rank["weights"][path] - expected).max() / np.abs(expected).max()
            assert difference <= 1e-5, path
        assert rank["iterations"] == one["iterations"]
    first = workers[0]["weights"]
    for rank in workers[1:]:
        for path, value in first.items():
            assert value.tobytes() == rank["weights"][path].tobytes(), "ranks differ"


@pytest.mark.parametrize("name", NAMES)
def test_logs_are_those_of_one_process(runs: Runs, name: str, tmp_path: Path) -> None:
    workers = runs.workers(name)
    expected = runs.one_process(name, tmp_path)["history"]
    for rank in workers:
        assert rank["history"].keys() == expected.keys()
        assert rank["history"] == workers[0]["history"], "ranks log different things"
        for key, values in expected.items():
            np.testing.assert_allclose(rank["history"][key], values, rtol=1e-5, err_msg=key)
