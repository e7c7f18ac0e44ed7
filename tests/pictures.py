"""Image files for tests."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def save(path: Path, size: tuple[int, int] = (8, 6), mode: str = "RGB", value: Any = 0) -> None:
    """Writes an image of one colour; size is (width, height), as Pillow has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def make_pairs(directory: Path, *names: str) -> None:
    """Writes images/NAME.png and masks/NAME_mask.png, 8 wide and 6 high."""
    for name in names:
        save(directory / "images" / f"{name}.png")
        save(directory / "masks" / f"{name}_mask.png", mode="L")


def damage(path: Path, how: str) -> None:
    """Makes an image file one that can't be read."""
    if how == "truncated":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif how == "no image":
        path.write_text("this is not an image")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "directory":
        path.unlink()
        path.mkdir()
    elif how == "gone":
        path.unlink()
    else:
        save(path, size=(4, 4), mode="I;16")
