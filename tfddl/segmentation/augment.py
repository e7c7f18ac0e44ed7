"""Augmentation: an example seen a little differently in every epoch.

What is changed is drawn from the generator that is given, and from nothing else; `shard_dataset`
gives one that depends on (seed, epoch, example). So an example looks the same whichever worker
reads it, and again after a restart.

Usage::

    data = tfddl.shard_dataset(…, seed=1, augment=Augmentation(("flip", "shift", "brightness")))
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tfddl.errors import UnsupportedError

TRANSFORMS = ("flip", "flip_vertical", "shift", "scale", "rotate", "brightness")

# How much, at most. Enough that no image is the same again, little enough that it could be one of
# the same set.
_SHIFT = 0.1
_SCALE = 1.2
_ROTATE_DEGREES = 10.0
_BRIGHTNESS = 0.25

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Augmentation:
    """A function ``(rng, image, mask) -> (image, mask)``.

    Attributes:
        changes: Which, each once:
            "flip": left and right are exchanged in half of the cases;
            "flip_vertical": top and bottom, which suits images without an up (cells, membranes);
            "shift": by up to a tenth of the image, in each direction;
            "scale": by 1 / 1.2 to 1.2, about the middle;
            "rotate": by up to 10 degrees, about the middle;
            "brightness": all values times 0.75 to 1.25.

    Raises:
        UnsupportedError: One of them isn't known, or is there twice.
    """

    changes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Checks the names."""
        unknown = [name for name in self.changes if name not in TRANSFORMS]
        if unknown or len(set(self.changes)) < len(self.changes):
            raise UnsupportedError(
                f"--augment is {','.join(self.changes)}; it must be some of "
                f"{','.join(TRANSFORMS)}, each once, or empty."
            )

    def __call__(
        self, rng: np.random.Generator, image: Pixels, mask: Pixels
    ) -> tuple[Pixels, Pixels]:
        """Changes an image and, where that moves pixels, its mask alike.

        Args:
            rng: What all is drawn from.
            image: (height, width, channels), uint8; the fourth channel, if any, is opacity.
            mask: (height, width, 1), uint8.

        Returns:
            New arrays of the same shapes. What comes in from outside the image is its mirror
            image, in both.
        """
        # Drawn one after the other, whatever comes of them: the draws don't depend on the images.
        if "flip" in self.changes and rng.random() < 0.5:
            image, mask = image[:, ::-1], mask[:, ::-1]
        if "flip_vertical" in self.changes and rng.random() < 0.5:
            image, mask = image[::-1], mask[::-1]
        if {"shift", "scale", "rotate"} & set(self.changes):
            image, mask = _moved(image, mask, self._placement(rng))
        if "brightness" in self.changes:
            image = _brightened(image, rng.uniform(1 - _BRIGHTNESS, 1 + _BRIGHTNESS))
        return np.ascontiguousarray(image), np.ascontiguousarray(mask)

    def _placement(self, rng: np.random.Generator) -> "_Placement":
        has = self.changes.__contains__
        return _Placement(
            shift=tuple(rng.uniform(-_SHIFT, _SHIFT, 2)) if has("shift") else (0.0, 0.0),
            zoom=_SCALE ** rng.uniform(-1, 1) if has("scale") else 1.0,
            angle=math.radians(rng.uniform(-1, 1) * _ROTATE_DEGREES) if has("rotate") else 0.0,
        )


@dataclass(frozen=True)
class _Placement:
    """Where an image comes to lie: scaled and rotated about its middle, then shifted."""

    shift: tuple[float, ...]
    """(down, right), as shares of height and width."""
    zoom: float
    angle: float
    """In radians, anticlockwise as the image is looked at."""

    def inverse(self, height: int, width: int) -> NDArray[np.float64]:
        """The matrix (2, 3) from a place (x, y) of the new image to where it was in the old."""
        cos, sin = math.cos(self.angle) / self.zoom, math.sin(self.angle) / self.zoom
        turn = np.array([[cos, -sin], [sin, cos]])
        middle = np.array([width / 2, height / 2])
        moved = middle + np.array([self.shift[1] * width, self.shift[0] * height])
        return np.column_stack([turn, middle - turn @ moved])


def _moved(image: Pixels, mask: Pixels, placement: _Placement) -> tuple[Pixels, Pixels]:
    height, width = image.shape[:2]
    inverse = placement.inverse(height, width)
    corners = np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
    places = inverse @ corners
    # How far outside the old image the new one reaches.
    beyond = max(*-places.min(1), *(places.max(1) - (width, height)), 0)
    margin = math.ceil(beyond) + 1
    inverse[:, 2] += margin
    return (
        _transformed(image, inverse, margin, Image.Resampling.BILINEAR),
        _transformed(mask, inverse, margin, Image.Resampling.NEAREST),
    )


def _transformed(
    pixels: Pixels, inverse: NDArray[np.float64], margin: int, resampling: Image.Resampling
) -> Pixels:
    height, width, channels = pixels.shape
    padded = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    picture = Image.fromarray(padded.squeeze(-1) if channels == 1 else padded)
    moved = picture.transform(
        (width, height), Image.Transform.AFFINE, tuple(inverse.ravel()), resampling
    )
    return np.asarray(moved).reshape(height, width, channels)


def _brightened(image: Pixels, factor: float) -> Pixels:
    bright = np.clip(image * np.float32(factor) + np.float32(0.5), 0, 255).astype(np.uint8)
    if image.shape[-1] == 4:
        bright[..., 3] = image[..., 3]
    return bright
