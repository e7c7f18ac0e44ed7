"""Which files of a folder belong together: how a data set lies on the disk.

One of these, found by looking:

* ``images/X.png`` and ``masks/X_mask.png`` (or ``masks/X.png``);
* ``train/X.jpg`` and ``train_masks/X_mask.gif``: Carvana's, as it is unpacked;
* ``X.jpg`` and ``X_mask.gif`` side by side;
* ``images.npy`` and ``masks.npy``, as `tfddl-prepare` writes them.

Images and masks may be .bmp, .gif, .jpeg, .jpg, .png, .tif or .tiff; other files are passed over.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tfddl.errors import DataError
from tfddl.segmentation.image_io import EXTENSIONS

IMAGES_NPY, MASKS_NPY, NAMES_JSON = "images.npy", "masks.npy", "names.json"

_FOLDERS = (("images", "masks"), ("train", "train_masks"))
_EXPECTED = (
    "images/X.png and masks/X_mask.png, or train/X.jpg and train_masks/X_mask.gif, or X.jpg and "
    f"X_mask.gif side by side, or {IMAGES_NPY} and {MASKS_NPY} (what tfddl-prepare writes)"
)
# How many entries of a folder a message names.
_NAMED = 5


@dataclass(frozen=True)
class Pair:
    """An image and its mask."""

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Pairs:
    """Files that belong together.

    Attributes:
        directory: Where they were found.
        pairs: Sorted by name.
        problems: What has no partner, or several, in words.
    """

    directory: Path
    pairs: tuple[Pair, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Arrays:
    """A folder with images.npy and masks.npy."""

    directory: Path


def find_dataset(directory: str | os.PathLike[str]) -> Pairs | Arrays:
    """Finds out how a data set lies in a folder, and what belongs together there.

    Args:
        directory: Of one of the layouts at the top of this file.

    Returns:
        The pairs of files, or the folder of arrays; neither is read yet.

    Raises:
        DataError: There is no such folder, none or several of the layouts are there, or no image
            has a mask.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise DataError(f"There is no folder {directory}; expected one with {_EXPECTED}.")
    found = _layouts(directory)
    if len(found) != 1:
        raise DataError(_what_is_wrong(directory, found))
    (layout,) = found.values()
    return layout if isinstance(layout, Arrays) else _pairs(layout)


def image_files(directory: Path) -> dict[str, list[Path]]:
    """The image files of a folder by their name without the extension, sorted.

    Raises:
        DataError: There is no such folder.
    """
    if not directory.is_dir():
        raise DataError(f"There is no folder {directory}.")
    files = defaultdict(list)
    for path in sorted(directory.iterdir()):
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."):
            files[path.stem].append(path)
    return files


@dataclass(frozen=True)
class _Folders:
    """Where images and masks lie: two folders, or one."""

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


def _layouts(directory: Path) -> dict[str, _Folders | Arrays]:
    """The layouts that are there, at least in part, by what shows them."""
    found: dict[str, _Folders | Arrays] = {}
    arrays = [name for name in (IMAGES_NPY, MASKS_NPY) if (directory / name).exists()]
    if arrays:
        found[" and ".join(arrays)] = Arrays(directory)
    for pair in _FOLDERS:
        folders = [f"{name}/" for name in pair if (directory / name).is_dir()]
        if folders:
            found[" and ".join(folders)] = _Folders(directory, *pair)
    beside = _Folders(directory)
    _, masks = beside.files()
    if masks:
        found[f"{min(masks.values())[0].name} beside images"] = beside
    return found


def _what_is_wrong(directory: Path, found: dict[str, _Folders | Arrays]) -> str:
    if found:
        return (
            f"{directory} can be read in several ways: it has {'; '.join(found)}. Expected one of "
            f"{_EXPECTED}. HINT: move what doesn't belong to the data set to another folder."
        )
    entries = sorted(path.name + "/" * path.is_dir() for path in directory.iterdir())
    shown = ", ".join(entries[:_NAMED]) + (", …" if len(entries) > _NAMED else "")
    what = f"{len(entries)} entries ({shown})" if entries else "nothing"
    return f"{directory} has no images with masks: found {what}; expected {_EXPECTED}."


def _pairs(folders: _Folders) -> Pairs:
    images, masks = folders.files()
    pairs, problems, used = [], [], set()
    for name, files in sorted(images.items()):
        # An image "1_mask" would have the name of another one's mask: its own comes first.
        found = masks.get(f"{name}_mask") or masks.get(name) or []
        used.update(found)
        if len(files) > 1:
            problems.append(f"{name}: several images, {_names(files)}")
        elif not found:
            problems.append(f"{name}: no mask; expected {folders.expected(name)}")
        elif len(found) > 1:
            problems.append(f"{name}: several masks, {_names(found)}")
        else:
            pairs.append(Pair(name, files[0], found[0]))
    lonely = sorted(path for paths in masks.values() for path in paths if path not in used)
    problems += [
        f"{path.relative_to(folders.directory)}: no image of that name in "
        f"{folders.images or folders.directory.name}/"
        for path in lonely
    ]
    if not pairs and not problems:
        raise DataError(f"There is no image in {folders.directory}; expected {_EXPECTED}.")
    return Pairs(folders.directory, tuple(pairs), tuple(problems))


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths)
