"""Examples: what is read of files and arrays, and what is wrong with them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pictures import damage, make_pairs, save
from tfddl.errors import DataError
from tfddl.segmentation.examples import (
    ArrayExamples,
    Examples,
    open_examples,
    require_usable,
    split_examples,
)
from tfddl.segmentation.image_io import EXTENSIONS


def _open(directory: Path, *, channels: int = 3) -> Examples:
    examples, problems = open_examples(directory, image_size=(6, 8), channels=channels)
    assert problems == ()
    return examples


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "2: masks/2_mask.png can't be read: image file is truncated"),
        ("no image", "2: masks/2_mask.png can't be read: cannot identify image file"),
        ("empty", "2: masks/2_mask.png can't be read: cannot identify image file"),
        ("directory", "2: masks/2_mask.png can't be read: [Errno 21] Is a directory"),
        ("gone", "2: masks/2_mask.png can't be read: [Errno 2] No such file or directory"),
        ("deep", "2: 2_mask.png has more than 8 bits per channel (mode I;16); convert it to 8"),
    ],
)
def test_an_unreadable_pair_is_named(tmp_path: Path, how: str, message: str) -> None:
    make_pairs(tmp_path, "1", "2", "3")
    # As large as the mask that will be cut short: only reading all of it shows the damage.
    save(tmp_path / "images" / "2.png", size=(64, 64))
    examples = _open(tmp_path)
    damage(tmp_path / "masks" / "2_mask.png", how)
    with pytest.raises(DataError) as caught:
        examples.load(1)
    assert str(caught.value).startswith(message)
    found = [examples.find_problem(i, thorough=True) or "" for i in range(3)]
    assert [text.startswith(message) for text in found] == [False, True, False]
    quickly = [examples.find_problem(i, thorough=False) or "" for i in range(3)]
    assert quickly == found

    left = examples.without({1})
    assert left.names == ("1", "3")
    assert len(left) == 2
    left.load(1)


@pytest.mark.parametrize("kind", EXTENSIONS)
def test_truncated_files_are_found_by_their_trailer(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    for name in ("images/1", "masks/1_mask"):
        path = tmp_path / f"{name}{kind}"
        path.parent.mkdir()
        Image.fromarray(rng.integers(0, 255, (40, 50), np.uint8)).save(path)
    examples = _open(tmp_path)
    assert examples.find_problem(0, thorough=False) is None
    path.write_bytes(path.read_bytes()[:-50])
    found = examples.find_problem(0, thorough=False) or ""
    assert found.startswith(f"1: masks/1_mask{kind} can't be read: ")


def test_damage_inside_is_found_by_decoding(tmp_path: Path) -> None:
    make_pairs(tmp_path, "1")
    path = tmp_path / "images" / "1.png"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 255
    path.write_bytes(content)
    examples = _open(tmp_path)
    assert examples.find_problem(0, thorough=False) is None
    assert "images/1.png can't be read: " in (examples.find_problem(0, thorough=True) or "")


def test_image_and_mask_of_different_sizes(tmp_path: Path) -> None:
    make_pairs(tmp_path, "1")
    save(tmp_path / "masks" / "1_mask.png", size=(6, 8), mode="L")
    message = "1: 1.png is 6 x 8, 1_mask.png is 8 x 6; an image and its mask must have the same"
    assert (_open(tmp_path).find_problem(0, thorough=False) or "").startswith(message)
    with pytest.raises(DataError, match=message):
        _open(tmp_path).load(0)


def test_photographs_are_rotated_by_exif(tmp_path: Path) -> None:
    make_pairs(tmp_path, "1")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (6, 8)).save(tmp_path / "images" / "1.png", exif=exif)
    examples = _open(tmp_path)
    assert examples.find_problem(0, thorough=False) is None
    assert examples.load(0)[0].shape == (6, 8, 3)


@pytest.mark.parametrize(
    ("channels", "pixel"), [(1, [76]), (3, [255, 0, 0]), (4, [255, 0, 0, 255])]
)
def test_loads_uint8_of_the_requested_size_and_channels(
    tmp_path: Path, channels: int, pixel: list[int]
) -> None:
    save(tmp_path / "images" / "1.png", size=(20, 10), value=(255, 0, 0))
    save(tmp_path / "masks" / "1.png", size=(20, 10), mode="L", value=255)
    image, mask = _open(tmp_path, channels=channels).load(0)
    assert image.shape == (6, 8, channels)
    assert image.dtype == mask.dtype == np.uint8
    assert image[2, 2].tolist() == pixel
    assert mask.shape == (6, 8, 1)
    assert np.all(mask == 1)


def _drawn() -> np.ndarray:
    values = np.zeros((6, 8), np.uint8)
    values[:, :3] = 1
    return values


@pytest.mark.parametrize("foreground", [1, 38, 200, 255])
@pytest.mark.parametrize("kind", ["png", "gif"])
def test_masks_of_any_brightness(tmp_path: Path, foreground: int, kind: str) -> None:
    save(tmp_path / "images" / "1.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(_drawn() * np.uint8(foreground)).save(tmp_path / "masks" / f"1_mask.{kind}")
    np.testing.assert_array_equal(_open(tmp_path).load(0)[1][..., 0], _drawn())


@pytest.mark.parametrize(
    ("palette", "inverted"),
    [
        ([0, 0, 0, 255, 255, 255], False),  # Carvana's
        ([0, 0, 0, 1, 1, 1], False),
        ([0, 0, 0, 128, 0, 0], False),
        ([255, 255, 255, 0, 0, 0], True),  # what is bright counts, not its number
    ],
)
def test_masks_with_a_palette(tmp_path: Path, palette: list[int], inverted: bool) -> None:
    save(tmp_path / "1.jpg")
    mask = Image.fromarray(_drawn(), mode="P")
    mask.putpalette(palette)
    mask.save(tmp_path / "1_mask.gif")
    np.testing.assert_array_equal(_open(tmp_path).load(0)[1][..., 0], _drawn() ^ inverted)


def test_problems_are_named_or_left_out(tmp_path: Path) -> None:
    make_pairs(tmp_path, "1")
    examples = _open(tmp_path)
    require_usable(examples, (), skip_bad=False)
    require_usable(examples, ("x: bad",), skip_bad=True)
    with pytest.raises(DataError) as caught:
        require_usable(examples, [f"{i}: bad" for i in range(13)], skip_bad=False)
    assert str(caught.value).splitlines() == [
        f"13 of the pairs in {tmp_path} can't be used:",
        *(f"  {i}: bad" for i in range(10)),
        "  … and 3 more",
        "HINT: repair them, or leave them out with --skip_bad.",
    ]
    with pytest.raises(
        DataError, match=r"no usable pair in .*: all 1 have been left out\.\n  1: b"
    ):
        require_usable(examples.without({0}), ["1: bad"], skip_bad=True)


def _write_arrays(directory: Path, *, num_examples: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_examples, 6, 8, 3), np.uint8)
    masks = rng.integers(0, 2, (num_examples, 6, 8, 1), np.uint8)
    np.save(directory / "images.npy", images)
    np.save(directory / "masks.npy", masks)
    return images, masks


def test_arrays_are_read_row_by_row(tmp_path: Path) -> None:
    images, masks = _write_arrays(tmp_path)
    examples = _open(tmp_path)
    assert isinstance(examples, ArrayExamples)
    assert examples.names == ("000000", "000001", "000002")
    (tmp_path / "names.json").write_text(json.dumps(["a", "b", "c"]))
    examples = _open(tmp_path).without({1})
    assert examples.names == ("a", "c")
    image, mask = examples.load(1)
    np.testing.assert_array_equal(image, images[2])
    np.testing.assert_array_equal(mask, masks[2])
    assert type(image) is type(mask) is np.ndarray  # nothing that holds on to the file
    path = tmp_path / "images.npy"
    path.write_bytes(path.read_bytes()[:-1])  # Through a mapping, a large file would be a SIGBUS.
    with pytest.raises(DataError, match=r"images\.npy, which now ends before byte .*: it was cut"):
        examples.load(1)


def test_arrays_in_fortran_order_are_read_too(tmp_path: Path) -> None:
    images, masks = _write_arrays(tmp_path)
    np.save(tmp_path / "images.npy", np.asfortranarray(images))
    image, mask = _open(tmp_path).load(2)
    np.testing.assert_array_equal(image, images[2])
    np.testing.assert_array_equal(mask, masks[2])


@pytest.mark.parametrize("foreground", [True, 1, 255])
def test_masks_in_arrays_may_be_of_zeros_and_anything(tmp_path: Path, foreground: int) -> None:
    _, masks = _write_arrays(tmp_path)
    np.save(tmp_path / "masks.npy", np.where(masks > 0, foreground, 0).astype(np.uint8))
    if foreground is True:
        np.save(tmp_path / "masks.npy", masks > 0)
    np.testing.assert_array_equal(_open(tmp_path).load(1)[1], masks[1])


@pytest.mark.parametrize(
    ("images", "masks", "said"),
    [
        (((3, 6, 8, 3), "u1"), ((2, 6, 8, 1), "u1"), r"\(3, 6, 8, 3\), uint8, and masks.npy \(2"),
        (((3, 6, 8, 3), "f4"), ((3, 6, 8, 1), "u1"), r"images.npy is \(3, 6, 8, 3\), float32"),
        (((3, 6, 8, 3), "u1"), ((3, 6, 8, 1), "f4"), r"masks.npy \(3, 6, 8, 1\), float32"),
        (((3, 6, 8), "u1"), ((3, 6, 8), "u1"), r"images.npy is \(3, 6, 8\)"),
        (((3, 6, 8, 3), "u1"), ((3, 8, 6, 1), "u1"), r"masks.npy \(3, 8, 6, 1\)"),
        (((0, 6, 8, 3), "u1"), ((0, 6, 8, 1), "u1"), r"images.npy is empty, \(0, 6, 8, 3\)"),
        (((3, 8, 8, 3), "u1"), ((3, 8, 8, 1), "u1"), "give --image_size=8x8 --in_channels=3, or"),
        (((3, 6, 8, 1), "u1"), ((3, 6, 8, 1), "u1"), "give --image_size=6x8 --in_channels=1, or"),
    ],
)
def test_arrays_that_do_not_fit(
    tmp_path: Path,
    images: tuple[tuple[int, ...], str],
    masks: tuple[tuple[int, ...], str],
    said: str,
) -> None:
    np.save(tmp_path / "images.npy", np.zeros(images[0], images[1]))
    np.save(tmp_path / "masks.npy", np.zeros(masks[0], masks[1]))
    with pytest.raises(DataError, match=said):
        _open(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"There is no .*masks\.npy; images\.npy and masks\.npy belong together\. HINT: run"),
        (slice(None, -1), r"masks\.npy can't be read, or is cut short: mmap length is greater"),
        (slice(20), r"masks\.npy can't be read, or is cut short: "),
        (slice(0), r"masks\.npy can't be read, or is cut short: "),
    ],
)
def test_truncated_arrays(tmp_path: Path, content: slice | None, said: str) -> None:
    _write_arrays(tmp_path)
    path = tmp_path / "masks.npy"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[content])
    with pytest.raises(DataError, match=said):
        _open(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('["a"]', "has 1 names, but images.npy 3 images. HINT: make both again"),
        ("{}", "has no list of names, but images.npy 3 images"),
        ("[", "names.json can't be read: "),
    ],
)
def test_names_that_do_not_fit(tmp_path: Path, text: str, said: str) -> None:
    _write_arrays(tmp_path)
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(DataError, match=said):
        _open(tmp_path)


def test_split_is_complete_and_not_the_tail() -> None:
    for num_examples in range(2, 40):
        for split in (0.01, 0.1, 0.5, 0.99):
            training, validation = split_examples(num_examples, validation_split=split, seed=1)
            assert sorted([*training, *validation]) == list(range(num_examples))
            assert len(validation) == min(max(round(num_examples * split), 1), num_examples - 1)
    training, validation = split_examples(100, validation_split=0.2, seed=1)
    again = split_examples(100, validation_split=0.2, seed=1)
    np.testing.assert_array_equal(validation, again[1])
    assert validation.tolist() != split_examples(100, validation_split=0.2, seed=2)[1].tolist()
    assert validation.min() < 20


def test_one_example_can_not_be_split() -> None:
    with pytest.raises(DataError, match="There is 1 example; training needs at least 2"):
        split_examples(1, validation_split=0.1, seed=0)
