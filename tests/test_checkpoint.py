"""Checkpoints on disk: whole or not there, and nothing damaged is taken for sound."""

import io
import os
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfddl.checkpoint import BEST, Snapshot, Store, read, write
from tfddl.errors import CheckpointError

ARRAYS = {
    "model/0000": np.arange(6, dtype="float32").reshape(2, 3),
    "small": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "scalar": np.array(3, "int64"),
    "empty": np.zeros((0, 4)),
    "flags": np.array([True, False]),
}
SNAPSHOT = Snapshot({"epoch": 2, "history": {"loss": [0.5, float("nan")]}}, ARRAYS)


def _step(step: int) -> Snapshot:
    return Snapshot({"step": step}, {"x": np.full(3, step)})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a.npz", SNAPSHOT)
    found = read(tmp_path / "a.npz")
    assert found.meta["epoch"] == 2
    assert np.isnan(found.meta["history"]["loss"][1])
    assert found.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found.arrays[name].dtype == array.dtype
        assert np.array_equal(found.arrays[name], array)
    with np.load(tmp_path / "a.npz") as plain:
        assert np.array_equal(plain["model/0000"], ARRAYS["model/0000"])
    assert (tmp_path / "a.npz").stat().st_mode & 0o077 == 0  # Nobody else's to read.


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    directory = tmp_path_factory.mktemp("damaged")
    write(directory / "whole.npz", SNAPSHOT)
    return (directory / "whole.npz").read_bytes(), directory / "damaged.npz"


@given(st.data())
def test_no_change_goes_unnoticed(written: tuple[bytes, Path], data: st.DataObject) -> None:
    """Any bit flipped, or any end cut off: an error, or (in unused fields) the same content."""
    whole, path = written
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    if data.draw(st.booleans()):
        changed[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del changed[at:]
    path.write_bytes(changed)
    try:
        found = read(path)
    except CheckpointError:
        return
    assert repr(found.meta) == repr(read(path.with_name("whole.npz")).meta)
    assert all(np.array_equal(found.arrays[name], array) for name, array in ARRAYS.items())


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_a_member_with_more_than_its_array_is_damaged(tmp_path: Path) -> None:
    """The checksums are right: something else has been written there."""
    path = tmp_path / "a.npz"
    write(path, Snapshot({}, {"x": np.arange(4)}))
    with zipfile.ZipFile(path) as archive:
        meta = archive.read("meta.npy")
    for more, is_whole in ((b"", True), (b"\0", False), (bytes(100_000), False)):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("meta.npy", meta)
            archive.writestr("x.npy", _npy(np.arange(4)) + more)
        if is_whole:
            assert np.array_equal(read(path).arrays["x"], np.arange(4))
        else:
            with pytest.raises(CheckpointError, match="x.npy is longer than its array"):
                read(path)


class Disk:
    """Writes down what reaches the disk, in its order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.synced: list[bytes] = []
        for name in ("fsync", "replace", "link", "unlink"):
            noted = self._noted(name, getattr(os, name))
            monkeypatch.setattr(os, name, noted)

    def _noted(self, name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            real(*args, **kwargs)
            if name == "fsync":
                path = Path(os.readlink(f"/proc/self/fd/{args[0]}"))
                self.synced += [] if path.is_dir() else [path.read_bytes()]
                self.calls.append(f"fsync of {'the directory' if path.is_dir() else 'the file'}")
            else:
                self.calls.append(f"{name} {Path(args[-1]).name}")

        return call


def test_a_file_gets_its_name_once_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power failure a name has to lead to the whole file, or to the one before."""
    disk = Disk(monkeypatch)
    opened = os.listdir("/proc/self/fd")
    write(tmp_path / "a.npz", SNAPSHOT)
    assert len(os.listdir("/proc/self/fd")) == len(opened)
    assert disk.calls == ["fsync of the file", "replace a.npz", "fsync of the directory"]
    assert disk.synced == [(tmp_path / "a.npz").read_bytes()]  # Nothing was in a buffer any more.


def test_what_is_too_many_goes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, keep=1)
    store.write(_step(1), step=1)
    disk = Disk(monkeypatch)
    store.write(_step(2), step=2, is_best=True)
    new, best = "step-0000000002.npz", BEST
    written = ["fsync of the file", f"replace {new}", "fsync of the directory"]
    linked = [f"link .writing-{best}", f"replace {best}", "fsync of the directory"]
    calls = [call for call in disk.calls if call != f"unlink .writing-{best}"]
    assert calls == [*written, *linked, "unlink step-0000000001.npz"]


def test_without_hard_links_the_best_is_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    store = Store(tmp_path)
    monkeypatch.setattr(os, "link", refuse)
    for step in (1, 2):
        store.write(_step(step), step=step, is_best=True)
    assert store.best().meta["step"] == 2
    assert (tmp_path / BEST).stat().st_nlink == 1


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    store = Store(tmp_path / "a" / "b", keep=2)
    store.prepare()
    for step in (5, 10, 100, 1000):
        store.write(_step(step), step=step, is_best=step == 10)
    assert [path.name for path in store.files()] == ["step-0000001000.npz", "step-0000000100.npz"]
    assert store.best().meta["step"] == 10
    assert {path.name for path in store.directory.iterdir()} == {
        "step-0000001000.npz",
        "step-0000000100.npz",
        BEST,
    }


def test_a_damaged_one_is_passed_over_and_does_not_count(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=1)
    store.write(_step(1), step=1)
    damaged = tmp_path / "step-0000000007.npz"
    damaged.write_bytes(b"nonsense")
    (_, error), (path, found) = store.newest_first()
    assert isinstance(error, CheckpointError)
    assert str(damaged) in str(error)
    assert isinstance(found, Snapshot)
    store.set_aside(damaged)
    store.write(_step(2), step=2)
    assert [file.name for file in store.files()] == ["step-0000000002.npz"]


def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    path = store.write(_step(1), step=1)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.write(_step(1), step=1)
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert read(path).meta["step"] == 1


def test_three_are_kept_where_nothing_is_said(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for step in range(5):
        store.write(_step(step), step=step)
    assert [path.name for path in store.files()] == [f"step-000000000{n}.npz" for n in (4, 3, 2)]


def test_a_folder_that_is_not_there_has_none(tmp_path: Path) -> None:
    store = Store(tmp_path / "none")
    assert store.files() == []
    assert list(store.newest_first()) == []


def test_clearing_leaves_what_is_not_ours(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for step in (1, 2, 3):
        store.write(_step(step), step=step, is_best=step == 1)
    store.set_aside(store.files()[0])
    (tmp_path / "notes.txt").write_text("mine")
    assert len(list(tmp_path.iterdir())) == 5
    store.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_somebody_else_has_removed_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, keep=1)
    store.write(_step(1), step=1)
    gone = tmp_path / "step-0000000000.npz"
    monkeypatch.setattr(Path, "glob", lambda *_: iter([gone]))
    store.prepare()
    store.clear()
    monkeypatch.undo()
    monkeypatch.setattr(Store, "files", lambda store: [tmp_path / "new", gone])
    store.write(_step(2), step=2)


def test_a_full_disk_is_told_before_the_training(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
        with pytest.raises(CheckpointError, match="can't be written to .* Choose another folder"):
            Store(tmp_path).prepare()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


def test_what_a_crash_left_of_the_best_is_no_hindrance(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / f".writing-{BEST}").write_bytes(b"half")
    path = store.write(_step(1), step=1, is_best=True)
    assert (tmp_path / BEST).samefile(path)  # No second copy of what may be gigabytes.


def test_logs_may_have_numbers_of_others(tmp_path: Path) -> None:
    odd = {"one": np.float32(0.5), "many": np.arange(3), "other": Path("x"), "flag": np.bool_(True)}
    write(tmp_path / "a.npz", Snapshot(odd, {}))
    meta = dict(read(tmp_path / "a.npz").meta)
    del meta["format"], meta["dtypes"]
    assert meta == {"one": 0.5, "many": [0, 1, 2], "other": repr(Path("x")), "flag": True}


class Harmful:
    """Does something where it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('unpickled')",)


def test_reading_runs_no_code(tmp_path: Path) -> None:
    """A checkpoint may come from anywhere; NumPy's format has room for pickles."""
    path = tmp_path / "a.npz"
    write(path, Snapshot({}, {"x": np.arange(4)}))
    with zipfile.ZipFile(path) as archive:
        meta = archive.read("meta.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("meta.npy", meta)
        archive.writestr("x.npy", _npy(np.array([Harmful()], object)))
    with pytest.raises(CheckpointError, match="is damaged: Object arrays cannot be loaded"):
        read(path)


def test_what_a_crash_left_is_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / ".writing-abc").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    store.prepare()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="keep is 0; it must be at least 1"):
        Store(tmp_path, keep=0)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="can't be written to .*file"):
        Store(tmp_path / "file").prepare()
    with pytest.raises(CheckpointError, match="There is no best.npz in "):
        Store(tmp_path).best()
    newer = tmp_path / "newer.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tfddl.checkpoint.FORMAT", 2)
        write(newer, SNAPSHOT)
    with pytest.raises(CheckpointError, match="has format 2, and this tfddl reads 1"):
        read(newer)
