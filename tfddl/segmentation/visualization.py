"""A picture of a segmentation: images, true masks, predicted masks and differences."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_HEADERS = ("image", "true mask", "predicted mask", "difference")
_BACKGROUND, _TEXT, _FAINT_TEXT = (250, 250, 248), (35, 38, 42), (120, 124, 130)
_FALSE_NEGATIVE, _FALSE_POSITIVE = (66, 135, 245), (235, 87, 60)
_PANEL, _GAP, _HEADER, _FOOTER = 176, 10, 30, 24
_LABEL_WIDTH = 92


def draw_predictions(
    images: NDArray[np.uint8],
    *,
    masks: NDArray[np.bool_],
    predictions: NDArray[np.bool_],
    scores: Sequence[float],
) -> Image.Image:
    """Draws a row for each example: image, true mask, predicted mask, their difference, Dice.

    Args:
        images: (n, height, width, channels), uint8, with 1, 3 or 4 channels.
        masks: (n, height, width), bool: the true masks.
        predictions: (n, height, width), bool.
        scores: The Dice of each example, n numbers.

    Returns:
        An RGB picture.
    """
    num_examples, height, width = masks.shape
    zoom = _PANEL / max(height, width)
    panel = (round(width * zoom), round(height * zoom))
    picture = Image.new(
        "RGB",
        (
            _LABEL_WIDTH + len(_HEADERS) * (panel[0] + _GAP) + _GAP,
            _HEADER + num_examples * (panel[1] + _GAP) + _FOOTER,
        ),
        _BACKGROUND,
    )
    draw = ImageDraw.Draw(picture)
    lefts = [_LABEL_WIDTH + _GAP + column * (panel[0] + _GAP) for column in range(len(_HEADERS))]
    for left, header in zip(lefts, _HEADERS, strict=True):
        draw.text(
            (left + panel[0] / 2, _HEADER / 2), header, fill=_TEXT, font=_font(14), anchor="mm"
        )
    for row in range(num_examples):
        top = _HEADER + row * (panel[1] + _GAP)
        cells = (
            _as_rgb(images[row]),
            _as_rgb(masks[row, ..., None] * np.uint8(255)),
            _as_rgb(predictions[row, ..., None] * np.uint8(255)),
            Image.fromarray(_difference(masks[row], predictions[row])),
        )
        for left, cell in zip(lefts, cells, strict=True):
            picture.paste(cell.resize(panel, Image.Resampling.LANCZOS), (left, top))
        middle = top + panel[1] / 2
        draw.text(
            (_LABEL_WIDTH / 2, middle - 11), "Dice", fill=_FAINT_TEXT, font=_font(12), anchor="mm"
        )
        draw.text(
            (_LABEL_WIDTH / 2, middle + 7),
            f"{scores[row]:.3f}",
            fill=_TEXT,
            font=_font(20),
            anchor="mm",
        )
    _draw_legend(draw, left=lefts[-1], top=picture.height - _FOOTER)
    return picture


def _as_rgb(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).convert("RGB")


def _difference(mask: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> NDArray[np.uint8]:
    colours = np.full((*mask.shape, 3), 28, np.uint8)
    colours[mask & prediction] = 205
    colours[mask & ~prediction] = _FALSE_NEGATIVE
    colours[~mask & prediction] = _FALSE_POSITIVE
    return colours


def _draw_legend(draw: ImageDraw.ImageDraw, *, left: float, top: float) -> None:
    for offset, colour, text in ((0, _FALSE_NEGATIVE, "missed"), (72, _FALSE_POSITIVE, "too much")):
        x, y = left + offset, top + 4
        draw.rectangle((x, y, x + 9, y + 9), fill=colour)
        draw.text((x + 14, y + 4), text, fill=_FAINT_TEXT, font=_font(12), anchor="lm")


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
