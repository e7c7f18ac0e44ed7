"""How data sets lie on the disk: which layout it is, what belongs together, what has no partner."""

from pathlib import Path

import numpy as np
import pytest

from tests.pictures import make_pairs, save
from tfddl.errors import DataError
from tfddl.segmentation.layout import Arrays, Pairs, find_dataset


def _pairs(directory: Path) -> Pairs:
    found = find_dataset(directory)
    assert isinstance(found, Pairs)
    return found


def _files(directory: Path) -> list[tuple[str, str, str]]:
    return [
        (pair.name, str(pair.image.relative_to(directory)), str(pair.mask.relative_to(directory)))
        for pair in _pairs(directory).pairs
    ]


def test_finds_pairs_of_all_file_types_sorted(tmp_path: Path) -> None:
    for image, mask in (
        ("c.png", "c_mask.png"),
        ("a.JPG", "a_mask.gif"),
        ("b.bmp", "b.tif"),
        ("d.jpeg", "d.tiff"),
        ("e.gif", "e_mask.PNG"),
        ("e_mask.png", "e_mask_mask.png"),
    ):
        save(tmp_path / "images" / image)
        save(tmp_path / "masks" / mask, mode="L")
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    (tmp_path / "images" / "._a.png").write_text("left by another system")
    assert _files(tmp_path) == [
        ("a", "images/a.JPG", "masks/a_mask.gif"),
        ("b", "images/b.bmp", "masks/b.tif"),
        ("c", "images/c.png", "masks/c_mask.png"),
        ("d", "images/d.jpeg", "masks/d.tiff"),
        ("e", "images/e.gif", "masks/e_mask.PNG"),
        ("e_mask", "images/e_mask.png", "masks/e_mask_mask.png"),
    ]
    assert _pairs(tmp_path).problems == ()


def test_carvana_as_unpacked(tmp_path: Path) -> None:
    for name in ("0cdf5b5d0ce1_02", "0cdf5b5d0ce1_01"):
        save(tmp_path / "train" / f"{name}.jpg")
        save(tmp_path / "train_masks" / f"{name}_mask.gif", mode="P")
    assert _files(tmp_path) == [
        (f"{name}", f"train/{name}.jpg", f"train_masks/{name}_mask.gif")
        for name in ("0cdf5b5d0ce1_01", "0cdf5b5d0ce1_02")
    ]


def test_images_and_masks_side_by_side(tmp_path: Path) -> None:
    for name in ("b", "a"):
        save(tmp_path / f"{name}.jpg")
        save(tmp_path / f"{name}_mask.gif", mode="P")
    save(tmp_path / "c.jpg")
    save(tmp_path / "d_mask.gif", mode="P")
    assert _files(tmp_path) == [("a", "a.jpg", "a_mask.gif"), ("b", "b.jpg", "b_mask.gif")]
    assert _pairs(tmp_path).problems == (
        "c: no mask; expected c_mask.gif or c_mask.png",
        f"d_mask.gif: no image of that name in {tmp_path.name}/",
    )


def test_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros(1))
    np.save(tmp_path / "masks.npy", np.zeros(1))
    assert find_dataset(tmp_path) == Arrays(tmp_path)
    (tmp_path / "masks.npy").unlink()  # what is missing is said when they are opened
    assert find_dataset(tmp_path) == Arrays(tmp_path)


def test_lists_everything_without_a_partner(tmp_path: Path) -> None:
    make_pairs(tmp_path, "1", "2", "3", "4", "5")
    (tmp_path / "masks" / "1_mask.png").unlink()
    (tmp_path / "images" / "2.png").unlink()
    save(tmp_path / "images" / "3.jpg")
    save(tmp_path / "masks" / "5_mask.gif", mode="L")
    found = _pairs(tmp_path)
    assert [pair.name for pair in found.pairs] == ["4"]
    assert found.problems == (
        "1: no mask; expected masks/1_mask.png or masks/1.png",
        "3: several images, 3.jpg, 3.png",
        "5: several masks, 5_mask.gif, 5_mask.png",
        "masks/2_mask.png: no image of that name in images/",
    )


EXPECTED = (
    "images/X.png and masks/X_mask.png, or train/X.jpg and train_masks/X_mask.gif, or X.jpg and "
    "X_mask.gif side by side, or images.npy and masks.npy (what tfddl-prepare writes)"
)


def _refusal(directory: Path) -> str:
    with pytest.raises(DataError) as caught:
        find_dataset(directory)
    return str(caught.value)


def test_no_layout_fits(tmp_path: Path) -> None:
    assert _refusal(tmp_path / "none") == (
        f"There is no directory {tmp_path / 'none'}; expected one with {EXPECTED}."
    )
    assert _refusal(tmp_path) == (
        f"{tmp_path} has no images with masks: found nothing; expected {EXPECTED}."
    )
    for name in "cab":
        save(tmp_path / f"{name}.jpg")
    (tmp_path / "more").mkdir()
    assert "found 4 entries (a.jpg, b.jpg, c.jpg, more/); expected" in _refusal(tmp_path)
    for name in "xyz":
        (tmp_path / name).touch()
    assert "found 7 entries (a.jpg, b.jpg, c.jpg, more/, x, …); expected" in _refusal(tmp_path)


def test_a_layout_of_which_half_is_missing(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert _refusal(tmp_path) == f"There is no directory {tmp_path}/masks."
    (tmp_path / "masks").mkdir()
    assert _refusal(tmp_path) == f"There is no image in {tmp_path}; expected {EXPECTED}."


def test_several_layouts_fit(tmp_path: Path) -> None:
    make_pairs(tmp_path, "1")
    np.save(tmp_path / "masks.npy", np.zeros(1))
    (tmp_path / "train").mkdir()
    save(tmp_path / "x_mask.png")
    assert _refusal(tmp_path) == (
        f"{tmp_path} can be read in several ways: it has masks.npy; images/ and masks/; train/; "
        f"x_mask.png beside images. Expected one of {EXPECTED}. HINT: move what doesn't belong to "
        "the data set to another directory."
    )
