"""Gradients averaged outside of plain `fit`: the tape, loops by hand, sparse, float16."""

import re
from typing import Any

import numpy as np
import pytest

from tests.cases.gradients import X, Y
from tests.group import ROOT, Groups, default_collective

CASES = "tests.cases.gradients"
KERNEL = np.array([[0.5], [0.5]])
CUTS = {2: [0, 7, 10], 3: [0, 5, 8, 10]}


def _gradient(kernel: Any, start: int, stop: int) -> Any:
    """Of the mean square error over some of the examples, by hand."""
    x, y = X[start:stop].astype("float64"), Y[start:stop].astype("float64")
    return 2 * x.T @ (x @ kernel - y) / len(x)


def _means(kernel: Any, size: int) -> Any:
    cuts = CUTS[size]
    return np.stack([_gradient(kernel, cuts[r], cuts[r + 1]) for r in range(size)])


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    ("counted", "options", "rounding"),
    [
        (True, {}, 1e-5),
        (False, {}, 1e-5),
        (True, {"compression": "fp16"}, 2e-3),
        (False, {"compression": "bf16"}, 2e-2),
        (True, {"op": "sum"}, 1e-5),
        # Counts and weights are no less exact than the gradients.
        (True, {"dtype": "float64"}, 1e-14),
        (False, {"dtype": "float64"}, 1e-14),
    ],
)
def test_tape(
    groups: Groups, size: int, counted: bool, options: dict[str, Any], rounding: float
) -> None:
    means = _means(KERNEL, size)
    if options.get("op") == "sum":
        expected = means.sum(0)
    else:
        expected = _gradient(KERNEL, 0, 10) if counted else means.mean(0)
    for found in groups(size).run(f"{CASES}:tape", counted=counted, **options):
        for way, gradient in found.items():
            np.testing.assert_allclose(gradient, expected, rtol=rounding, err_msg=way)


SMALL, LARGE = 200_000, 300_000
"""Numbers of float32 that travel with the header of the step, and that don't."""


@pytest.mark.parametrize(("length", "operations"), [(SMALL, 1), (LARGE, 2)])
def test_the_way_of_a_gradient(groups: Groups, length: int, operations: int) -> None:
    """It is short, the documentation has all of it, and small gradients go it once per step."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.split("## Path of a gradient\n")[1].split("\n## ")[0]
    documented = re.findall(r"^\d+\. `([^`]*)`", section, re.MULTILINE)
    assert len(documented) <= 12
    for found in groups(2).run(f"{CASES}:way", length=length):
        assert found["operations"] == operations
        # Three steps along the mean gradient, (1 * 1 + 2 * 2) / 3.
        assert found["weight"] == pytest.approx(-5.0)
        if default_collective() == "auto":  # The documented path is that of shared memory.
            assert found["files"] == sorted(documented)


@pytest.mark.parametrize("counted", [True, False])
def test_a_loop_by_hand_averages(groups: Groups, counted: bool) -> None:
    kernel = KERNEL
    for _ in range(3):
        mean = _gradient(kernel, 0, 10) if counted else _means(kernel, 2).mean(0)
        kernel = kernel - 0.1 * mean
    for found in groups(2).run(f"{CASES}:apply_gradients", counted=counted):
        for way, value in found.items():
            np.testing.assert_allclose(value, kernel, rtol=1e-5, err_msg=way)


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.long)])
@pytest.mark.parametrize("as_dense", [True, False])
def test_sparse_gradients(groups: Groups, size: int, as_dense: bool) -> None:
    ranks = groups(size).run(f"{CASES}:sparse", as_dense=as_dense)
    ids = [i for rank in ranks for i in rank["ids"]]
    table = np.arange(10.0).reshape(5, 2)
    expected = np.zeros((5, 2))
    for i in ids:
        expected[i] += 2 * table[i] / len(ids)
    for rank in ranks:
        assert set(rank["kinds"]) == {"EagerTensor" if as_dense else "IndexedSlices"}
        for value in rank["values"]:
            np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_an_embedding_trains_alike_on_all_ranks(groups: Groups) -> None:
    first, *others = groups(3).run(f"{CASES}:embedding_fit")
    for other in others:
        assert [w.tobytes() for w in other] == [w.tobytes() for w in first]


@pytest.mark.parametrize(
    ("nesting", "scale", "iterations"),
    [
        # The default scale is 2**15; a step that overflows halves it and isn't counted.
        ("compile", 2**14, 5),
        ("inside", 512, 5),
        ("outside", 512, 5),
        ("compile accumulating", 2**14, 2),
        ("inside accumulating", 512, 2),
        ("outside accumulating", 512, 2),
    ],
)
def test_one_rank_s_overflow_skips_the_step_on_all(
    groups: Groups, nesting: str, scale: float, iterations: int
) -> None:
    ranks = groups(2).run(f"{CASES}:not_finite", nesting=nesting)
    for rank in ranks:
        assert rank["scale"] == scale
        assert rank["iterations"] == iterations
        assert all(np.isfinite(w).all() for w in rank["weights"])
        for mine, first in zip(rank["weights"], ranks[0]["weights"], strict=True):
            assert mine.tobytes() == first.tobytes()
