"""Folders of images and masks: which belong together, their pixels, and which are for validation.

A folder has `images/X.png` and, for each, `masks/X_mask.png` or `masks/X.png`; both may also be
.jpg, .jpeg, .bmp, .gif, .tif or .tiff. Other files are passed over.
"""

import os
import struct
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import logging
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tfddl.errors import DataError

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff")

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# How many bad pairs a message names before it only counts them.
_NAMED = 10
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
class Pair:
    """An image and its mask."""

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Examples:
    """Images and masks in memory.

    Attributes:
        names: Of the n pairs.
        images: (n, height, width, channels), uint8, 0..255.
        masks: (n, height, width, 1), uint8, 0 or 1.
    """

    names: tuple[str, ...]
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]


def find_pairs(directory: str | os.PathLike[str], *, skip_bad: bool = False) -> list[Pair]:
    """Finds the images of a folder and the mask of each.

    Args:
        directory: Has the folders `images` and `masks`.
        skip_bad: Leave out (and log) what has no partner, instead of stopping.

    Returns:
        The pairs, sorted by name.

    Raises:
        DataError: There is no such folder, an image has no mask or a mask no image, two files
            have the same name, or no pair is left.
    """
    images = _files(Path(directory) / "images")
    masks = _files(Path(directory) / "masks")
    pairs, problems, used = [], [], set()
    for name, files in sorted(images.items()):
        # An image "1_mask" would have the name of another one's mask: its own comes first.
        found = masks.get(f"{name}_mask") or masks.get(name) or []
        used.update(found)
        if len(files) > 1:
            problems.append(f"{name}: several images, {_names(files)}")
        elif not found:
            problems.append(f"{name}: no mask; expected masks/{name}_mask.png or masks/{name}.png")
        elif len(found) > 1:
            problems.append(f"{name}: several masks, {_names(found)}")
        else:
            pairs.append(Pair(name, files[0], found[0]))
    lonely = sorted(path.name for files in masks.values() for path in files if path not in used)
    problems += [f"masks/{name}: no image of that name in images/" for name in lonely]
    _settle(problems, Path(directory), skip_bad=skip_bad)
    _require_some(len(pairs), Path(directory))
    return pairs


def load_pairs(
    pairs: Sequence[Pair], *, image_size: tuple[int, int], channels: int, skip_bad: bool = False
) -> Examples:
    """Reads pairs into memory, as bytes and scaled to one size.

    A pixel of a mask is foreground where it is brighter than half of the mask's brightest: so
    masks of 0 and 1, of 0 and 255 and smooth-edged ones all read well.

    Args:
        pairs: At least one.
        image_size: (height, width) in pixels.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
        skip_bad: Leave out (and log) pairs that can't be read, instead of stopping.

    Returns:
        The examples, in the order of the pairs: n * height * width * (channels + 1) bytes, which
        every worker holds.

    Raises:
        DataError: A file can't be read, an image and its mask have different sizes, or no pair
            is left.
    """
    height, width = image_size
    images = np.empty((len(pairs), height, width, channels), np.uint8)
    masks = np.empty((len(pairs), height, width, 1), np.uint8)
    names: list[str] = []
    problems: list[str] = []
    for pair in pairs:
        try:
            image, mask = _read(pair, mode=_MODES[channels])
        except DataError as error:
            problems.append(f"{pair.name}: {error}")
            continue
        images[len(names)] = _scaled(image, image_size).reshape(height, width, channels)
        masks[len(names), ..., 0] = _scaled_mask(mask, image_size)
        names.append(pair.name)
    directory = pairs[0].image.parent.parent if pairs else Path()
    _settle(problems, directory, skip_bad=skip_bad)
    _require_some(len(names), directory)
    return Examples(tuple(names), images[: len(names)], masks[: len(names)])


def split_examples(
    num_examples: int, *, validation_split: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divides examples at random into those to train on and those to validate with.

    Args:
        num_examples: At least 2.
        validation_split: The share for validation, in (0, 1); it is rounded to whole examples,
            but at least one remains on either side.
        seed: The same seed divides alike, on every worker.

    Returns:
        The indices to train on and the indices to validate with, each sorted.

    Raises:
        DataError: There are fewer than 2 examples.
    """
    if num_examples < 2:
        raise DataError(
            f"There is {num_examples} example; training needs at least 2, one to train on and one "
            "to validate with."
        )
    num_validation = min(max(round(num_examples * validation_split), 1), num_examples - 1)
    order = np.random.default_rng(seed).permutation(num_examples)
    return np.sort(order[num_validation:]), np.sort(order[:num_validation])


def _files(directory: Path) -> dict[str, list[Path]]:
    """The image files of a directory by their name without the extension."""
    if not directory.is_dir():
        raise DataError(
            f"There is no folder {directory}; expected images/X.png and masks/X_mask.png in "
            f"{directory.parent}."
        )
    files = defaultdict(list)
    for path in sorted(directory.iterdir()):
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."):
            files[path.stem].append(path)
    return files


def _read(pair: Pair, *, mode: str) -> tuple[Image.Image, Image.Image]:
    image, mask = _open(pair.image, mode), _open(pair.mask, "L")
    if image.size != mask.size:
        raise DataError(
            f"{pair.image.name} is {_size(image)}, {pair.mask.name} is {_size(mask)}; an image "
            "and its mask must have the same size"
        )
    return image, mask


def _open(path: Path, mode: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(
                    f"{path.name} has more than 8 bits per channel (mode {image.mode}); convert "
                    "it to 8 bits"
                )
            return ImageOps.exif_transpose(image).convert(mode)
    except DataError:
        raise
    except _READ_ERRORS as error:
        raise DataError(f"{path.parent.name}/{path.name} can't be read: {error}") from error


def _scaled(image: Image.Image, image_size: tuple[int, int]) -> NDArray[np.uint8]:
    height, width = image_size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _scaled_mask(mask: Image.Image, image_size: tuple[int, int]) -> NDArray[np.bool_]:
    values = np.asarray(mask)
    # Compared without overflow: 2 * 200 doesn't fit into a byte.
    foreground = np.where(values > values.max() // 2, 255, 0).astype(np.uint8)
    return _scaled(Image.fromarray(foreground), image_size) > 127


def _size(image: Image.Image) -> str:
    return f"{image.height} x {image.width}"


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths)


def _settle(problems: Sequence[str], directory: Path, *, skip_bad: bool) -> None:
    """Raises the problems, or logs that what has them is left out."""
    if skip_bad:
        for problem in problems:
            logging.warning("Left out: %s", problem)
    elif problems:
        named = "".join(f"\n  {problem}" for problem in problems[:_NAMED])
        more = f"\n  … and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise DataError(
            f"{len(problems)} of the pairs in {directory} can't be used:{named}{more}\n"
            "HINT: mend them, or leave them out with --skip_bad (skip_bad=True)."
        )


def _require_some(num_pairs: int, directory: Path) -> None:
    if not num_pairs:
        raise DataError(
            f"There is no usable pair in {directory}; expected images/X.png and masks/X_mask.png "
            f"({', '.join(EXTENSIONS)})."
        )
