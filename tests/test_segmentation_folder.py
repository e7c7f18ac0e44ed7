"""Folders of images and masks: what belongs together, what is wrong with them."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tfddl.errors import DataError
from tfddl.segmentation.folder import find_pairs, load_pairs, split_examples


def _save(path: Path, size: tuple[int, int] = (8, 6), mode: str = "RGB", value: Any = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def _make_pairs(directory: Path, *names: str) -> None:
    for name in names:
        _save(directory / "images" / f"{name}.png")
        _save(directory / "masks" / f"{name}_mask.png", mode="L")


def test_finds_pairs_of_all_kinds_sorted(tmp_path: Path) -> None:
    for image, mask in (
        ("c.png", "c_mask.png"),
        ("a.JPG", "a_mask.gif"),
        ("b.bmp", "b.tif"),
        ("d.jpeg", "d.tiff"),
        ("e.gif", "e_mask.PNG"),
    ):
        _save(tmp_path / "images" / image)
        _save(tmp_path / "masks" / mask, mode="L")
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    (tmp_path / "images" / "._a.png").write_text("left by another system")
    pairs = find_pairs(tmp_path)
    assert [(pair.name, pair.image.name, pair.mask.name) for pair in pairs] == [
        ("a", "a.JPG", "a_mask.gif"),
        ("b", "b.bmp", "b.tif"),
        ("c", "c.png", "c_mask.png"),
        ("d", "d.jpeg", "d.tiff"),
        ("e", "e.gif", "e_mask.PNG"),
    ]


def test_names_everything_that_has_no_partner(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _make_pairs(tmp_path, "1", "2", "3", "4")
    (tmp_path / "masks" / "1_mask.png").unlink()
    (tmp_path / "images" / "2.png").unlink()
    _save(tmp_path / "images" / "3.jpg")
    with pytest.raises(DataError) as caught:
        find_pairs(tmp_path)
    assert str(caught.value) == (
        f"3 of the pairs in {tmp_path} can't be used:\n"
        "  1: no mask; expected masks/1_mask.png or masks/1.png\n"
        "  3: several images, 3.jpg, 3.png\n"
        "  masks/2_mask.png: no image of that name in images/\n"
        "HINT: mend them, or leave them out with --skip_bad (skip_bad=True)."
    )
    with caplog.at_level(logging.WARNING, "absl"):
        assert [pair.name for pair in find_pairs(tmp_path, skip_bad=True)] == ["4"]
    assert caplog.messages == [
        "Left out: 1: no mask; expected masks/1_mask.png or masks/1.png",
        "Left out: 3: several images, 3.jpg, 3.png",
        "Left out: masks/2_mask.png: no image of that name in images/",
    ]


def test_names_the_first_of_many_problems(tmp_path: Path) -> None:
    _make_pairs(tmp_path, *(f"{i:02}" for i in range(13)))
    for mask in (tmp_path / "masks").iterdir():
        mask.unlink()
    with pytest.raises(DataError, match=r"(?s)13 of the pairs.*  09: no mask.*… and 3 more\nHINT"):
        find_pairs(tmp_path)


def test_several_masks_are_a_problem(tmp_path: Path) -> None:
    _make_pairs(tmp_path, "1")
    _save(tmp_path / "masks" / "1_mask.gif", mode="L")
    with pytest.raises(DataError, match=r"1: several masks, 1_mask\.gif, 1_mask\.png"):
        find_pairs(tmp_path)


def test_a_folder_without_pairs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no folder .*images; expected images/X\.png and"):
        find_pairs(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match=r"There is no usable pair in .*; expected images/X\.png"):
        find_pairs(tmp_path)


def _damage(path: Path, how: str) -> None:
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
    else:
        _save(path, size=(4, 4), mode="I;16")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", r"2: masks/2_mask\.png can't be read: .*truncated"),
        ("no image", r"2: masks/2_mask\.png can't be read: cannot identify image file"),
        ("empty", r"2: masks/2_mask\.png can't be read: cannot identify image file"),
        ("directory", r"2: masks/2_mask\.png can't be read: .*Is a directory"),
        ("deep", r"2: 2_mask\.png has more than 8 bits per channel \(mode I;16\); convert it to 8"),
    ],
)
def test_an_unreadable_pair_is_named_or_left_out(
    tmp_path: Path, how: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    _make_pairs(tmp_path, "1", "2", "3")
    _damage(tmp_path / "masks" / "2_mask.png", how)
    pairs = find_pairs(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        load_pairs(pairs, image_size=(6, 8), channels=3)
    assert "1 of the pairs" in str(caught.value)
    assert "--skip_bad" in str(caught.value)

    with caplog.at_level(logging.WARNING, "absl"):
        examples = load_pairs(pairs, image_size=(6, 8), channels=3, skip_bad=True)
    assert examples.names == ("1", "3")
    assert len(examples.images) == len(examples.masks) == 2
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("Left out: 2: ")


def test_image_and_mask_of_different_sizes(tmp_path: Path) -> None:
    _make_pairs(tmp_path, "1")
    _save(tmp_path / "masks" / "1_mask.png", size=(6, 8), mode="L")
    with pytest.raises(
        DataError, match=r"1: 1\.png is 6 x 8, 1_mask\.png is 8 x 6; an image and its mask must"
    ):
        load_pairs(find_pairs(tmp_path), image_size=(6, 8), channels=3)


def test_nothing_left_to_load(tmp_path: Path) -> None:
    _make_pairs(tmp_path, "1")
    _damage(tmp_path / "images" / "1.png", "no image")
    with pytest.raises(DataError, match="There is no usable pair in"):
        load_pairs(find_pairs(tmp_path), image_size=(6, 8), channels=3, skip_bad=True)


@pytest.mark.parametrize(
    ("channels", "pixel"), [(1, [76]), (3, [255, 0, 0]), (4, [255, 0, 0, 255])]
)
def test_loads_bytes_of_the_asked_size_and_channels(
    tmp_path: Path, channels: int, pixel: list[int]
) -> None:
    _save(tmp_path / "images" / "1.png", size=(20, 10), value=(255, 0, 0))
    _save(tmp_path / "masks" / "1.png", size=(20, 10), mode="L", value=255)
    examples = load_pairs(find_pairs(tmp_path), image_size=(5, 10), channels=channels)
    assert examples.images.shape == (1, 5, 10, channels)
    assert examples.images.dtype == examples.masks.dtype == np.uint8
    assert examples.images[0, 2, 2].tolist() == pixel
    assert examples.masks.shape == (1, 5, 10, 1)
    assert np.all(examples.masks == 1)


@pytest.mark.parametrize("foreground", [1, 38, 200, 255])
def test_masks_of_any_brightness(tmp_path: Path, foreground: int) -> None:
    _make_pairs(tmp_path, "1")
    values = np.zeros((6, 8), np.uint8)
    values[:, :4] = foreground
    Image.fromarray(values).save(tmp_path / "masks" / "1_mask.png")
    examples = load_pairs(find_pairs(tmp_path), image_size=(6, 8), channels=3)
    np.testing.assert_array_equal(examples.masks[0, ..., 0], values > 0)


def test_photographs_are_turned_as_their_camera_says(tmp_path: Path) -> None:
    _make_pairs(tmp_path, "1")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (6, 8)).save(tmp_path / "images" / "1.png", exif=exif)
    assert load_pairs(find_pairs(tmp_path), image_size=(6, 8), channels=3).names == ("1",)


def test_split_is_complete_and_not_the_tail() -> None:
    for num_examples in range(2, 40):
        for share in (0.01, 0.1, 0.5, 0.99):
            training, validation = split_examples(num_examples, validation_split=share, seed=1)
            assert sorted([*training, *validation]) == list(range(num_examples))
            assert len(validation) == min(max(round(num_examples * share), 1), num_examples - 1)
    training, validation = split_examples(100, validation_split=0.2, seed=1)
    again = split_examples(100, validation_split=0.2, seed=1)
    np.testing.assert_array_equal(validation, again[1])
    assert validation.tolist() != split_examples(100, validation_split=0.2, seed=2)[1].tolist()
    assert validation.min() < 20


def test_one_example_can_not_be_split() -> None:
    with pytest.raises(DataError, match="There is 1 example; training needs at least 2"):
        split_examples(1, validation_split=0.1, seed=0)
