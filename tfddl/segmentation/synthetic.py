"""A synthetic data set for demos and tests: drawings of cars in front of textures, with masks.

Neither brightness nor colour tells car from background (tests/test_segmentation_synthetic.py holds
that): paint often has a colour of the background, and other shapes are coloured like cars. A U-Net
of 0.3 million weights learns it in minutes.
"""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tfddl.segmentation.image_io import write_png

_OVERSAMPLING = 2  # Drawn larger and scaled down, for soft edges.

# The silhouette of a car: x along its length from the front, y up from the ground, both in lengths.
# Per body style, where the windscreen starts, the roof starts, the roof ends, the rear window ends.
_BODIES = (
    (0.30, 0.42, 0.68, 0.84),  # saloon
    (0.27, 0.41, 0.82, 0.95),  # hatchback
    (0.26, 0.38, 0.90, 0.97),  # estate
    (0.12, 0.25, 0.95, 0.98),  # van
    (0.26, 0.36, 0.57, 0.63),  # pick-up
)

_Floats = NDArray[np.float32]


def make_example(
    index: int, *, image_size: tuple[int, int], seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draws one example. It depends on its index, the size and the seed only.

    Args:
        index: Which example, from 0.
        image_size: (height, width) in pixels.
        seed: Of the whole set, at least 0.

    Returns:
        The image, (height, width, 3), and its mask, (height, width), 255 where there is car.
    """
    rng = np.random.default_rng([seed, index])
    height, width = (side * _OVERSAMPLING for side in image_size)
    horizon = round(height * rng.uniform(0.3, 0.68))
    canvas = np.concatenate([_texture(rng, (h, width)) for h in (horizon, height - horizon)])
    for _ in range(rng.integers(2, 8)):
        _draw_distractor(rng, canvas, horizon)
    mask = _draw_car(rng, canvas, horizon)
    covered = mask.reshape(image_size[0], _OVERSAMPLING, image_size[1], _OVERSAMPLING).mean((1, 3))
    return _photograph(rng, canvas, image_size), np.where(covered >= 0.5, 255, 0).astype(np.uint8)


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
        only: Write only these of the examples, counted from 0: a worker's shard of the work.

    Raises:
        OSError: A file can't be written.
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


def _texture(rng: np.random.Generator, shape: tuple[int, int]) -> _Floats:
    """A wall, a hedge, a road: one colour, noise of several scales, perhaps stripes."""
    height, width = shape
    noise = np.zeros(shape, np.float32)
    for octave in range(5):
        cell = max(width / rng.uniform(3, 8) / 2**octave, 1.5)
        grid = rng.standard_normal([max(2, round(side / cell) + 1) for side in shape])
        layer = Image.fromarray(grid.astype(np.float32))
        noise += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC)) * 0.7**octave
    canvas = _colour(rng) + (noise * rng.uniform(3, 22))[..., None]
    if rng.random() < 0.5:
        steps = np.arange(width)[None, :] if rng.random() < 0.6 else np.arange(height)[:, None]
        stripes = steps / (width * rng.uniform(0.03, 0.2)) % 1 < rng.uniform(0.1, 0.5)
        canvas *= np.where(stripes, rng.uniform(0.5, 0.95), 1.0)[..., None]
    return canvas.astype(np.float32)


def _draw_distractor(rng: np.random.Generator, canvas: _Floats, horizon: int) -> None:
    """Something that is no car, though coloured like one: a box, a pole, a bush, a wheel."""
    height, width = canvas.shape[:2]
    x, y = rng.uniform(-0.05, 1.05) * width, horizon + rng.uniform(-0.03, 0.3) * height
    w, h = rng.uniform(0.03, 0.2) * width, rng.uniform(0.08, 0.4) * height
    if rng.random() < 0.5:
        lean = rng.uniform(-0.5, 0.5) * w
        corners = np.array([(x, y), (x + w, y), (x + w + lean, y - h), (x + lean, y - h)])
    else:
        corners = _ellipse((x, y - h / 2), (w / 2, h / 2))
    shading = np.linspace(rng.uniform(0.7, 1.3), rng.uniform(0.7, 1.3), width, dtype=np.float32)
    _paint(canvas, _cover(canvas, corners), _colour(rng) * shading[None, :, None])


def _draw_car(rng: np.random.Generator, canvas: _Floats, horizon: int) -> _Floats:
    """Draws a car with its shadow; returns its mask, 1.0 where body and wheels are."""
    height, width = canvas.shape[:2]
    screen, roof_start, roof_end, boot = np.array(rng.choice(_BODIES)) + rng.uniform(-0.02, 0.015)
    sill, waist = rng.uniform(0.035, 0.075), rng.uniform(0.24, 0.31)
    roof = waist + rng.uniform(0.14, 0.26)
    body = [(0.02, sill), (0, waist - 0.12), (0.03, waist - 0.06), (screen, waist)]
    body += [(roof_start, roof), (roof_end, roof), (boot, waist), (1, waist - 0.03), (0.98, sill)]
    low, high, pillar = waist + 0.01, roof - 0.03, (roof_start + roof_end) / 2
    front = [(screen + 0.05, low), (roof_start + 0.02, high), (pillar - 0.01, high)]
    rear = [(pillar + 0.01, high), (roof_end - 0.01, high), (boot - 0.05, low)]
    panes = ([*front, (pillar - 0.01, low)], [*rear, (pillar + 0.01, low)])
    radius = rng.uniform(0.068, 0.092)
    axles = (rng.uniform(0.16, 0.21), rng.uniform(0.77, 0.84))

    length, stretch = width * rng.uniform(0.72, 1.06), rng.uniform(0.95, 1.3)
    angle = rng.normal(0, 0.05)
    lowest = max(0.74 * height, horizon + 0.06 * height)
    middle = (width * rng.uniform(0.36, 0.64), rng.uniform(lowest, 0.95 * height))
    scale = (rng.choice([-1.0, 1.0]) * length, -length * stretch)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])

    def cover(*polygons: object) -> _Floats:
        corners = [(np.asarray(points) - (0.5, 0)) * scale @ turn + middle for points in polygons]
        return _cover(canvas, *corners)

    def wheels(size: float) -> _Floats:
        radii = (radius * size, radius * size / stretch)
        return cover(*(_ellipse((x, radius / stretch), radii) for x in axles))

    _paint(canvas, cover(_ellipse((0.5, 0.0), (0.55, 0.05))) * 0.5, np.zeros(3))
    paint = _colour(rng)
    if rng.random() < 0.3:  # Camouflage, so that colour alone doesn't tell what is car.
        paint = canvas[rng.integers(height), rng.integers(width)].copy()
    light = np.linspace(rng.uniform(1.0, 1.4), rng.uniform(0.5, 0.9), height)[:, None, None]
    mask = cover(body)
    _paint(canvas, mask, paint * light)
    _paint(canvas, cover(*panes), _colour(rng) * rng.uniform(0.15, 0.6))
    tyres = wheels(1.0)
    _paint(canvas, tyres, np.full(3, rng.uniform(12, 40)))
    _paint(canvas, wheels(rng.uniform(0.5, 0.7)), np.full(3, rng.uniform(70, 210)))
    return np.maximum(mask, tyres)


def _photograph(
    rng: np.random.Generator, canvas: _Floats, image_size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Scales down, and varies exposure, white balance and noise as a camera does."""
    height, width = image_size
    picture = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.BOX))
    balance = rng.uniform(0.75, 1.25) * (1 + rng.normal(0, 0.05, 3))
    values = pixels * balance + rng.standard_normal(pixels.shape) * rng.uniform(1, 7)
    return np.clip(values.round(), 0, 255).astype(np.uint8)


def _colour(rng: np.random.Generator) -> _Floats:
    """Any hue and brightness; often nearly grey."""
    hue = rng.uniform(-1, 1, 3)
    values = rng.uniform(40, 215) + 85 * rng.uniform(0, 1) * (hue - hue.mean())
    return np.clip(values, 8, 247).astype(np.float32)


def _ellipse(centre: tuple[float, float], radii: tuple[float, float]) -> NDArray[np.float64]:
    turns = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    return np.stack([np.cos(turns), np.sin(turns)], 1) * radii + centre


def _cover(canvas: _Floats, *polygons: NDArray[np.float64]) -> _Floats:
    """1.0 where the polygons are, in pixels; (height, width)."""
    image = Image.new("L", canvas.shape[1::-1])
    for polygon in polygons:
        ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in polygon], fill=1)
    return np.asarray(image, np.float32)


def _paint(canvas: _Floats, cover: _Floats, colour: NDArray[np.floating]) -> None:
    canvas += cover[..., None] * (colour - canvas)
