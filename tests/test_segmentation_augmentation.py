"""Augmentation: what it draws, that masks go with their images, what it refuses."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tfddl.errors import UnsupportedError
from tfddl.segmentation.augmentation import TRANSFORMS, Augmentation

Pixels = NDArray[np.uint8]
MOVES = ("flip", "flip_vertical", "shift", "scale", "rotate")


def _example(shape: tuple[int, int] = (40, 56), channels: int = 3) -> tuple[Pixels, Pixels]:
    """A bright ellipse on a dark ground, off the middle, and its mask."""
    y, x = np.mgrid[: shape[0], : shape[1]] / np.array(shape)[:, None, None]
    mask = ((((x - 0.4) / 0.22) ** 2 + ((y - 0.6) / 0.3) ** 2) < 1).astype(np.uint8)[..., None]
    image = np.repeat(40 + 160 * mask, channels, -1).astype(np.uint8)
    image[..., 3:] = 255  # opaque
    return image, mask


def _rng(*numbers: int) -> np.random.Generator:
    return np.random.default_rng(list(numbers))


def test_result_depends_on_the_generator_only() -> None:
    image, mask = _example()
    before = image.copy(), mask.copy()
    augment = Augmentation(TRANSFORMS)
    first, again, other = (augment(_rng(1, 2, n), image, mask) for n in (3, 3, 4))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).any()
    assert (first[1] != other[1]).any()
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])


def test_draws_do_not_depend_on_the_image() -> None:
    ends = []
    for shape in ((40, 56), (8, 8)):
        rng = _rng(5)
        Augmentation(TRANSFORMS)(rng, *_example(shape))
        ends.append(rng.random())
    assert ends[0] == ends[1]


@pytest.mark.parametrize("transforms", [(name,) for name in MOVES] + [TRANSFORMS])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_masks_are_transformed_like_their_images(
    transforms: tuple[str, ...], channels: int
) -> None:
    image, mask = _example(channels=channels)
    moved = 0
    for n in range(12):
        new_image, new_mask = Augmentation(transforms)(_rng(n), image, mask)
        assert new_image.shape == image.shape
        assert new_mask.shape == mask.shape
        assert new_image.dtype == new_mask.dtype == np.uint8
        assert set(np.unique(new_mask)) == {0, 1}
        is_bright = new_image[..., 0] > new_image[..., 0].max() / 2
        # But for the seam, which is smooth in the image and not in the mask.
        assert (is_bright != (new_mask[..., 0] > 0)).mean() < 0.02
        moved += (new_mask != mask).any()
    assert moved >= 4  # a flip is drawn in half of the cases


def test_flips_are_exact() -> None:
    image, mask = _example()
    for name, flipped in (("flip", image[:, ::-1]), ("flip_vertical", image[::-1])):
        seen = {Augmentation((name,))(_rng(n), image, mask)[0].tobytes() for n in range(12)}
        assert seen == {image.tobytes(), flipped.tobytes()}


def _middle(mask: Pixels) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.argwhere(mask[..., 0] > 0).mean(0) / mask.shape[:2]
    return found


def test_shift_scale_and_rotation_stay_within_their_limits() -> None:
    image, mask = _example((96, 96))
    shifts, sizes = [], []
    for n in range(40):
        shifted = Augmentation(("shift",))(_rng(n), image, mask)[1]
        shifts.append(_middle(shifted) - _middle(mask))
        scaled = Augmentation(("scale",))(_rng(n), image, mask)[1]
        sizes.append(np.sqrt(scaled.sum() / mask.sum()))
        rotated = Augmentation(("rotate",))(_rng(n), image, mask)[1]
        before, after = (_middle(m) - 0.5 for m in (mask, rotated))
        cosine = before @ after / np.linalg.norm(before) / np.linalg.norm(after)
        assert np.degrees(np.arccos(min(cosine, 1))) < 11
        assert int(rotated.sum()) == pytest.approx(int(mask.sum()), rel=0.03)
    assert np.abs(shifts).max() < 0.11
    assert np.abs(shifts).max(0).min() > 0.07  # in both directions
    assert 1 / 1.22 < min(sizes) < 0.9
    assert 1.1 < max(sizes) < 1.22


def test_pixels_from_outside_are_mirrored() -> None:
    image, mask = _example()
    image[:], mask[:] = 200, 1
    for n in range(5):
        new_image, new_mask = Augmentation(("shift", "scale", "rotate"))(_rng(n), image, mask)
        assert np.all(new_image == 200)
        assert np.all(new_mask == 1)


def test_brightness_leaves_mask_and_opacity_alone() -> None:
    image, mask = _example(channels=4)
    image[..., 3] = 77
    factors = []
    for n in range(20):
        new_image, new_mask = Augmentation(("brightness",))(_rng(n), image, mask)
        np.testing.assert_array_equal(new_mask, mask)
        assert np.all(new_image[..., 3] == 77)
        factors.append(new_image[0, 0, 0] / image[0, 0, 0])
        assert new_image[..., 0].max() <= round(200 * 1.25)
    assert 0.74 < min(factors) < 0.85
    assert 1.15 < max(factors) < 1.26


def test_tiny_images() -> None:
    Augmentation(TRANSFORMS)(_rng(0), np.zeros((1, 2, 3), np.uint8), np.zeros((1, 2, 1), np.uint8))


@pytest.mark.parametrize("transforms", [("flip", "twirl"), ("flip", "flip")])
def test_refuses(transforms: tuple[str, ...]) -> None:
    with pytest.raises(UnsupportedError, match=r"--augment is flip,\w+; it must be some of flip,"):
        Augmentation(transforms)
