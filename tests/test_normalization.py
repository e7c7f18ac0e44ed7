"""BatchNormalization(synchronized=True): the batch that normalizes is that of all workers.

`tests/test_exact.py` trains with it; here is the layer by itself.
"""

import numpy as np
import pytest

from tests.group import Groups

CASES = "tests.cases.normalization"


@pytest.mark.parametrize(
    ("size", "kind", "rounding"),
    [
        (3, "images", 1e-10),
        (3, "a rank without examples", 1e-10),
        (2, "channels first", 1e-10),
        # With a mask, Keras adds 1e-7 to the number of elements.
        (2, "masked", 1e-6),
        (3, "masked, channels first", 1e-6),
        (2, "renorm", 1e-10),
        (2, "float32", 1e-5),
        (2, "float16", 1e-2),
    ],
)
def test_outputs_gradients_and_state_are_those_of_one_process(
    groups: Groups, size: int, kind: str, rounding: float
) -> None:
    if kind == "renorm" and not all(groups(size).run(f"{CASES}:knows_renorm")):
        pytest.skip("this Keras' BatchNormalization has no renorm")
    for found in groups(size).run(f"{CASES}:layer_alone", kind=kind):
        assert len(found) >= 20
        assert {key: value for key, value in found.items() if not value <= rounding} == {}


def test_far_from_zero_nothing_cancels(groups: Groups) -> None:
    for mean, variance, true_mean, true_variance in groups(3).run(f"{CASES}:far_from_zero"):
        np.testing.assert_allclose(mean, true_mean, rtol=1e-7)
        np.testing.assert_allclose(variance, true_variance, rtol=1e-4)


def test_under_the_strategy_as_well(groups: Groups) -> None:
    for found in groups(2).run(f"{CASES}:under_strategy"):
        assert {key: value for key, value in found.items() if not value <= 1e-10} == {}


def test_what_a_layer_costs(groups: Groups) -> None:
    for found in groups(2, collective="auto").run(f"{CASES}:collectives"):
        assert found == {
            "forward": ["PyFunc 13"],  # Through shared memory.
            "both": ["PyFunc 13", "PyFunc 12"],
            "not training": [],
        }


def test_inference_asks_nobody(groups: Groups) -> None:
    assert groups(2).run(f"{CASES}:alone") == [True, True]


def test_a_gradient_of_the_gradient_is_refused(groups: Groups) -> None:
    for text in groups(2).run(f"{CASES}:gradient_of_gradient"):
        assert "synchronized=True) can't be differentiated once more" in text


@pytest.mark.parametrize("op", ["average", "sum"])
def test_stand_ins_are_not_in_the_moments(groups: Groups, op: str) -> None:
    for found, expected in groups(3).run(f"{CASES}:stand_ins", op=op):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
