"""Finds the data set in a directory: which image has which mask.

One of these layouts, recognized by the names that are there:

* ``images/X.png`` and ``masks/X_mask.png`` (or ``masks/X.png``);
* ``train/X.jpg`` and ``train_masks/X_mask.gif``: Kaggle's Carvana data, as unpacked;
* ``X.jpg`` and ``X_mask.gif`` side by side;
* ``images.npy`` and ``masks.npy``, as `tfddl-prepare` writes them.

Images and masks may be .bmp, .gif, .jpeg, .jpg, .png, .tif or .tiff; other files are ignored.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tfddl.errors import DataError
from tfddl.segmentation.image_io import EXTENSIONS

IMAGES_NPY, MASKS_NPY, NAMES_JSON = "images.npy", "masks.npy", "names.json"

_DIRECTORIES = (("images", "masks"), ("train", "train_masks"))
_EXPECTED = (
    "images/X.png and masks/X_mask.png, or train/X.jpg and train_masks/X_mask.gif, or X.jpg and "
    f"X_mask.gif side by side, or {IMAGES_NPY} and {MASKS_NPY} (what tfddl-prepare writes)"
)
# How many entries of a directory an error names.
_NAMED = 5


@dataclass(frozen=True)
class Pair:
    """An image and its mask."""

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Pairs:
    """A data set of files.

    Attributes:
        directory: Where they were found.
        pairs: Sorted by name.
        problems: A line for each image or mask without a partner, or with several.
    """

    directory: Path
    pairs: tuple[Pair, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Arrays:
    """A directory with images.npy and masks.npy."""

    directory: Path


def find_dataset(directory: str | os.PathLike[str]) -> Pairs | Arrays:
    """Recognizes the layout of a directory and pairs its files.

    Args:
        directory: In one of the layouts at the top of this file.

    Returns:
        The pairs of files, or the directory of arrays; no file is opened.

    Raises:
        DataError: There is no such directory, it has none or several of the layouts, or no image.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise DataError(f"There is no directory {directory}; expected one with {_EXPECTED}.")
    found = _layouts(directory)
    if len(found) != 1:
        raise DataError(_describe_layouts(directory, found))
    (layout,) = found.values()
    return layout if isinstance(layout, Arrays) else _pairs(layout)


def image_files(directory: Path) -> dict[str, list[Path]]:
    """The image files of a directory by their name without the extension, sorted.

    Raises:
        DataError: There is no such directory.
    """
    if not directory.is_dir():
        raise DataError(f"There is no directory {directory}.")
    files = defaultdict(list)
    for path in sorted(directory.iterdir()):
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."):
            files[path.stem].append(path)
    return files


@dataclass(frozen=True)
class _Directories:
    """Where images and masks are: in two subdirectories, or side by side."""

    directory: Path
    images: str = ""
    masks: str = ""

    def files(self) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
        if self.images:
            return image_files(self.directory / self.images), image_files(
                self.directory / self.masks
            )
        files = image_files(self.directory)
        masks = {name: paths for name, paths in files.items() if name.endswith("_mask")}
        return {name: paths for name, paths in files.items() if name not in masks}, masks

    def expected(self, name: str) -> str:
        if not self.images:
            return f"{name}_mask.gif or {name}_mask.png"
        return f"{self.masks}/{name}_mask.png or {self.masks}/{name}.png"


def _layouts(directory: Path) -> dict[str, _Directories | Arrays]:
    """The layouts that are there, at least in part, by the names that indicate them."""
    found: dict[str, _Directories | Arrays] = {}
    arrays = [name for name in (IMAGES_NPY, MASKS_NPY) if (directory / name).exists()]
    if arrays:
        found[" and ".join(arrays)] = Arrays(directory)
    for pair in _DIRECTORIES:
        directories = [f"{name}/" for name in pair if (directory / name).is_dir()]
        if directories:
            found[" and ".join(directories)] = _Directories(directory, *pair)
    beside = _Directories(directory)
    _, masks = beside.files()
    if masks:
        found[f"{min(masks.values())[0].name} beside images"] = beside
    return found


def _describe_layouts(directory: Path, found: dict[str, _Directories | Arrays]) -> str:
    if found:
        return (
            f"{directory} can be read in several ways: it has {'; '.join(found)}. Expected one of "
            f"{_EXPECTED}. HINT: move what doesn't belong to the data set to another directory."
        )
    entries = sorted(path.name + "/" * path.is_dir() for path in directory.iterdir())
    shown = ", ".join(entries[:_NAMED]) + (", …" if len(entries) > _NAMED else "")
    what = f"{len(entries)} entries ({shown})" if entries else "nothing"
    return f"{directory} has no images with masks: found {what}; expected {_EXPECTED}."


def _pairs(directories: _Directories) -> Pairs:
    images, masks = directories.files()
    pairs, problems, used = [], [], set()
    for name, files in sorted(images.items()):
        # X_mask before X: among equal names, an image "1_mask" may have a mask "1_mask_mask".
        found = masks.get(f"{name}_mask") or masks.get(name) or []
        used.update(found)
        if len(files) > 1:
            problems.append(f"{name}: several images, {_names(files)}")
        elif not found:
            problems.append(f"{name}: no mask; expected {directories.expected(name)}")
        elif len(found) > 1:
            problems.append(f"{name}: several masks, {_names(found)}")
        else:
            pairs.append(Pair(name, files[0], found[0]))
    unpaired = sorted(path for paths in masks.values() for path in paths if path not in used)
    problems += [
        f"{path.relative_to(directories.directory)}: no image of that name in "
        f"{directories.images or directories.directory.name}/"
        for path in unpaired
    ]
    if not pairs and not problems:
        raise DataError(f"There is no image in {directories.directory}; expected {_EXPECTED}.")
    return Pairs(directories.directory, tuple(pairs), tuple(problems))


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths)
