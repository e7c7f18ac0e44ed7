"""A made data set: photo-like pictures of cars in streets, and their masks.

It stands in where no data are given, and is made so that neither brightness nor colour tells what
is car: paint often has the background's colour, shadows and other things are coloured like cars.

Usage::

    from tfddl.segmentation.synthetic import write_dataset

    write_dataset("cars", num_examples=300, image_size=(96, 96), seed=0)
"""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from tfddl.segmentation import car, scenery
from tfddl.segmentation.image_io import write_png

# Drawn this many times larger and scaled down: the edges are as soft as a camera's.
_OVERSAMPLING = 2


def make_example(
    index: int, *, image_size: tuple[int, int], seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Makes one picture. It depends on nothing but its index, the size and the seed.

    Args:
        index: Which example, from 0.
        image_size: (height, width) in pixels.
        seed: Of the whole set, at least 0.

    Returns:
        The image, (height, width, 3), and its mask, (height, width), 255 where there is car.
    """
    rng = np.random.default_rng([seed, index])
    height, width = (side * _OVERSAMPLING for side in image_size)
    canvas, horizon = scenery.draw_background(rng, (height, width))

    place = _any_placement(rng, (height, width), horizon=horizon)
    scenery.draw_distractors(rng, canvas, floor=horizon)
    car.draw_shadow(rng, canvas, place=place)
    mask = car.draw_car(rng, canvas, shape=car.any_shape(rng), place=place)

    _light(rng, canvas)
    return _photograph(rng, canvas, image_size), _shrink_mask(mask, image_size)


def write_dataset(
    directory: str | os.PathLike[str],
    *,
    num_examples: int,
    image_size: tuple[int, int],
    seed: int,
    only: range | None = None,
) -> None:
    """Writes `images/0001.png`, `masks/0001_mask.png`, … below a directory, if they aren't there.

    Every file appears whole or not at all, and always with the same content: several processes may
    write the same set at the same time.

    Args:
        directory: Made if it isn't there.
        num_examples: How many pairs.
        image_size: (height, width) in pixels.
        seed: At least 0; the set is the same for the same seed.
        only: Write only these of the examples, counted from 0: a worker's share of the work.
    """
    images, masks = Path(directory) / "images", Path(directory) / "masks"
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    for index in range(num_examples) if only is None else only:
        image_path = images / f"{index + 1:04}.png"
        mask_path = masks / f"{index + 1:04}_mask.png"
        if not (image_path.exists() and mask_path.exists()):
            image, mask = make_example(index, image_size=image_size, seed=seed)
            write_png(image_path, image)
            write_png(mask_path, mask)


def _any_placement(
    rng: np.random.Generator, shape: tuple[int, int], *, horizon: int
) -> car.Placement:
    height, width = shape
    lowest = max(0.74 * height, horizon + 0.06 * height)
    return car.Placement(
        length=width * rng.uniform(0.72, 1.06),
        stretch=rng.uniform(0.95, 1.3),
        angle=rng.normal(0, 0.05),
        mirrored=bool(rng.random() < 0.5),
        middle=(width * rng.uniform(0.36, 0.64), rng.uniform(lowest, 0.95 * height)),
    )


def _light(rng: np.random.Generator, canvas: scenery.Canvas) -> None:
    """Light and shade that lie over everything: trees, clouds, a darker corner."""
    shape = canvas.shape[:2]
    shade = scenery.noise(rng, shape, shape[1] / rng.uniform(1.5, 4)) * rng.uniform(0, 0.15)
    if rng.random() < 0.25:
        leaves = np.clip(scenery.fractal(rng, shape, shape[1] / 5) * 2, -0.5, 1)
        shade -= leaves * rng.uniform(0.05, 0.2)
    canvas *= np.clip(1 + shade, 0.35, 1.6)[..., None]


def _photograph(
    rng: np.random.Generator, canvas: scenery.Canvas, image_size: tuple[int, int]
) -> NDArray[np.uint8]:
    """What a camera makes of it: fewer pixels, blur, exposure, white balance, noise."""
    height, width = image_size
    picture = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    picture = picture.resize((width, height), Image.Resampling.BOX)
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.7)))
    values = np.asarray(picture, np.float32) / 255
    values = values ** rng.uniform(0.8, 1.25) * rng.uniform(0.75, 1.25)
    values = values * (1 + rng.normal(0, 0.05, 3))
    grain = rng.standard_normal(values.shape) * rng.uniform(0.004, 0.026)
    values = values + grain * (0.5 + np.sqrt(np.clip(values, 0, 1)))
    return (np.clip(values, 0, 1) * 255).round().astype(np.uint8)


def _shrink_mask(mask: scenery.Coverage, image_size: tuple[int, int]) -> NDArray[np.uint8]:
    height, width = image_size
    covered = mask.reshape(height, _OVERSAMPLING, width, _OVERSAMPLING).mean((1, 3))
    return np.where(covered >= 0.5, 255, 0).astype(np.uint8)
