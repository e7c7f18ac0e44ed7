"""Lines over numbers, drawn as a picture."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageFont

_SIZE = (900, 560)
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 30, 92, 64
_PAPER, _INK, _FAINT, _GRID = (250, 250, 248), (35, 38, 42), (120, 124, 130), (225, 226, 224)
_COLOURS = (
    (66, 135, 245),
    (235, 87, 60),
    (46, 160, 98),
    (150, 92, 200),
    (222, 160, 30),
    (90, 96, 104),
)
_TICKS = 6


@dataclasses.dataclass(frozen=True)
class Line:
    """What has a colour of its own."""

    label: str
    points: Sequence[tuple[float, float]]
    """(x, y), from left to right."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """What is said along one side."""

    label: str
    logarithmic: bool = False
    """Only for numbers above 0."""

    at_least: tuple[float, float] | None = None
    """What it shows in any case."""

    ticks: Sequence[float] | None = None
    """Where numbers stand; None finds good places."""

    name: Callable[[float], str] = "{:g}".format
    """Writes a number."""

    def span(self, values: Sequence[float]) -> tuple[float, float]:
        """What it shows of these values, at least one."""
        low, high = min(values), max(values)
        if self.at_least is not None:
            low, high = min(low, self.at_least[0]), max(high, self.at_least[1])
        if low == high:
            return (low / 2, high * 2) if self.logarithmic else (low - 1, high + 1)
        return low, high

    def places(self, low: float, high: float) -> list[float]:
        """Where numbers stand."""
        if self.ticks is not None:
            return [tick for tick in self.ticks if low <= tick <= high]
        if self.logarithmic:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            found = [m * 10.0**p for p in powers for m in (1, 2, 5)]
        else:
            step = _round_step((high - low) / _TICKS)
            found = [n * step for n in range(math.floor(low / step), math.ceil(high / step) + 1)]
        return [place for place in found if low <= place <= high]

    def part(self, value: float, low: float, high: float) -> float:
        """How far along the axis a value is, 0..1."""
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)


def draw_chart(title: str, lines: Sequence[Line], *, x: Axis, y: Axis) -> Image.Image:
    """Draws lines with a dot at each point, and says above whose they are.

    Args:
        title: What it shows.
        lines: At least one, each with at least one point.
        x: From left to right.
        y: From bottom to top.

    Returns:
        An RGB picture.
    """
    picture = Image.new("RGB", _SIZE, _PAPER)
    draw = ImageDraw.Draw(picture)
    points = [point for line in lines for point in line.points]
    x_span, y_span = x.span([px for px, _ in points]), y.span([py for _, py in points])

    def place(px: float, py: float) -> tuple[float, float]:
        width, height = _SIZE[0] - _LEFT - _RIGHT, _SIZE[1] - _TOP - _BOTTOM
        left = _LEFT + width * x.part(px, *x_span)
        return left, _SIZE[1] - _BOTTOM - height * y.part(py, *y_span)

    draw.text((_LEFT, 24), title, fill=_INK, font=_font(18), anchor="lm")
    for tick in y.places(*y_span):
        at = place(x_span[0], tick)
        draw.line((at, (_SIZE[0] - _RIGHT, at[1])), fill=_GRID)
        draw.text((_LEFT - 8, at[1]), y.name(tick), fill=_FAINT, font=_font(13), anchor="rm")
    for tick in x.places(*x_span):
        at = place(tick, y_span[0])
        draw.line((at, (at[0], _TOP)), fill=_GRID)
        draw.text((at[0], at[1] + 14), x.name(tick), fill=_FAINT, font=_font(13), anchor="mm")
    bottom = _SIZE[1] - _BOTTOM + 42
    middle = (_LEFT + _SIZE[0] - _RIGHT) / 2
    draw.text((middle, bottom), x.label, fill=_INK, font=_font(14), anchor="mm")
    draw.text((8, _TOP - 16), y.label, fill=_INK, font=_font(14), anchor="lm")
    _draw_lines(draw, lines, place)
    return picture


def _draw_lines(
    draw: ImageDraw.ImageDraw,
    lines: Sequence[Line],
    place: Callable[[float, float], tuple[float, float]],
) -> None:
    left = float(_LEFT)
    for number, line in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        at = [place(*point) for point in line.points]
        if len(at) > 1:
            draw.line(at, fill=colour, width=3, joint="curve")
        for px, py in at:
            draw.ellipse((px - 4, py - 4, px + 4, py + 4), fill=colour)
        draw.rectangle((left, 44, left + 12, 56), fill=colour)
        draw.text((left + 18, 50), line.label, fill=_INK, font=_font(13), anchor="lm")
        left += 42 + draw.textlength(line.label, font=_font(13))


def _round_step(step: float) -> float:
    """The next step that people count in: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
