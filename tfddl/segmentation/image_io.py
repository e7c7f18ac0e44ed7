"""Image files: decoded to uint8, masks to 0 and 1, scaled to one size."""

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
"""Pillow's mode for a number of channels."""

# The last bytes of a whole file. Some cameras and tools append more: such files are read whole.
_TRAILERS = {"GIF": b"\x00;", "JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_TRAILER_BYTES = 16
# What Pillow's decoders raise on damaged files: most often OSError, but not always.
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
    """What the first and last bytes of an image file say.

    Attributes:
        size: (height, width) as stored, before the rotation that EXIF may ask for.
        is_complete: Whether the file ends as a whole one does. False also where the format has no
            trailer, so that only decoding can tell.
    """

    size: tuple[int, int]
    is_complete: bool


def read_header(path: Path) -> ImageHeader:
    """Reads the header and the trailer of an image; its pixels aren't decoded.

    Raises:
        DataError: It is no image, or has more than 8 bits per channel.
    """
    try:
        with path.open("rb") as file, Image.open(file) as image:
            _require_bytes(image, path)
            file.seek(-min(_TRAILER_BYTES, path.stat().st_size), os.SEEK_END)
            end = _TRAILERS.get(image.format or "")
            is_complete = end is not None and file.read().endswith(end)
            return ImageHeader((image.height, image.width), is_complete)
    except DataError:
        raise
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error


def read_image(path: Path, *, channels: int) -> Image.Image:
    """Decodes an image, rotated as its EXIF orientation says.

    Args:
        path: Of the file. Of an animation the first frame is read.
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
    """Decodes an image and its mask, which must have the same size.

    Returns:
        The image, and the mask as grey values (`scale_mask` decides what is foreground).

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
    """An image scaled to (height, width), as uint8 of (height, width, channels)."""
    pixels = np.asarray(_scaled(image, image_size))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def scale_mask(mask: Image.Image, image_size: tuple[int, int]) -> NDArray[np.uint8]:
    """The foreground of a mask scaled to (height, width), as uint8 0 or 1 of (height, width, 1)."""
    foreground = Image.fromarray(foreground_of(np.asarray(mask)) * np.uint8(255))
    # Scaled first: a pixel is foreground where the foreground covers most of it.
    return (np.asarray(_scaled(foreground, image_size)) > 127).astype(np.uint8)[..., None]


def foreground_of(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """1 where a mask is brighter than half of its maximum, else 0; uint8 of the same shape.

    So masks of 0 and 1, of 0 and 255, and with smooth edges are all read correctly.
    """
    # Nothing is brighter than 0: an empty mask stays empty.
    return (values > values.max() // 2).astype(np.uint8)


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Writes a PNG file, which appears under its name whole or not at all.

    Args:
        path: Of the file, which is replaced if it exists.
        pixels: uint8 of (height, width) or (height, width, channels).

    Raises:
        OSError: It can't be written; no partial file is left.
    """
    # The pid: several processes of a host may write the same synthetic image.
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
