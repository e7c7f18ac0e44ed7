"""Augmentation: random transforms of an example, different in every epoch.

All is drawn from the generator that is given; `shard_dataset` gives one that depends on (seed,
epoch, example) only. So an example is transformed alike whichever worker reads it, and again after
a restart.

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

# At most. Enough that no two epochs are alike; little enough that the result is plausible data.
_SHIFT = 0.1
_SCALE = 1.2
_ROTATE_DEGREES = 10.0
_BRIGHTNESS = 0.25

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Augmentation:
    """A function ``(rng, image, mask) -> (image, mask)``.

    Attributes:
        transforms: Some of `TRANSFORMS`, each once:
            "flip": left and right are exchanged, with probability 1/2;
            "flip_vertical": top and bottom, for images without an up (cells, membranes);
            "shift": by up to a tenth of the image, in each direction;
            "scale": by 1 / 1.2 to 1.2, about the centre;
            "rotate": by up to 10 degrees, about the centre;
            "brightness": all values times 0.75 to 1.25.

    Raises:
        UnsupportedError: One of them is unknown, or given twice.
    """

    transforms: tuple[str, ...]

    def __post_init__(self) -> None:
        unknown = [name for name in self.transforms if name not in TRANSFORMS]
        if unknown or len(set(self.transforms)) < len(self.transforms):
            raise UnsupportedError(
                f"--augment is {','.join(self.transforms)}; it must be some of "
                f"{','.join(TRANSFORMS)}, each once, or empty."
            )

    def __call__(
        self, rng: np.random.Generator, image: Pixels, mask: Pixels
    ) -> tuple[Pixels, Pixels]:
        """Transforms an image and, where pixels move, its mask alike.

        Args:
            rng: The only source of randomness.
            image: (height, width, channels), uint8; the fourth channel, if any, is opacity.
            mask: (height, width, 1), uint8.

        Returns:
            New arrays of the same shapes and dtype. What moves in from outside the image is its
            mirror image, in both.
        """
        # The number and order of draws depend on `transforms` only, never on the image.
        if "flip" in self.transforms and rng.random() < 0.5:
            image, mask = image[:, ::-1], mask[:, ::-1]
        if "flip_vertical" in self.transforms and rng.random() < 0.5:
            image, mask = image[::-1], mask[::-1]
        if {"shift", "scale", "rotate"} & set(self.transforms):
            image, mask = _warp(image, mask, self._draw_affine(rng))
        if "brightness" in self.transforms:
            image = _brighten(image, rng.uniform(1 - _BRIGHTNESS, 1 + _BRIGHTNESS))
        return np.ascontiguousarray(image), np.ascontiguousarray(mask)

    def _draw_affine(self, rng: np.random.Generator) -> "_Affine":
        has = self.transforms.__contains__
        return _Affine(
            shift=tuple(rng.uniform(-_SHIFT, _SHIFT, 2)) if has("shift") else (0.0, 0.0),
            zoom=_SCALE ** rng.uniform(-1, 1) if has("scale") else 1.0,
            angle=math.radians(rng.uniform(-1, 1) * _ROTATE_DEGREES) if has("rotate") else 0.0,
        )


@dataclass(frozen=True)
class _Affine:
    """Scaling and rotation about the centre, then a shift."""

    shift: tuple[float, ...]
    """(down, right), as fractions of height and width."""
    zoom: float
    angle: float
    """Radians, anticlockwise as the image is seen."""

    def inverse(self, height: int, width: int) -> NDArray[np.float64]:
        """The (2, 3) matrix from (x, y, 1) in the result to (x, y) in the image."""
        cos, sin = math.cos(self.angle) / self.zoom, math.sin(self.angle) / self.zoom
        turn = np.array([[cos, -sin], [sin, cos]])
        centre = np.array([width / 2, height / 2])
        moved = centre + np.array([self.shift[1] * width, self.shift[0] * height])
        return np.column_stack([turn, centre - turn @ moved])


def _warp(image: Pixels, mask: Pixels, affine: _Affine) -> tuple[Pixels, Pixels]:
    height, width = image.shape[:2]
    inverse = affine.inverse(height, width)
    corners = np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
    sources = inverse @ corners
    # Pixels that the result takes from outside the image: so much is padded by mirroring.
    beyond = max(*-sources.min(1), *(sources.max(1) - (width, height)), 0)
    # One more, for the neighbours that bilinear interpolation looks at.
    margin = math.ceil(beyond) + 1
    inverse[:, 2] += margin
    return (
        _resample(image, inverse, margin, Image.Resampling.BILINEAR),
        _resample(mask, inverse, margin, Image.Resampling.NEAREST),
    )


def _resample(
    pixels: Pixels, inverse: NDArray[np.float64], margin: int, resampling: Image.Resampling
) -> Pixels:
    height, width, channels = pixels.shape
    padded = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    picture = Image.fromarray(padded.squeeze(-1) if channels == 1 else padded)
    moved = picture.transform(
        (width, height), Image.Transform.AFFINE, tuple(inverse.ravel()), resampling
    )
    return np.asarray(moved).reshape(height, width, channels)


def _brighten(image: Pixels, factor: float) -> Pixels:
    # + 0.5: astype cuts off. In float32: NumPy would make float64 of it, eight times as large as
    # the image.
    bright = np.clip(image * np.float32(factor) + np.float32(0.5), 0, 255).astype(np.uint8)
    if image.shape[-1] == 4:
        bright[..., 3] = image[..., 3]
    return bright
