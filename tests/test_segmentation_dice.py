"""The Dice coefficient, by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.group import Groups
from tfddl.segmentation.dice import (
    dice,
    dice_coefficient,
    dice_crossentropy,
    dice_loss,
    exact_dice_loss,
)


def _images(*masks: list[int]) -> NDArray[np.float32]:
    """A batch of images of one row each."""
    return np.array(masks, np.float32)[:, None, :, None]


@pytest.mark.parametrize(
    ("true", "predicted", "expected"),
    [
        ([1, 1, 0, 0], [1, 1, 0, 0], 1.0),
        ([1, 1, 0, 0], [0, 0, 1, 1], 0.0),
        ([1, 1, 0, 0], [1, 0, 0, 0], 2 / 3),
        ([1, 1, 0, 0], [1, 1, 1, 1], 4 / 6),
        ([1, 1, 1, 0], [0, 1, 1, 1], 4 / 6),
        ([0, 0, 0, 0], [0, 0, 0, 0], 1.0),  # nothing there, nothing found
        ([0, 0, 0, 0], [0, 0, 0, 1], 0.0),
    ],
)
def test_dice_of_masks(true: list[int], predicted: list[int], expected: float) -> None:
    assert np.asarray(dice(_images(true), _images(predicted))) == pytest.approx(
        [expected], abs=1e-6
    )


def test_dice_counts_probabilities_from_one_half() -> None:
    predicted = np.array([[0.5, 0.49, 0.9, 0.1]], np.float32)[:, None, :, None]
    assert np.asarray(dice(_images([1, 0, 1, 0]), predicted)) == pytest.approx([1.0])


def test_dice_is_the_mean_over_examples_and_takes_bytes() -> None:
    true = _images([1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0])
    predicted = _images([1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0])
    assert np.asarray(dice(true.astype(np.uint8), predicted)) == pytest.approx(
        [1, 0.5, 0], abs=1e-6
    )


def test_dice_coefficient_is_of_the_whole_batch_and_smooth() -> None:
    true, predicted = _images([1, 1, 0, 0], [0, 0, 0, 0]), _images([1, 0, 0, 0], [0, 0, 1, 0])
    # 1 shared of 2 + 2.
    assert float(dice_coefficient(true, predicted)) == pytest.approx((2 + 1) / (4 + 1))
    assert float(dice_coefficient(true, predicted, smooth=0.0)) == pytest.approx(2 / 4)
    assert float(dice_loss(true, predicted)) == pytest.approx(-3 / 5)
    assert float(dice_coefficient(0 * true, 0 * true)) == 1.0


def test_dice_crossentropy_is_one_loss_per_image() -> None:
    true = _images([1, 1, 0, 0], [1, 0, 0, 0])
    predicted = np.array([[0.5, 0.5, 0.5, 0.5], [0.8, 0.2, 0.2, 0.2]], np.float32)[:, None, :, None]
    expected = [
        1 - (2 * 1 + 1) / (2 + 2 + 1) + np.log(2),
        1 - (2 * 0.8 + 1) / (1 + 1.4 + 1) - np.log(0.8),
    ]
    assert np.asarray(dice_crossentropy(true, predicted)) == pytest.approx(expected, rel=1e-5)


def test_the_loss_decomposes_over_shards_and_the_batch_dice_does_not() -> None:
    rng = np.random.default_rng(0)
    true = (rng.random((6, 4, 4, 1)) < rng.random((6, 1, 1, 1))).astype(np.float32)
    predicted = rng.random((6, 4, 4, 1)).astype(np.float32)
    whole = np.asarray(dice_crossentropy(true, predicted))
    parts = [np.asarray(dice_crossentropy(true[i:j], predicted[i:j])) for i, j in ((0, 4), (4, 6))]
    np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-6)

    halves = [float(dice_coefficient(true[i:j], predicted[i:j])) for i, j in ((0, 3), (3, 6))]
    assert abs(np.mean(halves) - float(dice_coefficient(true, predicted))) > 1e-3


def test_exact_dice_of_one_process_is_that_of_its_batch() -> None:
    rng = np.random.default_rng(1)
    true, predicted = rng.integers(0, 2, (3, 4, 4, 1)), rng.random((3, 4, 4, 1))
    assert float(exact_dice_loss(true, predicted)) == float(dice_loss(true, predicted))


def test_exact_dice_by_hand(groups: Groups) -> None:
    """The last rank's image doesn't count; the others have 3 and 1."""
    ranks = groups(3).run("tests.cases.segmentation:exact_dice_by_hand")
    true = np.array([[1, 0], [1, 1], [0, 1], [0, 0]], np.float32)
    weights = np.array([0.2, 0.6], np.float32)
    shared, covered = float((true * weights).sum()), float(true.sum() + 4 * weights.sum())
    dice_of_all = (2 * shared + 1) / (covered + 1)
    gradient = -(2 * true.sum(0) - 4 * dice_of_all) / (covered + 1)
    for loss, found in (way for of_rank in ranks for way in of_rank):
        assert loss == pytest.approx(-dice_of_all, rel=1e-6)
        assert found == pytest.approx(gradient, rel=1e-5)


def test_exact_dice_validates_by_worker(groups: Groups) -> None:
    """With 2, 1 and 1 steps: nobody waits."""
    ranks = groups(3).run("tests.cases.segmentation:exact_dice_validates")
    true = [[1, 0], [1, 1], [0, 1], [0, 0], [1, 0], [1, 1], [0, 1]]
    of_batches = []
    for start, stop in ((0, 2), (2, 3), (3, 5), (5, 7)):
        batch = np.array(true[start:stop], np.float32)
        of_batches += [float(dice_loss(batch, np.full_like(batch, 0.5)))] * len(batch)
    for found in ranks:
        assert found == pytest.approx(np.mean(of_batches), rel=1e-6)
