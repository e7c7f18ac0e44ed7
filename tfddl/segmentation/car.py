"""Cars seen from the side, of varied form: from a list of numbers to pixels and their mask."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfddl.segmentation import scenery
from tfddl.segmentation.scenery import Canvas, Coverage, Points


@dataclass(frozen=True)
class Shape:
    """The outline of a car, in fractions of its length; x from the front, y up from the ground."""

    bonnet: float  # where the windscreen starts
    roof_front: float  # where it reaches the roof
    roof_rear: float  # where the rear window starts
    boot: float  # where it ends
    waist: float  # height of the lower edge of the windows
    roof: float  # height of the roof
    clearance: float  # height of the sill
    wheel: float  # radius
    axles: tuple[float, float]


@dataclass(frozen=True)
class Placement:
    """From a car's own coordinates to pixels: mirrored or not, stretched, turned, moved."""

    length: float  # pixels
    stretch: float  # height over natural height
    angle: float  # radians
    mirrored: bool
    middle: tuple[float, float]  # pixels: where the middle of the car touches the ground

    def to_pixels(self, points: Points) -> Points:
        """Maps points of the car to pixels (x to the right, y down)."""
        local = np.asarray(points, float) - (0.5, 0.0)
        local *= (-self.length if self.mirrored else self.length, -self.length * self.stretch)
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        turned = local @ np.array([[cos, sin], [-sin, cos]]) + self.middle
        return [(float(x), float(y)) for x, y in turned]

    def to_car(self, shape: tuple[int, int]) -> tuple[Coverage, Coverage]:
        """The car's coordinates (x, y) of every pixel of a canvas."""
        rows, columns = np.indices(shape, np.float32)
        x, y = columns - self.middle[0], rows - self.middle[1]
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        along, down = x * cos + y * sin, y * cos - x * sin
        across = (-along if self.mirrored else along) / self.length + 0.5
        return across.astype(np.float32), (-down / (self.length * self.stretch)).astype(np.float32)


def any_shape(rng: np.random.Generator) -> Shape:
    """Draws the form: saloon, hatchback, estate, van, pick-up or coupé, and their like."""
    # bonnet, roof_front, roof_rear, boot, roof over waist
    forms = {
        "saloon": (0.30, 0.42, 0.68, 0.84, 0.17),
        "hatchback": (0.27, 0.41, 0.82, 0.95, 0.19),
        "estate": (0.26, 0.38, 0.90, 0.97, 0.18),
        "van": (0.12, 0.25, 0.95, 0.985, 0.25),
        "pick-up": (0.26, 0.36, 0.57, 0.63, 0.17),
        "coupe": (0.33, 0.47, 0.62, 0.93, 0.14),
    }
    names = sorted(forms)
    bonnet, roof_front, roof_rear, boot, glass = forms[names[rng.integers(len(names))]]
    jitter = rng.uniform(-0.025, 0.025, 4)
    waist = rng.uniform(0.24, 0.31)
    wheel = rng.uniform(0.068, 0.092)
    return Shape(
        bonnet=bonnet + jitter[0],
        roof_front=roof_front + jitter[1],
        roof_rear=roof_rear + jitter[2],
        boot=max(boot, roof_rear + 0.04) + min(jitter[3], 0.005),
        waist=waist,
        roof=waist + glass * rng.uniform(0.9, 1.25),
        clearance=rng.uniform(0.035, 0.075),
        wheel=wheel,
        axles=(rng.uniform(0.16, 0.21), rng.uniform(0.77, 0.84)),
    )


def draw_car(
    rng: np.random.Generator, canvas: Canvas, *, shape: Shape, place: Placement
) -> Coverage:
    """Draws a car onto the canvas.

    Returns:
        Its mask: what body and wheels cover.
    """
    along, up = place.to_car(canvas.shape[:2])
    sketch = _Sketch(rng=rng, canvas=canvas, shape=shape, place=place, along=along, up=up)
    body = sketch.cover(_smooth(_outline(rng, shape)))
    sketch.paint(body, _paint_colour(rng, canvas) * _light(rng, up, shape)[..., None])
    sketch.add_lower_body(body)
    sketch.add_windows()
    sketch.add_lamps(body)
    return np.maximum(body, sketch.add_wheels(body))


def draw_shadow(rng: np.random.Generator, canvas: Canvas, *, place: Placement) -> None:
    """Darkens the ground below a car, and to one side of it, before the car is drawn."""
    along, up = place.to_car(canvas.shape[:2])
    side = rng.uniform(-0.15, 0.15)
    depth = rng.uniform(0.02, 0.09)
    distance = np.hypot((along - 0.5 - side) / 0.56, (up + depth * 0.3) / depth)
    soft = np.clip((1.25 - distance) / rng.uniform(0.1, 0.7), 0, 1)
    canvas *= (1 - soft * rng.uniform(0.25, 0.65))[..., None]


@dataclass(frozen=True, kw_only=True)
class _Sketch:
    """A car in the making."""

    rng: np.random.Generator
    canvas: Canvas
    shape: Shape
    place: Placement
    along: Coverage  # each pixel's x in the car's coordinates
    up: Coverage  # and its y

    def cover(self, *polygons: Points) -> Coverage:
        return scenery.cover(self.along.shape, *map(self.place.to_pixels, polygons))

    def paint(self, coverage: Coverage, colour: Canvas | float) -> None:
        filling = colour if isinstance(colour, np.ndarray) else np.full(3, colour, np.float32)
        scenery.paint(self.canvas, coverage, filling)

    def add_lower_body(self, body: Coverage) -> None:
        """Draws bumpers and sill of bare plastic, the gaps between doors, their handles."""
        rng, shape = self.rng, self.shape
        if rng.random() < 0.5:
            trim = shape.clearance + rng.uniform(0.02, 0.06)
            self.paint(body * (self.up < trim), rng.uniform(25, 70))
        last = min(shape.roof_rear + 0.06, 0.75)
        between = (self.up > shape.clearance + 0.03) & (self.up < shape.waist)
        grip = abs(self.up - shape.waist + 0.045) < 0.006
        for door in np.linspace(shape.bonnet + 0.04, last, rng.integers(2, 4)):
            self.paint(body * between * (abs(self.along - door) < 0.004) * np.float32(0.6), 20.0)
            handle = grip & (abs(self.along - door + 0.05) < 0.016)
            self.paint(body * handle * np.float32(0.7), rng.choice([30.0, 200.0]))

    def add_windows(self) -> None:
        """Draws glass between the pillars: dark, with the sky's or the street's reflection."""
        rng, low = self.rng, self.shape.waist + 0.012
        high = self.shape.roof - rng.uniform(0.02, 0.035)
        height = np.float32((self.up - low) / (high - low))
        streaks = np.sin(self.along * rng.uniform(8, 20) + self.up * rng.uniform(6, 30))
        light = height * rng.uniform(0, 60) + np.clip(streaks, 0.4, 1) * rng.uniform(0, 60)
        glass = scenery.any_colour(rng, saturation=0.15) * rng.uniform(0.12, 0.45) + 8
        street = self.canvas.mean((0, 1)) * rng.uniform(0, 0.15)
        panes = _panes(rng, self.shape, low=low, high=high)
        self.paint(self.cover(*panes), np.asarray(glass + street + light[..., None], np.float32))

    def add_lamps(self, body: Coverage) -> None:
        """Draws warm lamps in front and red ones behind."""
        rng = self.rng
        height = self.shape.waist - rng.uniform(0.09, 0.12)
        near = body * (abs(self.up - height) < rng.uniform(0.012, 0.025)) * np.float32(0.85)
        warm, red = rng.uniform(150, 250), rng.uniform(120, 230)
        lamp, tail = np.array([warm, warm, warm * 0.9]), np.array([red, 25.0, 25.0])
        self.paint(near * (self.along < rng.uniform(0.035, 0.07)), lamp.astype(np.float32))
        self.paint(near * (self.along > 1 - rng.uniform(0.02, 0.05)), tail.astype(np.float32))

    def add_wheels(self, body: Coverage) -> Coverage:
        """Draws arches, tyres and rims; returns what the tyres cover."""
        rng = self.rng
        tyres, rim = self._discs(1.0), rng.uniform(0.58, 0.72)
        dark, metal = rng.uniform(12, 40), rng.uniform(70, 210)
        self.paint(self._discs(1.2) * body, dark * 0.5)
        self.paint(tyres, dark)
        self.paint(self._discs(rim), metal)
        self.paint(self._discs(rim * rng.uniform(0.6, 0.85)) * rng.uniform(0.2, 0.8), dark)
        self.paint(self._discs(rim * 0.3), metal * 0.9)
        return tyres

    def _discs(self, share: float) -> Coverage:
        """One on each axle, round in the picture however the car is stretched."""
        across = self.shape.wheel
        upward = across / self.place.stretch
        radii = (across * share, upward * share)
        return self.cover(*(scenery.ellipse((x, upward), radii) for x in self.shape.axles))


def _outline(rng: np.random.Generator, shape: Shape) -> Points:
    """Corners of the body from the front's lower corner, over the roof, to the rear's."""
    nose, tail = rng.uniform(0.05, 0.09), rng.uniform(0.0, 0.05)
    sill, waist, roof = shape.clearance, shape.waist, shape.roof
    curve = rng.uniform(0.0, 0.02)
    return [
        (0.02, sill + 0.005),
        (0.0, sill + 0.06),
        (0.005, waist - nose - 0.02),
        (0.03, waist - nose),
        (shape.bonnet, waist + 0.005),
        (shape.roof_front, roof),
        ((shape.roof_front + shape.roof_rear) / 2, roof + curve),
        (shape.roof_rear, roof - 0.005),
        (shape.boot, waist + rng.uniform(0, 0.02)),
        (max(0.985, shape.boot + 0.005), waist - tail),
        (1.0, waist - tail - 0.06),
        (0.995, sill + 0.06),
        (0.98, sill + 0.01),
    ]


def _smooth(points: Points, rounds: int = 2) -> Points:
    """Cuts the corners of a closed polygon (Chaikin)."""
    corners: NDArray[np.float64] = np.asarray(points, float)
    for _ in range(rounds):
        following = np.roll(corners, -1, axis=0)
        cut = np.stack([0.82 * corners + 0.18 * following, 0.18 * corners + 0.82 * following], 1)
        corners = cut.reshape(-1, 2)
    return [(float(x), float(y)) for x, y in corners]


def _paint_colour(rng: np.random.Generator, canvas: Canvas) -> scenery.Colour:
    """Any colour; often the background's, so that colour alone doesn't tell what is car."""
    if rng.random() < 0.3:
        row, column = rng.integers(canvas.shape[0]), rng.integers(canvas.shape[1])
        return np.clip(canvas[row, column] + rng.normal(0, 12, 3), 8, 247).astype(np.float32)
    return scenery.any_colour(rng, saturation=rng.uniform(0, 1))


def _light(rng: np.random.Generator, up: Coverage, shape: Shape) -> Coverage:
    """How bright the paint is by height: sky on top, a crease at the shoulder, dark below."""
    shoulder = shape.waist - rng.uniform(0.03, 0.07)
    slope = 1 + rng.uniform(0.5, 1.3) * (up - shoulder)
    crease = rng.uniform(0.1, 0.4) * np.exp(-(((up - shoulder) / 0.018) ** 2))
    underside = rng.uniform(0.1, 0.35) * np.exp(-(((up - shape.clearance) / 0.05) ** 2))
    haze = scenery.noise(rng, up.shape, up.shape[1] / 5) * rng.uniform(0.01, 0.08)
    return np.asarray(np.clip(slope + crease - underside + haze, 0.2, 1.7), np.float32)


def _panes(rng: np.random.Generator, shape: Shape, *, low: float, high: float) -> list[Points]:
    """The corners of the windows, from the front to the rear."""
    slope = (high - low) / (shape.roof - shape.waist)
    front, rear = shape.bonnet + 0.045, shape.boot - 0.06
    pillars = [front + (rear - front) * share for share in _pillars(rng, rear - front)]
    starts = [front, *(pillar + 0.009 for pillar in pillars)]
    ends = [*(pillar - 0.009 for pillar in pillars), rear]
    panes: list[Points] = []
    for start, end in zip(starts, ends, strict=True):
        # The screens lean: the outer panes are shorter at the top.
        top_start = max(start, front + (shape.roof_front - shape.bonnet) * slope)
        top_end = min(end, shape.roof_rear)
        if top_end - top_start > 0.015:
            panes.append([(start, low), (top_start, high), (top_end, high), (end, low)])
    return panes


def _pillars(rng: np.random.Generator, length: float) -> list[float]:
    """Where the glass is split, as fractions of its length."""
    if length < 0.35:
        return []
    if length < 0.5 or rng.random() < 0.3:
        return [rng.uniform(0.45, 0.6)]
    return [rng.uniform(0.34, 0.42), rng.uniform(0.68, 0.76)]
