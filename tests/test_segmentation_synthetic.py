"""The made pictures: the same everywhere, and not easy."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from tests.configs import default_config
from tfddl.segmentation.config import TrainConfig
from tfddl.segmentation.dice import dice
from tfddl.segmentation.examples import split_examples
from tfddl.segmentation.synthetic import make_example, write_dataset

Images = NDArray[np.uint8]
Masks = NDArray[np.bool_]


def _read_folder(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_made_set_is_the_same_for_the_same_seed_however_it_is_shared_out(tmp_path: Path) -> None:
    size = (32, 48)
    write_dataset(tmp_path / "a", num_examples=5, image_size=size, seed=3)
    for share in (range(0, 3), range(3, 3), range(3, 5)):
        write_dataset(tmp_path / "b", num_examples=5, image_size=size, seed=3, only=share)
    write_dataset(tmp_path / "c", num_examples=5, image_size=size, seed=4)
    a, b, c = (_read_folder(tmp_path / name) for name in "abc")
    assert list(a) == [f"images/000{i}.png" for i in range(1, 6)] + [
        f"masks/000{i}_mask.png" for i in range(1, 6)
    ]
    assert a == b
    assert not set(a.values()) & set(c.values())


def test_made_example_has_a_car_and_all_else() -> None:
    for index in range(8):
        image, mask = make_example(index, image_size=(32, 48), seed=0)
        assert image.shape == (32, 48, 3)
        assert mask.shape == (32, 48)
        assert image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 255}
        assert 0.1 < mask.mean() / 255 < 0.7


@pytest.fixture(scope="module")
def made() -> tuple[Images, Masks, Images, Masks]:
    """Some of the pictures that are made by default to train on, and all those to validate with."""
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


def test_all_foreground_is_no_answer(
    made: tuple[Images, Masks, Images, Masks],
) -> None:
    *_, masks = made
    assert 0.2 < masks.mean() < 0.36
    assert _mean_dice(masks, np.ones_like(masks)) <= 0.7


def test_no_threshold_of_brightness_finds_the_cars(
    made: tuple[Images, Masks, Images, Masks],
) -> None:
    """Even the best of all thresholds, chosen on the validation set itself."""
    _, _, images, masks = made
    grey = images @ np.array([0.299, 0.587, 0.114])
    scores = [
        _mean_dice(masks, sign * grey >= sign * level)
        for level in range(0, 256, 5)
        for sign in (1, -1)
    ]
    assert max(scores) <= 0.7


def test_the_colour_of_a_pixel_does_not_tell(
    made: tuple[Images, Masks, Images, Masks],
) -> None:
    """Logistic regression, at every level of its probability."""
    training, training_masks, images, masks = made
    colours = training[:, ::3, ::3].reshape(-1, 3) / 255
    model = LogisticRegression(C=100).fit(colours, training_masks[:, ::3, ::3].ravel())
    probability = model.predict_proba(images.reshape(-1, 3) / 255)[:, 1].reshape(masks.shape)
    scores = [_mean_dice(masks, probability >= level) for level in np.linspace(0, 1, 41)]
    assert max(scores) <= 0.7
