"""The examples of a data set: read one at a time, none is kept in memory."""

from __future__ import annotations

import abc
import dataclasses
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tfddl.errors import DataError
from tfddl.segmentation.image_io import (
    foreground_of,
    read_header,
    read_pair,
    scale_image,
    scale_mask,
)
from tfddl.segmentation.layout import IMAGES_NPY, MASKS_NPY, NAMES_JSON, Arrays, Pair, find_dataset

if TYPE_CHECKING:
    from tfddl._src.data.memory_map import MappedRows

Example = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""An image (height, width, channels), 0..255, and its mask (height, width, 1), 0 or 1."""

# How many problems an error lists; the rest is only counted.
_NAMED = 10


class Examples(abc.ABC):
    """Images and masks of one size, by number.

    Attributes:
        directory: Where they come from.
    """

    directory: Path

    def __len__(self) -> int:
        return len(self.names)

    @property
    @abc.abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of the examples, in order; unique within a data set of files."""

    @abc.abstractmethod
    def load(self, index: int) -> Example:
        """Reads one example.

        Raises:
            DataError: It can't be read.
        """

    @abc.abstractmethod
    def find_problem(self, index: int, *, thorough: bool) -> str | None:
        """What is wrong with an example; None if nothing is.

        Args:
            index: Which example.
            thorough: Decode its files. Otherwise only headers and trailers are read, and files
                decoded where these look wrong: damage in between isn't found.
        """

    @abc.abstractmethod
    def without(self, indices: Collection[int]) -> Examples:
        """The examples but for some, in order."""


@dataclass(frozen=True)
class FileExamples(Examples):
    """Image files, decoded and scaled at each `load`.

    Attributes:
        pairs: An image and a mask each.
        image_size: (height, width) in pixels.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
    """

    directory: Path
    pairs: tuple[Pair, ...]
    image_size: tuple[int, int]
    channels: int

    @property
    def names(self) -> tuple[str, ...]:
        """Of the examples, in order."""
        return tuple(pair.name for pair in self.pairs)

    def load(self, index: int) -> Example:
        """Reads one example."""
        pair = self.pairs[index]
        try:
            image, mask = read_pair(pair.image, pair.mask, channels=self.channels)
        except DataError as error:
            raise DataError(f"{pair.name}: {error}") from error
        return scale_image(image, self.image_size), scale_mask(mask, self.image_size)

    def find_problem(self, index: int, *, thorough: bool) -> str | None:
        """What is wrong with an example."""
        pair = self.pairs[index]
        try:
            image, mask = read_header(pair.image), read_header(pair.mask)
            are_alike = image.size == mask.size  # If not, EXIF may say that one is rotated.
            if thorough or not (are_alike and image.is_complete and mask.is_complete):
                read_pair(pair.image, pair.mask, channels=self.channels)
        except DataError as error:
            return f"{pair.name}: {error}"
        return None

    def without(self, indices: Collection[int]) -> FileExamples:
        """The others, in order."""
        left = tuple(pair for i, pair in enumerate(self.pairs) if i not in indices)
        return dataclasses.replace(self, pairs=left)


@dataclass(frozen=True)
class ArrayExamples(Examples):
    """Rows of images.npy and masks.npy.

    Rows are read as `shard_dataset` does it (`MappedRows`): pages of the file don't stay in the
    process, and a file that is cut short is an error instead of a SIGBUS.

    Attributes:
        images: (n, height, width, channels), uint8, 0..255.
        masks: (n, height, width, 1), uint8 or bool, background and foreground.
        row_names: Of all n rows.
        rows: The row of each example.
    """

    directory: Path
    images: MappedRows | NDArray[np.uint8]
    masks: MappedRows | NDArray[np.uint8]
    row_names: tuple[str, ...]
    rows: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the examples, in order."""
        return tuple(self.row_names[row] for row in self.rows)

    @classmethod
    def open(cls, directory: Path, *, image_size: tuple[int, int], channels: int) -> ArrayExamples:
        """Opens images.npy and masks.npy; names.json is optional.

        Raises:
            DataError: One of them is missing or cut short, or they don't fit each other or the
                size and channels.
        """
        # Imported here: it loads TensorFlow, which tfddl-prepare does without.
        from tfddl._src.data.memory_map import MappedRows

        images, masks = _map(directory / IMAGES_NPY), _map(directory / MASKS_NPY)
        _check_arrays(images, masks, directory)
        height, width, found = images.shape[1:]
        if (height, width) != image_size or found != channels:
            raise DataError(
                f"{directory / IMAGES_NPY} has images of {height} x {width} x {found}, but "
                f"--image_size is {image_size[0]}x{image_size[1]} and --in_channels {channels}. "
                f"HINT: give --image_size={height}x{width} --in_channels={found}, or make arrays "
                "of the other size with tfddl-prepare."
            )
        names = _names(directory / NAMES_JSON, len(images))
        # Rows that aren't contiguous in the file (Fortran order) are read through the mapping.
        return cls(
            directory,
            MappedRows.of(images, IMAGES_NPY) or images,
            MappedRows.of(masks, MASKS_NPY) or masks,
            names,
            tuple(range(len(images))),
        )

    def load(self, index: int) -> Example:
        """Reads one example."""
        row = np.array([self.rows[index]])
        return self.images[row][0], foreground_of(self.masks[row][0].astype(np.uint8))

    def find_problem(self, index: int, *, thorough: bool) -> str | None:
        """None: `open` has checked all that can be wrong."""
        return None

    def without(self, indices: Collection[int]) -> ArrayExamples:
        """The others, in order."""
        left = tuple(row for i, row in enumerate(self.rows) if i not in indices)
        return dataclasses.replace(self, rows=left)


def open_examples(
    directory: str | os.PathLike[str], *, image_size: tuple[int, int], channels: int
) -> tuple[Examples, tuple[str, ...]]:
    """Opens a data set of any layout; no image is decoded yet.

    Args:
        directory: In one of the layouts of `tfddl.segmentation.layout`.
        image_size: (height, width) in pixels: files are scaled to it, arrays must have it.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).

    Returns:
        The examples, sorted by name, and a line for each file that can't be used.

    Raises:
        DataError: There is no data set, or arrays that don't fit.
    """
    found = find_dataset(directory)
    if isinstance(found, Arrays):
        return ArrayExamples.open(found.directory, image_size=image_size, channels=channels), ()
    return FileExamples(found.directory, found.pairs, image_size, channels), found.problems


def require_usable(
    examples: Examples, problems: Sequence[str], *, skip_bad: bool, hint: str = "--skip_bad"
) -> None:
    """Checks that there are examples, and no problems unless these may be left out.

    Raises:
        DataError: There are problems, which the message lists, or there is no example.
    """
    if problems and not skip_bad:
        raise DataError(
            f"{len(problems)} of the pairs in {examples.directory} can't be used:"
            f"{_listed(problems)}\nHINT: repair them, or leave them out with {hint}."
        )
    if not len(examples):
        raise DataError(
            f"There is no usable pair in {examples.directory}: all {len(problems)} have been left "
            f"out.{_listed(problems)}"
        )


def split_examples(
    num_examples: int, *, validation_split: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Splits examples at random into training and validation examples.

    Args:
        num_examples: At least 2.
        validation_split: The fraction for validation, in (0, 1), rounded to whole examples; at
            least one remains on either side.
        seed: The same seed gives the same split, on every worker.

    Returns:
        Indices of the training examples and of the validation examples, int64, each sorted.

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


def _listed(problems: Sequence[str]) -> str:
    named = "".join(f"\n  {problem}" for problem in problems[:_NAMED])
    return named + (f"\n  … and {len(problems) - _NAMED} more" if len(problems) > _NAMED else "")


def _map(path: Path) -> NDArray[np.uint8]:
    try:
        array: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    except FileNotFoundError as error:
        raise DataError(
            f"There is no {path}; {IMAGES_NPY} and {MASKS_NPY} belong together. HINT: run "
            "tfddl-prepare again if it was broken off."
        ) from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path} can't be read, or is cut short: {error}. HINT: make it again with "
            "tfddl-prepare."
        ) from error
    return array


def _check_arrays(images: NDArray[np.uint8], masks: NDArray[np.uint8], directory: Path) -> None:
    expected = (
        f"expected {IMAGES_NPY} of (n, height, width, channels), uint8, and {MASKS_NPY} of "
        "(n, height, width, 1), uint8, 0 or 1"
    )
    is_right = (
        images.ndim == 4
        and images.dtype == np.uint8
        and masks.dtype in (np.uint8, np.bool_)
        and masks.shape == (*images.shape[:3], 1)
    )
    if not is_right:
        raise DataError(
            f"The arrays in {directory} don't fit: {IMAGES_NPY} is {images.shape}, {images.dtype}, "
            f"and {MASKS_NPY} {masks.shape}, {masks.dtype}; {expected}."
        )
    if 0 in images.shape:
        raise DataError(f"{directory / IMAGES_NPY} is empty, {images.shape}; {expected}.")


def _names(path: Path, num_examples: int) -> tuple[str, ...]:
    """The names in names.json; numbers without it."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return tuple(f"{i:06}" for i in range(num_examples))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read: {error}") from error
    if not isinstance(names, list) or len(names) != num_examples:
        raise DataError(
            f"{path} has {len(names) if isinstance(names, list) else 'no list of'} names, but "
            f"{IMAGES_NPY} {num_examples} images. HINT: make both again with tfddl-prepare."
        )
    return tuple(map(str, names))
