"""`compile(jit_compile=True)` with several workers: XLA compiles what is between the exchanges."""

import numpy as np
import pytest

from tests.group import Groups

CASES = "tests.cases.compiled_step"
OWN = "Own.train_step is its own, with the exchange of gradients within"
WITHIN = "the model or its loss has some within"

# kind: how many parts XLA compiles; whether matrices are multiplied outside of them; how often a
# step is traced: once, and before that until metrics have their variables; the warning
KINDS = {
    "normalization": (3, False, 3, ""),
    "mixed_float16": (3, False, 3, ""),
    "accumulation": (2, False, 3, ""),
    "no metrics": (2, False, 2, ""),
    "scope": (3, False, 1, ""),
    "super": (3, False, 3, ""),
    "own": (1, True, 2, OWN),
    "synchronized normalization": (1, True, 4, WITHIN),
}


@pytest.mark.parametrize(
    "kind",
    [k if k in ("super", "own") else pytest.param(k, marks=pytest.mark.long) for k in KINDS],
)
def test_it_trains_as_uncompiled(groups: Groups, kind: str) -> None:
    parts, multiplies, traced, warning = KINDS[kind]
    ranks = groups(2).run(f"{CASES}:compiled_and_not", kind=kind)
    for rank, found in enumerate(ranks):
        plain, compiled = found["plain"], found["compiled"]
        assert plain["parts"] == (0, True)
        assert compiled["parts"] == (parts, multiplies)
        assert compiled["traced"] == traced
        assert compiled["iterations"] == plain["iterations"]
        tolerance = 2e-3 if kind == "mixed_float16" else 1e-5
        for expected, weight in zip(plain["weights"], compiled["weights"], strict=True):
            np.testing.assert_allclose(weight, expected, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(compiled["predicted"], plain["predicted"], tolerance, tolerance)
        assert compiled["logs"].keys() == plain["logs"].keys()
        for name, expected in plain["logs"].items():
            np.testing.assert_allclose(compiled["logs"][name], expected, rtol=tolerance)
        assert plain["warned"] == []
        if rank or not warning:
            assert compiled["warned"] == []
        else:
            [text] = compiled["warned"]
            assert warning in text
            assert "HINT: " in text
    first = ranks[0]["compiled"]
    for found in ranks[1:]:
        for a, b in zip(first["weights"], found["compiled"]["weights"], strict=True):
            assert a.tobytes() == b.tobytes(), "ranks differ"
        assert found["compiled"]["logs"] == first["logs"]


def test_a_process_set_compiles(groups: Groups) -> None:
    for plain, compiled in groups(2).run(f"{CASES}:process_set"):
        for expected, weight in zip(plain, compiled, strict=True):
            np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-6)


def test_on_different_processors_updates_are_not_compiled(groups: Groups) -> None:
    for rank, found in enumerate(groups(2).run(f"{CASES}:other_processors")):
        assert found["parts"] == (2, False)
        assert len(found["warned"]) == (rank == 0)
        for text in found["warned"]:
            assert "processors of different kinds (kind 0; kind 1), on which XLA rounds" in text


def test_auto_is_what_keras_makes_of_it(groups: Groups) -> None:
    for found in groups(2).run(f"{CASES}:automatic"):
        assert found == {
            "CPU": False,
            "plain": (True, []),
            "own": (True, []),
            "synchronized normalization": (True, []),
        }


def test_refusals(groups: Groups) -> None:
    for found in groups(2, intra_op_threads=1).run(f"{CASES}:refused"):
        for what in ("virtual", "virtual, set later"):
            error, message = found[what]
            assert error == "UnsupportedError"
            assert "jit_compile=True can't be combined with virtual_workers" in message
        error, message = found["some"]
        assert error == "DisagreementError"
        assert "jit_compile: rank 0: True; rank 1: False" in message
