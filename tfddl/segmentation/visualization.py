"""A picture to judge a segmentation by: images, true masks and predicted masks side by side."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_HEADERS = ("image", "true mask", "predicted mask", "difference")
_PAPER, _INK, _FAINT = (250, 250, 248), (35, 38, 42), (120, 124, 130)
_MISSED, _WRONG = (66, 135, 245), (235, 87, 60)
_PANEL, _GAP, _HEAD, _FOOT = 176, 10, 30, 24
_LABEL = 92


def draw_predictions(
    images: NDArray[np.uint8],
    *,
    masks: NDArray[np.bool_],
    predictions: NDArray[np.bool_],
    scores: Sequence[float],
) -> Image.Image:
    """Draws a row for each example: image, true mask, predicted mask, where they differ, Dice.

    Args:
        images: (n, height, width, channels), 1, 3 or 4 channels.
        masks: (n, height, width), the truth.
        predictions: (n, height, width).
        scores: The Dice of each example, shown at its row.

    Returns:
        An RGB picture.
    """
    num_examples, height, width = masks.shape
    zoom = _PANEL / max(height, width)
    panel = (round(width * zoom), round(height * zoom))
    picture = Image.new(
        "RGB",
        (
            _LABEL + len(_HEADERS) * (panel[0] + _GAP) + _GAP,
            _HEAD + num_examples * (panel[1] + _GAP) + _FOOT,
        ),
        _PAPER,
    )
    draw = ImageDraw.Draw(picture)
    lefts = [_LABEL + _GAP + column * (panel[0] + _GAP) for column in range(len(_HEADERS))]
    for left, header in zip(lefts, _HEADERS, strict=True):
        draw.text((left + panel[0] / 2, _HEAD / 2), header, fill=_INK, font=_font(14), anchor="mm")
    for row in range(num_examples):
        top = _HEAD + row * (panel[1] + _GAP)
        cells = (
            _as_rgb(images[row]),
            _as_rgb(masks[row, ..., None] * np.uint8(255)),
            _as_rgb(predictions[row, ..., None] * np.uint8(255)),
            Image.fromarray(_difference(masks[row], predictions[row])),
        )
        for left, cell in zip(lefts, cells, strict=True):
            picture.paste(cell.resize(panel, Image.Resampling.LANCZOS), (left, top))
        middle = top + panel[1] / 2
        draw.text((_LABEL / 2, middle - 11), "Dice", fill=_FAINT, font=_font(12), anchor="mm")
        draw.text(
            (_LABEL / 2, middle + 7), f"{scores[row]:.3f}", fill=_INK, font=_font(20), anchor="mm"
        )
    _draw_legend(draw, left=lefts[-1], top=picture.height - _FOOT)
    return picture


def _as_rgb(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).convert("RGB")


def _difference(mask: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> NDArray[np.uint8]:
    colours = np.full((*mask.shape, 3), 28, np.uint8)
    colours[mask & prediction] = 205
    colours[mask & ~prediction] = _MISSED
    colours[~mask & prediction] = _WRONG
    return colours


def _draw_legend(draw: ImageDraw.ImageDraw, *, left: float, top: float) -> None:
    for offset, colour, text in ((0, _MISSED, "missed"), (72, _WRONG, "too much")):
        x, y = left + offset, top + 4
        draw.rectangle((x, y, x + 9, y + 9), fill=colour)
        draw.text((x + 14, y + 4), text, fill=_FAINT, font=_font(12), anchor="lm")


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
