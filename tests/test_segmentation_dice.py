"""The Dice coefficient, by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tfddl.segmentation.dice import dice, dice_coefficient, dice_crossentropy, dice_loss


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


def test_the_loss_decomposes_over_shares_and_the_batch_dice_does_not() -> None:
    rng = np.random.default_rng(0)
    true = (rng.random((6, 4, 4, 1)) < rng.random((6, 1, 1, 1))).astype(np.float32)
    predicted = rng.random((6, 4, 4, 1)).astype(np.float32)
    whole = np.asarray(dice_crossentropy(true, predicted))
    parts = [np.asarray(dice_crossentropy(true[i:j], predicted[i:j])) for i, j in ((0, 4), (4, 6))]
    np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-6)

    halves = [float(dice_coefficient(true[i:j], predicted[i:j])) for i, j in ((0, 3), (3, 6))]
    assert abs(np.mean(halves) - float(dice_coefficient(true, predicted))) > 1e-3
