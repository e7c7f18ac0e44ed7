"""The synthetic data set: the same everywhere, and not trivial to segment."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.configs import default_config
from tfddl.segmentation.config import TrainConfig
from tfddl.segmentation.dice import dice
from tfddl.segmentation.examples import split_examples
from tfddl.segmentation.synthetic import make_example, write_dataset

Images = NDArray[np.uint8]
Masks = NDArray[np.bool_]


def _read_directory(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_the_set_depends_on_the_seed_and_not_on_its_shards(tmp_path: Path) -> None:
    size = (32, 48)
    write_dataset(tmp_path / "a", num_examples=5, image_size=size, seed=3)
    for shard in (range(0, 3), range(3, 3), range(3, 5)):
        write_dataset(tmp_path / "b", num_examples=5, image_size=size, seed=3, only=shard)
    write_dataset(tmp_path / "c", num_examples=5, image_size=size, seed=4)
    a, b, c = (_read_directory(tmp_path / name) for name in "abc")
    assert list(a) == [f"images/000{i}.png" for i in range(1, 6)] + [
        f"masks/000{i}_mask.png" for i in range(1, 6)
    ]
    assert a == b
    assert not set(a.values()) & set(c.values())


def test_an_example_has_foreground_and_background() -> None:
    for index in range(8):
        image, mask = make_example(index, image_size=(32, 48), seed=0)
        assert image.shape == (32, 48, 3)
        assert mask.shape == (32, 48)
        assert image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 255}
        assert 0.1 < mask.mean() / 255 < 0.7


@pytest.fixture(scope="module")
def examples() -> tuple[Images, Masks, Images, Masks]:
    """Some training examples of the default set, and all of its validation examples."""
    config = default_config()
    training, validation = split_examples(
        config.num_examples, validation_split=config.validation_split, seed=config.seed
    )
    return *_make(training[:40], config), *_make(validation, config)


def _make(indices: NDArray[np.int64], config: TrainConfig) -> tuple[Images, Masks]:
    pairs = [make_example(int(i), image_size=config.image_size, seed=config.seed) for i in indices]
    images, masks = zip(*pairs, strict=True)
    return np.stack(images), np.stack(masks) > 0


def _mean_dice(masks: Masks, predicted: Masks) -> float:
    return float(
        np.mean(np.asarray(dice(masks[..., None], predicted[..., None].astype(np.float32))))
    )


def test_predicting_all_foreground_scores_low(
    examples: tuple[Images, Masks, Images, Masks],
) -> None:
    *_, masks = examples
    assert 0.2 < masks.mean() < 0.36
    assert _mean_dice(masks, np.ones_like(masks)) <= 0.7


def test_no_threshold_of_brightness_scores_high(
    examples: tuple[Images, Masks, Images, Masks],
) -> None:
    """Not even the best threshold, chosen on the validation set itself."""
    _, _, images, masks = examples
    grey = images @ np.array([0.299, 0.587, 0.114])
    scores = [
        _mean_dice(masks, sign * grey >= sign * level)
        for level in range(0, 256, 5)
        for sign in (1, -1)
    ]
    assert max(scores) <= 0.7


def _probability(weights: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-(x @ weights[:-1] + weights[-1])))


def _fitted(x: NDArray[np.float64], y: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The weights of a logistic regression, and its bias, by Newton's method; a little decay."""
    inputs = np.column_stack([x, np.ones(len(x))])
    weights = np.zeros(inputs.shape[1])
    for _ in range(20):
        p = _probability(weights, x)
        gradient = inputs.T @ (p - y) + 0.01 * weights
        curvature = (inputs.T * (p * (1 - p))) @ inputs + 0.01 * np.eye(len(weights))
        weights -= np.linalg.solve(curvature, gradient)
    assert np.abs(gradient).max() < 1e-6
    return weights


def test_no_classifier_of_single_pixels_scores_high(
    examples: tuple[Images, Masks, Images, Masks],
) -> None:
    """Logistic regression, at every level of its probability."""
    training, training_masks, images, masks = examples
    colours = training[:, ::3, ::3].reshape(-1, 3) / 255
    weights = _fitted(colours, training_masks[:, ::3, ::3].ravel())
    probability = _probability(weights, images.reshape(-1, 3) / 255).reshape(masks.shape)
    scores = [_mean_dice(masks, probability >= level) for level in np.linspace(0, 1, 41)]
    assert max(scores) <= 0.7
