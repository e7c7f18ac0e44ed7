"""Whatever is drawn: N workers compute what one process does.

The numbers of examples and workers, batches, optimizers, losses, weights and the like are drawn
together; each draw is a fixed one, by its number. All draws of a group of workers run in it one
after the other, and then in one process.
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.group import Groups
from tests.one_process import in_one_process

STEPS = 20
TOLERANCES = {"float32": 1e-5, "float64": 1e-12}
NEAR_ZERO = 0.01
"""What is smaller, and began at 0, is what larger numbers have left of each other."""


def draw(number: int, size: int) -> dict[str, Any]:
    """A problem; not all that can be drawn goes together."""
    rng = random.Random(f"{number} {size}")
    loss = rng.choice(["mse", "bce", "scce"])
    weights = rng.choice([None, "sample", "class" if loss == "scce" else "sample"])
    batch_size = rng.randint(2 if weights == "class" else 1, 9)
    n = rng.randint(max(size, 4), 100)
    steps = -(-n // (size * batch_size))
    options: dict[str, Any] = {}
    if rng.random() < 0.3:
        options["gradient_accumulation_steps"] = rng.randint(2, 3)
    if rng.random() < 0.3:
        options[rng.choice(["global_clipnorm", "clipvalue", "clipnorm"])] = 0.05
    spec: dict[str, Any] = {
        "n": n,
        "n_val": rng.randint(size, 20),
        "loss": loss,
        "optimizer": rng.choice(["sgd", "adam", "adamw"]),
        "optimizer_options": options,
        # Of SGD: larger steps multiply each rounding on the slopes of a square.
        "learning_rate": 0.01 if loss == "mse" else 0.1,
        "batch_size": batch_size,
        "epochs": -(-STEPS // steps),
        "seed": number,
        "order": rng.choice(["global", "global", "block"]),
        "l2": rng.random() < 0.4,
        "sample_weight": weights == "sample",
        "class_weight": weights == "class",
        "embedding": rng.random() < 0.4,
        "under_scope": rng.random() < 0.5,
        "steps_per_execution": rng.choice([1, 1, 3]),
        "dtype": rng.choice(["float32", "float64"]),
    }
    if weights == "sample" and rng.random() < 0.5:
        spec["reduction"] = "mean_with_sample_weight"
        spec["n_val"] = 0  # There validation is that of each worker's own batches.
    return spec


@pytest.mark.parametrize(
    ("size", "numbers"),
    [
        (2, range(1)),
        pytest.param(3, range(4), marks=pytest.mark.long),
        pytest.param(1, range(4), marks=pytest.mark.long),
        pytest.param(2, range(1, 20), marks=pytest.mark.long),
        pytest.param(3, range(4, 20), marks=pytest.mark.long),
        pytest.param(4, range(8), marks=pytest.mark.long),
    ],
    ids=str,
)
def test_whatever_is_drawn(groups: Groups, tmp_path: Path, size: int, numbers: range) -> None:
    specs = [draw(number, size) for number in numbers]
    found = [groups(size).run("tests.cases.training:train", spec=spec) for spec in specs]
    jobs = [(spec, _batches(spec, ranks)) for spec, ranks in zip(specs, found, strict=True)]
    for spec, ranks, one in zip(specs, found, in_one_process(jobs, tmp_path), strict=True):
        tolerance = TOLERANCES[spec["dtype"]]
        if spec["under_scope"] and size == 3:
            # Keras divides the loss by the number of workers in float32.
            tolerance = max(tolerance, 1e-7)
        for rank in ranks:
            assert rank["iterations"] == one["iterations"], spec
            for path, expected in one["weights"].items():
                difference = np.abs(rank["weights"][path] - expected).max()
                largest = max(NEAR_ZERO, np.abs(expected).max())
                assert difference <= tolerance * largest, (path, spec)
            assert rank["history"] == ranks[0]["history"], spec
            for key, values in one["history"].items():
                # Keras logs in float32.
                np.testing.assert_allclose(rank["history"][key], values, rtol=1e-5, err_msg=key)


def test_the_sign_of_a_momentum(groups: Groups, tmp_path: Path) -> None:
    """Lion makes whole steps of a sign: a fixed problem, in which none is nearly zero."""
    spec = {**draw(1, 2), "optimizer": "lion", "optimizer_options": {}, "dtype": "float64"}
    ranks = groups(2).run("tests.cases.training:train", spec=spec)
    [one] = in_one_process([(spec, _batches(spec, ranks))], tmp_path)
    for path, expected in one["weights"].items():
        assert np.abs(ranks[1]["weights"][path] - expected).max() <= 1e-12 * np.abs(expected).max()


def _batches(spec: dict[str, Any], ranks: list[dict[str, Any]]) -> list[list[list[int]]]:
    """The examples of each step, in epochs."""
    steps = [
        [example for rank in shares for example in rank]
        for shares in zip(*(rank["seen"] for rank in ranks), strict=True)
    ]
    per_epoch = len(steps) // spec["epochs"]
    epochs = [steps[i : i + per_epoch] for i in range(0, len(steps), per_epoch)]
    for epoch in epochs:
        seen = [example for step in epoch for example in step]
        assert len(seen) == spec["n"], "a step without an example for a rank: draw another number"
    return epochs
