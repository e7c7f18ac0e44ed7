"""Backgrounds of the made data set: a wall, hedge or sky above; road, paving or grass below.

Everything is drawn on a canvas of floats, (height, width, 3) in 0..255, and in fractions of the
canvas' width, so that a scene looks alike at every size.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Canvas = NDArray[np.float32]
Coverage = NDArray[np.float32]
Colour = NDArray[np.float32]
Points = Sequence[tuple[float, float]]


def noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> Coverage:
    """Smooth noise of about standard normal values, whose features are `cell` pixels large."""
    height, width = shape
    rows, columns = (max(2, round(side / cell) + 1) for side in shape)
    grid = rng.standard_normal((rows, columns)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))


def fractal(rng: np.random.Generator, shape: tuple[int, int], largest: float) -> Coverage:
    """Noise of several scales, from `largest` pixels down by halves, each weaker than the last."""
    cells = [largest / 2**octave for octave in range(5)]
    layers = [noise(rng, shape, max(cell, 1.5)) * 0.7**i for i, cell in enumerate(cells)]
    return np.asarray(np.sum(layers, axis=0) / 1.4, np.float32)


def cover(shape: tuple[int, int], *polygons: Points) -> Coverage:
    """What polygons in pixels cover: 1 inside, 0 outside."""
    image = Image.new("L", (shape[1], shape[0]))
    draw = ImageDraw.Draw(image)
    for polygon in polygons:
        draw.polygon([(float(x), float(y)) for x, y in polygon], fill=1)
    return np.asarray(image, np.float32)


def ellipse(centre: tuple[float, float], radii: tuple[float, float], corners: int = 36) -> Points:
    """The corners of an ellipse, as a polygon."""
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    (x, y), (rx, ry) = centre, radii
    return [(x + rx * np.cos(angle), y + ry * np.sin(angle)) for angle in angles]


def paint(canvas: Canvas, coverage: Coverage, colour: Colour | Canvas) -> None:
    """Lays a colour (or another canvas) over the canvas, where and as far as `coverage` says."""
    rows, columns = (np.flatnonzero(coverage.any(axis)) for axis in (1, 0))
    if len(rows) == 0:
        return
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if colour.ndim == 3:
        colour = colour[window]
    canvas[window] += coverage[window][..., None] * (colour - canvas[window])


def any_colour(rng: np.random.Generator, *, saturation: float) -> Colour:
    """A colour of any hue and brightness; `saturation` 0 is grey, 1 the most vivid."""
    grey = rng.uniform(40, 215)
    hue = rng.uniform(-1, 1, 3)
    return np.clip(grey + 85 * saturation * (hue - hue.mean()), 8, 247).astype(np.float32)


def draw_background(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Canvas, int]:
    """Draws a scene without the car.

    Returns:
        The canvas, and the row where the ground begins.
    """
    height, width = shape
    horizon = round(height * rng.uniform(0.3, 0.68))
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:horizon] = _pick(rng, _BACKDROPS)(rng, (horizon, width))
    canvas[horizon:] = _pick(rng, _GROUNDS)(rng, (height - horizon, width))

    edge = rng.uniform(0, 0.03) * width
    if edge > 1:
        kerb = slice(horizon, min(height, horizon + round(edge)))
        canvas[kerb] = canvas[kerb] * 0.4 + any_colour(rng, saturation=0.1) * 0.6
    return canvas, horizon


def draw_distractors(rng: np.random.Generator, canvas: Canvas, *, floor: int) -> None:
    """Draws things that are no cars, though coloured like them, standing around row `floor`."""
    height, width = shape = canvas.shape[:2]
    texture = fractal(rng, shape, width / 8)[..., None]
    for _ in range(rng.integers(2, 8)):
        base = floor + rng.uniform(-0.03, 0.3) * height
        x = rng.uniform(-0.05, 1.05) * width
        w, h = rng.uniform(0.03, 0.2) * width, rng.uniform(0.08, 0.4) * height
        polygon = _THINGS[rng.integers(len(_THINGS))](rng, (x, base), (w, h))
        dark = rng.random() < 0.25
        colour = any_colour(rng, saturation=rng.uniform(0, 1)) * (0.3 if dark else 1.0)
        shading = np.linspace(rng.uniform(0.7, 1.3), rng.uniform(0.7, 1.3), width, dtype=np.float32)
        surface = colour * shading[None, :, None] + texture * rng.uniform(2, 14)
        foot = ellipse((x + w / 3, base), (0.7 * w, 0.02 * height))
        paint(canvas, cover(shape, foot) * np.float32(0.5), np.zeros(3, np.float32))
        paint(canvas, cover(shape, polygon), surface)


def _wall(rng: np.random.Generator, shape: tuple[int, int]) -> Canvas:
    """Plaster or concrete, with stains."""
    stains = fractal(rng, shape, shape[1] / 3)[..., None]
    tint = any_colour(rng, saturation=0.4) - 128
    return any_colour(rng, saturation=rng.uniform(0, 0.8)) + stains * (
        rng.uniform(4, 22) + 0.06 * tint
    )


def _bricks(rng: np.random.Generator, shape: tuple[int, int]) -> Canvas:
    """Rows of bricks or tiles, each of its own brightness."""
    height, width = shape
    brick_h = max(2.0, width * rng.uniform(0.025, 0.07))
    brick_w = brick_h * rng.uniform(1.5, 3.5)
    row = (np.arange(height) / brick_h).astype(int)
    column = np.arange(width)[None] / brick_w + 0.5 * (row[:, None] % 2)
    tones = rng.normal(0, rng.uniform(4, 22), (row[-1] + 1, int(column.max()) + 1))
    mortar = (np.arange(height) / brick_h % 1 < 0.14)[:, None] | (column % 1 < 0.07)
    canvas = _wall(rng, shape) + tones[row[:, None], column.astype(int)][..., None]
    paint(canvas, mortar * np.float32(0.7), any_colour(rng, saturation=0.2))
    return canvas


def _panels(rng: np.random.Generator, shape: tuple[int, int]) -> Canvas:
    """A shutter, a fence or a garage door: stripes, upright or lying."""
    canvas = _wall(rng, shape)
    upright = rng.random() < 0.6
    position = np.arange(shape[1])[None, :] if upright else np.arange(shape[0])[:, None]
    period = shape[1] * rng.uniform(0.03, 0.15)
    phase = position / period % 1
    canvas *= np.where(phase < 0.12, rng.uniform(0.4, 0.9), 1 + 0.12 * (phase - 0.5))[..., None]
    return canvas


def _facade(rng: np.random.Generator, shape: tuple[int, int]) -> Canvas:
    """A house with rows of windows, some of them lit or with curtains."""
    canvas = _wall(rng, shape)
    step = shape[1] * rng.uniform(0.12, 0.3)
    glass = any_colour(rng, saturation=0.3) * rng.uniform(0.25, 0.9)
    frame = any_colour(rng, saturation=0.2)
    w, h = step * rng.uniform(0.35, 0.7), step * rng.uniform(0.4, 0.8)
    for top in np.arange(rng.uniform(-0.5, 0.3) * step, shape[0], step * 1.2):
        for left in np.arange(rng.uniform(-0.5, 0.3) * step, shape[1], step):
            border = 0.06 * step
            paint(
                canvas,
                cover(shape, _box(left - border, top - border, w + 2 * border, h + 2 * border)),
                frame,
            )
            pane = glass * rng.uniform(0.7, 1.3)
            paint(canvas, cover(shape, _box(left, top, w, h)), pane)
    return canvas


def _foliage(rng: np.random.Generator, shape: tuple[int, int]) -> Canvas:
    """A hedge or trees: leaves of light and dark green, brown or red."""
    leaf = np.array([rng.uniform(30, 130), rng.uniform(50, 140), rng.uniform(15, 70)], np.float32)
    light = fractal(rng, shape, shape[1] / 5) * 0.35 + noise(rng, shape, shape[1] / 60) * 0.2
    return leaf * np.clip(1 + light, 0.25, 2.2)[..., None]


def _sky(rng: np.random.Generator, shape: tuple[int, int]) -> Canvas:
    """Sky with clouds over a line of far hills or roofs."""
    height, width = shape
    top = np.array([rng.uniform(60, 190), rng.uniform(120, 200), rng.uniform(180, 240)])
    low = np.array([rng.uniform(170, 240)] * 3) + rng.uniform(-15, 15, 3)
    fade = np.linspace(0, 1, height)[:, None, None]
    clouds = np.clip(fractal(rng, shape, width / 2), 0, 3)[..., None] * rng.uniform(0, 30)
    canvas = (top * (1 - fade) + low * fade + clouds).astype(np.float32)
    ridge = (
        height * (1 - rng.uniform(0.1, 0.6)) + noise(rng, (2, width), width / 6)[0] * height / 12
    )
    paint(canvas, (np.arange(height)[:, None] > ridge).astype(np.float32), _foliage(rng, shape))
    return canvas


def _asphalt(rng: np.random.Generator, shape: tuple[int, int]) -> Canvas:
    """A road: grain, patches, perhaps painted lines."""
    grey = rng.uniform(55, 165) + rng.uniform(-9, 9, 3).astype(np.float32)
    patches = fractal(rng, shape, shape[1] / 2) * rng.uniform(3, 14)
    grain = noise(rng, shape, 1.5) * rng.uniform(2, 10)
    canvas = np.asarray(grey + (patches + grain)[..., None], np.float32)
    height, width = shape
    for _ in range(rng.integers(0, 4)):
        y, thick = rng.uniform(0.1, 1.0) * height, rng.uniform(0.01, 0.04) * width
        x, tilt = rng.uniform(-0.5, 0.8) * width, rng.uniform(-0.2, 0.2) * width
        long = rng.uniform(0.2, 1.5) * width
        line = [(x, y), (x + long, y + tilt), (x + long, y + tilt + thick), (x, y + thick)]
        paint(canvas, cover(shape, line) * rng.uniform(0.4, 0.9), any_colour(rng, saturation=0.3))
    return canvas


def _paving(rng: np.random.Generator, shape: tuple[int, int]) -> Canvas:
    """Slabs in perspective."""
    height, width = shape
    depth = 1 / (np.arange(height) / height + rng.uniform(0.3, 0.8))
    across = (np.arange(width) / width - rng.uniform(0, 1))[None] / depth[:, None]
    slabs = rng.uniform(4, 9)
    row, column = (depth * slabs * 1.5)[:, None], across * slabs + 50
    tones = rng.normal(0, rng.uniform(3, 14), (64, 128))
    joint = (row % 1 < 0.1) | (column % 1 < 0.06)
    canvas = _asphalt(rng, shape) + any_colour(rng, saturation=0.3) * 0.3 - 30
    canvas += tones[row.astype(int) % 64, column.astype(int) % 128][..., None]
    canvas *= np.where(joint, rng.uniform(0.5, 0.9), 1)[..., None]
    return canvas


def _grass(rng: np.random.Generator, shape: tuple[int, int]) -> Canvas:
    """A lawn, a field or gravel: fine grain of one hue."""
    hue = np.array([rng.uniform(60, 170), rng.uniform(80, 160), rng.uniform(30, 110)], np.float32)
    grain = fractal(rng, shape, shape[1] / 8) * 0.12 + noise(rng, shape, 2) * 0.14
    return hue * np.clip(1 + grain, 0.3, 2)[..., None]


def _board(
    rng: np.random.Generator, foot: tuple[float, float], size: tuple[float, float]
) -> Points:
    """A box, a bin, a board, a wall's end."""
    (x, y), (w, h), lean = foot, size, rng.uniform(-0.15, 0.15) * size[1]
    return [(x, y), (x + w, y), (x + w + lean, y - h), (x + lean, y - h)]


def _pole(rng: np.random.Generator, foot: tuple[float, float], size: tuple[float, float]) -> Points:
    """A lamp post, a drainpipe, a thin tree."""
    (x, y), thick, h = foot, size[0] * rng.uniform(0.1, 0.25), size[1] * rng.uniform(1, 4)
    return [(x, y), (x + thick, y), (x + thick, y - h), (x, y - h)]


def _cone(rng: np.random.Generator, foot: tuple[float, float], size: tuple[float, float]) -> Points:
    """A traffic cone, a tent, a heap."""
    (x, y), (w, h), top = foot, size, rng.uniform(0.3, 0.7)
    return [(x, y), (x + w, y), (x + w * (top + 0.08), y - h), (x + w * (top - 0.08), y - h)]


def _bush(rng: np.random.Generator, foot: tuple[float, float], size: tuple[float, float]) -> Points:
    """A bush, a stone, a round tree."""
    (x, y), (w, h) = foot, size
    turns = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    bumps = (
        1 + 0.08 * np.sin(turns * rng.integers(4, 9)) + 0.06 * np.sin(turns * 3 + rng.uniform(0, 6))
    )
    centre = (x + w / 2, y - h / 2)
    return [
        (centre[0] + (px - centre[0]) * bump, centre[1] + (py - centre[1]) * bump)
        for (px, py), bump in zip(ellipse(centre, (w / 1.6, h / 2)), bumps, strict=True)
    ]


def _tyre(rng: np.random.Generator, foot: tuple[float, float], size: tuple[float, float]) -> Points:
    """Something round that leans there: a tyre, a sign, a barrel's lid."""
    radius = size[0] * rng.uniform(0.3, 0.6)
    return ellipse((foot[0] + radius, foot[1] - radius), (radius, radius))


def _pick(rng: np.random.Generator, painters: "tuple[_Painter, ...]") -> "_Painter":
    return painters[rng.integers(len(painters))]


def _box(left: float, top: float, width: float, height: float) -> Points:
    right, low = left + width, top + height
    return [(left, top), (right, top), (right, low), (left, low)]


_Painter = Callable[[np.random.Generator, tuple[int, int]], Canvas]
_BACKDROPS: tuple[_Painter, ...] = (_wall, _bricks, _panels, _facade, _foliage, _sky)
_GROUNDS: tuple[_Painter, ...] = (_asphalt, _asphalt, _paving, _grass)
_THINGS = (_board, _board, _pole, _cone, _bush, _tyre)
