"""Checkpoints on disk: whole or not there, and nothing damaged is taken for sound."""

import contextlib
import errno
import fcntl
import io
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.group import ROOT
from tests.processes import wait_until
from tfddl._src import directory_lock
from tfddl._src.checkpoint import BEST, CheckpointStore, Snapshot, read, write
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


def test_a_checkpoint_is_read_as_written(tmp_path: Path) -> None:
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
def test_any_changed_byte_is_noticed(written: tuple[bytes, Path], data: st.DataObject) -> None:
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


def test_a_member_longer_than_its_array_is_damaged(tmp_path: Path) -> None:
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


def test_a_file_is_synced_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power failure a name has to lead to the whole file, or to the one before."""
    disk = Disk(monkeypatch)
    opened = os.listdir("/proc/self/fd")
    write(tmp_path / "a.npz", SNAPSHOT)
    assert len(os.listdir("/proc/self/fd")) == len(opened)
    assert disk.calls == ["fsync of the file", "replace a.npz", "fsync of the directory"]
    assert disk.synced == [(tmp_path / "a.npz").read_bytes()]  # Nothing was in a buffer any more.


def test_old_checkpoints_are_removed_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.write(_step(1), step=1)
    disk = Disk(monkeypatch)
    store.write(_step(2), step=2, is_best=True)
    new, best = "step-0000000002.npz", BEST
    written = ["fsync of the file", f"replace {new}", "fsync of the directory"]
    linked = ["link .writing-checkpoint-", f"replace {best}", "fsync of the directory"]
    calls = [re.sub("(?<=checkpoint-).*", "", call) for call in disk.calls]
    calls = [call for call in calls if call != "unlink .writing-checkpoint-"]
    assert calls == [*written, *linked, "unlink step-0000000001.npz"]


def test_without_hard_links_the_best_is_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    store = CheckpointStore(tmp_path)
    monkeypatch.setattr(os, "link", refuse)
    for step in (1, 2):
        store.write(_step(step), step=step, is_best=True)
    assert store.best().meta["step"] == 2
    assert (tmp_path / BEST).stat().st_nlink == 1


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "a" / "b", keep=2)
    store.prepare().release()
    for step in (5, 10, 100, 1000):
        store.write(_step(step), step=step, is_best=step == 10)
    assert [path.name for path in store.files()] == ["step-0000001000.npz", "step-0000000100.npz"]
    assert store.best().meta["step"] == 10
    assert {path.name for path in store.directory.iterdir()} == {
        "step-0000001000.npz",
        "step-0000000100.npz",
        BEST,
    }


def test_a_damaged_checkpoint_is_skipped_and_does_not_count(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
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


def test_a_failed_write_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    path = store.write(_step(1), step=1)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.write(_step(1), step=1)
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert read(path).meta["step"] == 1


def test_three_are_kept_by_default(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in range(5):
        store.write(_step(step), step=step)
    assert [path.name for path in store.files()] == [f"step-000000000{n}.npz" for n in (4, 3, 2)]


def test_a_missing_directory_has_no_checkpoints(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "none")
    assert store.files() == []
    assert list(store.newest_first()) == []


def test_clearing_leaves_other_files(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2, 3):
        store.write(_step(step), step=step, is_best=step == 1)
    store.set_aside(store.files()[0])
    (tmp_path / "notes.txt").write_text("mine")
    assert len(list(tmp_path.iterdir())) == 5
    store.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_files_that_others_have_removed_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.write(_step(1), step=1)
    gone = tmp_path / "step-0000000000.npz"
    monkeypatch.setattr(Path, "glob", lambda *_: iter([gone]))
    store.prepare().release()
    store.clear()
    monkeypatch.undo()
    monkeypatch.setattr(CheckpointStore, "files", lambda store: [tmp_path / "new", gone])
    store.write(_step(2), step=2)


def test_an_unwritable_directory_is_an_error_before_the_training(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
        with pytest.raises(CheckpointError, match="can't be written to .* HINT: choose another d"):
            CheckpointStore(tmp_path).prepare()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


def test_logs_may_have_numpy_values(tmp_path: Path) -> None:
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


def test_temporary_files_of_a_crash_are_removed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    (tmp_path / ".writing-checkpoint-abc").write_bytes(b"half")
    (tmp_path / ".writing-trace.json").write_bytes(b"another's")
    (tmp_path / "notes.txt").write_text("mine")
    store.prepare().release()
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", ".writing-trace.json"}


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="keep is 0; it must be at least 1"):
        CheckpointStore(tmp_path, keep=0)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="can't be written to .*file"):
        CheckpointStore(tmp_path / "file").prepare()
    with pytest.raises(CheckpointError, match="There is no best.npz in "):
        CheckpointStore(tmp_path).best()
    newer = tmp_path / "newer.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tfddl._src.checkpoint.FORMAT", 2)
        write(newer, SNAPSHOT)
    with pytest.raises(CheckpointError, match="has format 2; expected 1\\. HINT: update tfddl"):
        read(newer)


@pytest.mark.parametrize("kind", ["fifo", "device", "directory", "link to a device"])
def test_only_regular_files_are_read(kind: str, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.write(_step(1), step=1)
    path = tmp_path / "step-0000000007.npz"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device" and os.geteuid() == 0:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero, which never ends
    else:
        path.symlink_to("/dev/zero")
    (_, error), (_, found) = store.newest_first()
    assert isinstance(error, CheckpointError)
    assert re.search(r"is damaged: (it is no regular file|.*Is a directory)", str(error))
    assert isinstance(found, Snapshot)
    store.set_aside(path)
    assert [file.name for file in store.files()] == ["step-0000000001.npz"]
    os.mkfifo(tmp_path / BEST)
    with pytest.raises(CheckpointError, match="it is no regular file"):
        store.best()


# Takes the directory, then waits to be killed; a child that it has forked lives on.
HOLDER = """
import os, sys, time
from pathlib import Path
from tfddl._src.directory_lock import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
child = os.fork()
if child:
    print(os.getpid(), child, flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def _holding(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the directory, and has said so."""
    line = [sys.executable, "-c", HOLDER, str(directory)]
    with subprocess.Popen(
        line, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"{process.pid} ")
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_directory_belongs_to_one_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    store.write(_step(1), step=1)
    (tmp_path / ".writing-checkpoint-abc").write_bytes(b"half")
    with _holding(tmp_path) as holder:
        monkeypatch.setattr(directory_lock, "_SAME_HOST_S", 0.3)
        named = f"in use by another job: process {holder.pid} on {socket.gethostname()}. Two jobs"
        for use in (store.prepare, store.clear):
            with pytest.raises(CheckpointError, match=re.escape(named)):
                use()
        assert (tmp_path / ".writing-checkpoint-abc").exists()
        assert len(store.files()) == 1
        # It is gone with the process, though a child of that lives on.
        monkeypatch.setattr(directory_lock, "_SAME_HOST_S", 20.0)
        holder.kill()
        store.prepare().release()
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000001.npz"]


def test_a_lock_of_another_host_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As long as a server of NFS keeps it for a host that is lost."""
    monkeypatch.setattr(directory_lock, "_SAME_HOST_S", 0.0)
    with _holding(tmp_path) as holder:
        (tmp_path / ".lock").write_text('{"host": "hostB", "pid": 7}')
        monkeypatch.setattr(directory_lock, "_OTHER_HOST_S", 0.3)
        with pytest.raises(CheckpointError, match="another job: process 7 on hostB. Two jobs"):
            directory_lock.DirectoryLock(tmp_path)
        monkeypatch.setattr(directory_lock, "_OTHER_HOST_S", 60.0)

        def kill() -> None:
            wait_until(lambda: len(caplog.records) == 2)
            holder.kill()

        killing = threading.Thread(target=kill)
        killing.start()
        directory_lock.DirectoryLock(tmp_path).release()
        killing.join()
    waiting = "is in use by process 7 on hostB. Waiting"
    assert [waiting in record.getMessage() for record in caplog.records] == [True, True]


def test_the_lock_is_reentrant_within_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_lock, "_SAME_HOST_S", 0.3)
    first, second = CheckpointStore(tmp_path).prepare(), CheckpointStore(tmp_path).prepare()
    first.release()
    first.release()
    taking = [sys.executable, "-c", "import sys; from pathlib import Path"]
    taking[-1] += "; from tfddl._src import directory_lock as d; d._SAME_HOST_S = 0.0"
    taking[-1] += "; d.DirectoryLock(Path(sys.argv[1]))"
    line = [*taking, str(tmp_path)]
    assert b"in use by" in subprocess.run(line, cwd=ROOT, capture_output=True, timeout=60).stderr
    second.release()
    assert subprocess.run(line, cwd=ROOT, capture_output=True, timeout=60).returncode == 0
    CheckpointStore(tmp_path).prepare().release()


def test_a_lock_on_a_removed_file_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before lets go between our opening the file and our locking it."""
    flock = fcntl.flock
    removed: list[bool] = []

    def late(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(True)
            (tmp_path / ".lock").unlink()
        flock(descriptor, operation)

    monkeypatch.setattr("fcntl.flock", late)
    lock = directory_lock.DirectoryLock(tmp_path)
    assert removed
    assert (tmp_path / ".lock").exists()
    lock.release()


def test_a_file_system_without_locks_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    (tmp_path / ".writing-checkpoint-abc").write_bytes(b"maybe another job's")
    lock = CheckpointStore(tmp_path).prepare()
    assert not lock.is_held
    assert "has no locks (No locks available): another job" in caplog.text
    lock.release()
    assert [path.name for path in tmp_path.iterdir()] == [".writing-checkpoint-abc"]
