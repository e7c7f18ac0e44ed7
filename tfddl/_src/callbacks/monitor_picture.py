"""A bar chart of how the ranks spend their time, drawn with Pillow."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tfddl._src.callbacks.monitor_charts import slowest_rank
from tfddl._src.callbacks.monitor_meter import StepStats

_PAPER, _INK = (250, 250, 248), (35, 38, 42)
_BUSY, _SLOWEST, _WAITS = (66, 135, 245), (235, 87, 60), (212, 216, 220)
_BAR, _LEFT, _RIGHT, _HEAD = 240, 72, 138, 56


def draw_ranks(works: Sequence[StepStats]) -> NDArray[np.uint8] | None:
    """Draws a bar for each rank: the part of a step outside of collectives, and that in them.

    Args:
        works: Each rank's measurements in an epoch.

    Returns:
        Shape (height, width, 3); None where there is only one rank, or times aren't known.
    """
    last = slowest_rank(works)
    if last is None:
        return None
    # Pixels; a thousand ranks fit into a picture of 4000.
    row = max(4, min(30, 900 // len(works)))
    picture = Image.new("RGB", (_LEFT + _BAR + _RIGHT, _HEAD + row * len(works) + 12), _PAPER)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(15)
    _draw_legend(draw, font)
    scale = _BAR / max(work.step_s for work in works)
    for rank, work in enumerate(works):
        top = _HEAD + rank * row
        bottom = top + row - max(1, row // 5)
        busy, step = (_LEFT + scale * seconds for seconds in (work.busy_s, work.step_s))
        draw.rectangle((_LEFT, top, step, bottom), fill=_WAITS)
        draw.rectangle((_LEFT, top, busy, bottom), fill=_SLOWEST if rank == last else _BUSY)
        # Where rows are low, labels would overlap: only some ranks have one, and the slowest.
        if rank == last or (row >= 16 or rank % (20 // row) == 0) and abs(rank - last) * row >= 14:
            middle = (top + bottom) / 2
            ink = _SLOWEST if rank == last else _INK
            draw.text((_LEFT - 8, middle), f"rank {rank}", fill=ink, font=font, anchor="rm")
            times = f"{1e3 * work.busy_s:.1f} of {1e3 * work.step_s:.1f} ms"
            draw.text((_LEFT + _BAR + 8, middle), times, fill=ink, font=font, anchor="lm")
    return np.asarray(picture)


def _draw_legend(
    draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont
) -> None:
    for left, top, colour, text in (
        (_LEFT, 8, _BUSY, "busy"),
        (_LEFT + 90, 8, _SLOWEST, "busy, and the others wait"),
        (_LEFT, 30, _WAITS, "in collectives, where ranks wait"),
    ):
        draw.rectangle((left, top, left + 13, top + 13), fill=colour)
        draw.text((left + 20, top + 7), text, fill=_INK, font=font, anchor="lm")
