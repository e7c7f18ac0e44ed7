"""Image files: their pixels as bytes, masks as zeros and ones, one size for all."""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tfddl.errors import DataError

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""How Pillow calls images of so many channels."""

_ENDS = {"GIF": b"\x00;", "JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_END_LENGTH = 16
# What Pillow raises on damaged files; most often an OSError.
_READ_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    struct.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class ImageHeader:
    """What the beginning and the end of an image file tell.

    Attributes:
        size: (height, width) as stored: a camera's note that the image has to be turned is not
            followed.
        is_complete: Whether the file ends as a whole one does; False also where that can't be told
            without reading all of it.
    """

    size: tuple[int, int]
    is_complete: bool


def read_header(path: Path) -> ImageHeader:
    """Reads the first and the last few bytes of an image.

    Raises:
        DataError: It is no image, or has more than 8 bits per channel.
    """
    try:
        with path.open("rb") as file, Image.open(file) as image:
            _require_bytes(image, path)
            file.seek(-min(_END_LENGTH, path.stat().st_size), os.SEEK_END)
            end = _ENDS.get(image.format or "")
            is_complete = end is not None and file.read().endswith(end)
            return ImageHeader((image.height, image.width), is_complete)
    except DataError:
        raise
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error


def read_image(path: Path, *, channels: int) -> Image.Image:
    """Reads an image, turned as its camera says.

    Args:
        path: Of the file; of several frames, the first is read.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).

    Raises:
        DataError: It can't be read, or has more than 8 bits per channel.
    """
    try:
        with Image.open(path) as image:
            _require_bytes(image, path)
            return ImageOps.exif_transpose(image).convert(MODES[channels])
    except DataError:
        raise
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error


def read_pair(image_path: Path, mask_path: Path, *, channels: int) -> tuple[Image.Image, ...]:
    """Reads an image and its mask, which is as large.

    Returns:
        The image, and the mask in grey (what is foreground, `scale_mask` decides).

    Raises:
        DataError: One of them can't be read, or their sizes differ.
    """
    image, mask = read_image(image_path, channels=channels), read_image(mask_path, channels=1)
    if image.size != mask.size:
        raise DataError(
            f"{image_path.name} is {image.height} x {image.width}, {mask_path.name} is "
            f"{mask.height} x {mask.width}; an image and its mask must have the same size"
        )
    return image, mask


def scale_image(image: Image.Image, image_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Scales an image to (height, width): (height, width, channels), uint8."""
    pixels = np.asarray(_scaled(image, image_size))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def scale_mask(mask: Image.Image, image_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Scales the foreground of a mask to (height, width): (height, width, 1), uint8, 0 or 1."""
    foreground = Image.fromarray(foreground_of(np.asarray(mask)) * np.uint8(255))
    return (np.asarray(_scaled(foreground, image_size)) > 127).astype(np.uint8)[..., None]


def foreground_of(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One where a mask is brighter than half of its brightest, else zero.

    So masks of 0 and 1, of 0 and 255 and smooth-edged ones all read well.
    """
    return (values > values.max() // 2).astype(np.uint8)


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Writes (height, width) or (height, width, channels) to a file that appears whole or not.

    Raises:
        OSError: It can't be written; nothing is left behind.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        Image.fromarray(pixels).save(partial, format="PNG", compress_level=3)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _scaled(image: Image.Image, image_size: tuple[int, int]) -> Image.Image:
    height, width = image_size
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _require_bytes(image: Image.Image, path: Path) -> None:
    if image.mode.startswith(("I", "F")):
        raise DataError(
            f"{path.name} has more than 8 bits per channel (mode {image.mode}); convert it to 8 "
            "bits"
        )


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path.parent.name}/{path.name} can't be read: {error}")
