"""Rows read from the file instead of through the mapping: the same rows, and a clear error."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from tfddl._src.data.memory_map import MappedRows
from tfddl.errors import DataError

ROWS, SHAPE = 50, (3, 7)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    array = np.random.default_rng(0).normal(size=(ROWS, *SHAPE)).astype("float32")
    np.save(tmp_path / "x.npy", array)
    return tmp_path / "x.npy"


def _map(path: Path, mode: Literal["r", "r+", "c"] = "r") -> np.ndarray:
    array: np.ndarray = np.load(path, mmap_mode=mode)
    return array


VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "all": lambda x: x,
    "a part": lambda x: x[11:40],
    "a part of a part": lambda x: x[5:45][3:20],
    "every third": lambda x: x[1::3],
    "backwards": lambda x: x[::-1],
    "one position": lambda x: x[:, 1, 4],
    "the end of each row": lambda x: x[:, 2],
    "an ordinary array": np.asarray,
    "other numbers": lambda x: x.view("int32"),
    "other rows": lambda x: x.reshape(ROWS * 3, 7),
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_rows_are_those_of_the_array(path: Path, name: str, mode: Literal["r", "r+"]) -> None:
    view = VIEWS[name](_map(path, mode))
    rows = MappedRows.of(view, "x")
    assert rows is not None
    assert (len(rows), rows.shape, rows.dtype) == (len(view), view.shape, view.dtype)
    rng = np.random.default_rng(1)
    last = len(view) - 1
    for indices in (
        np.arange(len(view)),
        rng.permutation(len(view))[:9],
        np.array([0, last, last, 0]),
        np.array([last]),
    ):
        np.testing.assert_array_equal(rows[indices], view[indices])


def test_a_raw_memory_map_with_an_offset(tmp_path: Path) -> None:
    np.arange(10_000, dtype="int64").tofile(tmp_path / "raw")
    view = np.memmap(tmp_path / "raw", "int64", mode="r", offset=8 * 700, shape=(300, 4))[20:]
    rows = MappedRows.of(view, "x")
    assert rows is not None
    np.testing.assert_array_equal(rows[np.array([7, 0, 1])], view[[7, 0, 1]])


@pytest.mark.parametrize(
    "view",
    [
        lambda path: np.load(path),
        lambda path: _map(path) + 1,
        # What the process writes to such a map is not in the file.
        lambda path: _map(path, "c"),
        lambda path: _map(path)[:, ::2],
        lambda path: _map(path).transpose(2, 0, 1),
        lambda path: _map(path)[[1, 2]],
    ],
)
def test_what_can_not_be_read_from_the_file_is_indexed(
    path: Path, view: Callable[[Path], np.ndarray]
) -> None:
    assert MappedRows.of(view(path), "x") is None


def test_neighbours_are_read_together(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = MappedRows.of(_map(path), "x")
    assert rows is not None
    calls = []
    preadv = os.preadv

    def counting(file: int, buffers: list[memoryview], position: int) -> int:
        calls.append(len(buffers))
        return preadv(file, buffers, position)

    monkeypatch.setattr(os, "preadv", counting)
    rows[np.array([4, 30, 3, 5, 31, 9])]
    assert calls == [3, 1, 2]


def test_short_reads_go_on_where_they_ended(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = _map(path)
    rows = MappedRows.of(array, "x")
    assert rows is not None
    preadv = os.preadv

    def short(file: int, buffers: list[memoryview], position: int) -> int:
        # A row has 84 bytes: each call ends within one.
        left, some = 100, list[memoryview]()
        for buffer in buffers:
            some.append(buffer[:left])
            left -= len(some[-1])
        return preadv(file, [part for part in some if len(part)], position)

    monkeypatch.setattr(os, "preadv", short)
    np.testing.assert_array_equal(rows[np.arange(ROWS)], array)


def test_files_that_changed(path: Path, tmp_path: Path) -> None:
    array = _map(path)
    rows = MappedRows.of(array, "x['a']")
    assert rows is not None
    length = path.stat().st_size
    os.truncate(path, length - 1)
    with pytest.raises(DataError, match=rf"x\['a'\] is mapped from {path}, which now ends before"):
        rows[np.array([ROWS - 1])]
    with pytest.raises(
        DataError, match=rf"{path}, which has {length - 1} bytes; expected at least {length}"
    ):
        MappedRows.of(array, "x")
    assert MappedRows.of(array[:-1], "x") is not None, "the rows that are asked for are there"
    np.save(tmp_path / "other.npy", np.zeros((ROWS, *SHAPE), "float32"))
    os.replace(tmp_path / "other.npy", path)
    with pytest.raises(DataError, match="replaced by another file since. HINT: map it anew"):
        MappedRows.of(array, "x")
    path.unlink()
    with pytest.raises(DataError, match="can't be opened any more: No such file or directory"):
        MappedRows.of(array, "x")
    assert rows[np.array([0])].shape == (1, *SHAPE), "an open file can still be read"


def test_files_are_closed(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    rows = MappedRows.of(_map(path), "x")
    assert len(os.listdir("/proc/self/fd")) > before
    del rows
    assert len(os.listdir("/proc/self/fd")) == before
