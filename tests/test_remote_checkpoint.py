"""Checkpoints in stores that `tf.io.gfile` reaches: whole or not there, and one job at a time."""

import contextlib
import json
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.fake_gcs import FakeGcs
from tfddl._src import checkpoint
from tfddl._src.checkpoint import BEST, CheckpointStore, Snapshot, read, write
from tfddl._src.storage import RemoteError, RemoteLock, RemotePath, check_held, make_path
from tfddl._src.storage import lock as lock_module
from tfddl.errors import CheckpointError, UnsupportedError

NEEDS_OPENSSL = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
KINDS = ["file", "ram", pytest.param("gs", marks=NEEDS_OPENSSL)]


def _step(step: int) -> Snapshot:
    return Snapshot({"step": step}, {"x": np.full(3, step)})


@pytest.fixture
def gcs(tmp_path: Path) -> Iterator[FakeGcs]:
    """Google's store, for TensorFlow's client in this process."""
    fake = FakeGcs(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in fake.environ.items():
            patch.setenv(name, value)
        yield fake
    fake.close()


@pytest.fixture
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> RemotePath:
    """A directory in a store, which isn't there yet."""
    kind = getattr(request, "param", "file")
    if kind == "gs":
        request.getfixturevalue("gcs")
    roots = {"file": f"file://{tmp_path}", "ram": f"ram://{secrets.token_hex(4)}"}
    return RemotePath(f"{roots.get(kind, f'gs://bucket-{secrets.token_hex(4)}')}/run/checkpoints")


def _names(directory: RemotePath) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name)


@pytest.mark.parametrize("directory", KINDS, indirect=True)
def test_a_store_is_used_as_a_directory_is(directory: RemotePath) -> None:
    store = CheckpointStore(directory, keep=2)
    assert store.files() == []
    assert list(store.newest_first()) == []
    with pytest.raises(CheckpointError, match="There is no best.npz in "):
        store.best()
    lock = store.prepare()
    assert lock.is_held
    for step in (5, 10, 100, 1000):
        store.write(_step(step), step=step, is_best=step == 10)
    newest = ["step-0000001000.npz", "step-0000000100.npz"]
    assert [path.name for path in store.files()] == newest
    assert _names(directory) == [".lock", BEST, *reversed(newest)]
    assert store.best().meta["step"] == 10
    # Half of an upload: of a store that shows it, or of one that has lost a part.
    whole = (directory / newest[0]).read_bytes()
    (directory / "step-0000002000.npz").write_bytes(whole[: len(whole) // 2])
    (bad, error), (path, found), _ = store.newest_first()
    assert isinstance(error, CheckpointError)
    assert str(error).startswith(f"{directory}/step-0000002000.npz is damaged: ")
    assert isinstance(found, Snapshot)
    assert found.meta["step"] == 1000
    assert np.array_equal(found.arrays["x"], np.full(3, 1000))
    assert str(path) == f"{directory}/{newest[0]}"
    assert store.set_aside(bad).name == "step-0000002000.npz.damaged"
    lock.release()
    (directory / ".writing-checkpoint-abc").write_bytes(b"half")
    (directory / "notes.txt").write_bytes(b"mine")
    store.prepare().release()
    assert ".writing-checkpoint-abc" not in _names(directory)
    store.clear()
    assert _names(directory) == ["notes.txt"]


def test_numpy_reads_what_was_streamed(tmp_path: Path) -> None:
    """A store takes a file from its beginning to its end; nothing is written over."""
    arrays = {"model/0000": np.arange(100_000.0), "empty": np.zeros((0, 4))}
    write(RemotePath(f"file://{tmp_path}/a.npz"), Snapshot({"epoch": 2}, arrays))
    found = read(tmp_path / "a.npz")
    assert found.meta["epoch"] == 2
    with np.load(tmp_path / "a.npz") as plain:
        for name, array in arrays.items():
            assert np.array_equal(plain[name], array)
            assert np.array_equal(found.arrays[name], array)


def _fail(error: type[Any], text: str = "told by the store") -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error(None, None, text)

    return fail


@pytest.mark.parametrize("at", ["write", "close", "rename", "size"])
def test_a_failed_upload_changes_nothing(
    directory: RemotePath, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(directory, keep=1)
    directory.make_directory()
    store.write(_step(1), step=1, is_best=True)
    lost = _fail(tf.errors.UnavailableError)
    if at == "write":
        writes = iter(range(5))
        real = tf.io.gfile.GFile.write

        def write_some(file: Any, data: bytes) -> None:
            if next(writes, None) is None:
                lost()
            real(file, data)

        monkeypatch.setattr(tf.io.gfile.GFile, "write", write_some)
    elif at == "close":
        monkeypatch.setattr(tf.io.gfile.GFile, "close", lost)
    elif at == "rename":
        monkeypatch.setattr(tf.io.gfile, "rename", lost)
    else:
        monkeypatch.setattr(RemotePath, "size", lambda path: 7)
    expected = "has 7 bytes; expected" if at == "size" else "Unavailable: told by the store. HINT: "
    for step in (1, 2):
        with pytest.raises(RemoteError, match=expected):
            store.write(_step(step), step=step, is_best=True)
    monkeypatch.undo()
    assert _names(directory) == [BEST, "step-0000000001.npz"]
    assert store.best().meta["step"] == 1
    assert [found.meta["step"] for _, found in store.newest_first()] == [1]  # type: ignore[union-attr]


def test_a_store_that_cannot_be_reached_has_no_damage(
    directory: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(directory)
    directory.make_directory()
    for step in (1, 2):
        store.write(_step(step), step=step)
    before = _names(directory)
    monkeypatch.setattr(tf.io.gfile.GFile, "read", _fail(tf.errors.DeadlineExceededError))
    with pytest.raises(RemoteError, match="0002.npz: DeadlineExceeded: told by the store. HINT"):
        list(store.newest_first())
    monkeypatch.undo()
    assert _names(directory) == before
    # Some stores go on listing what has been removed.
    (directory / "step-0000000002.npz").unlink()
    listed = [directory / f"step-000000000{step}.npz" for step in (2, 1)]
    monkeypatch.setattr(CheckpointStore, "files", lambda store: listed)
    assert [path.name for path, _ in store.newest_first()] == ["step-0000000001.npz"]


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (tf.errors.PermissionDeniedError, "PermissionDenied: told by the store. HINT: give rank 0"),
        (tf.errors.UnauthenticatedError, "Unauthenticated: told by the store. HINT: give rank 0's"),
        (tf.errors.NotFoundError, "NotFound: told by the store. HINT: look whether bucket and"),
        (tf.errors.UnavailableError, "Unavailable: told by the store. HINT: look at the store and"),
    ],
)
def test_what_the_store_says_is_an_error_before_the_training(
    directory: RemotePath, error: type[Any], hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("makedirs", "remove"):
        with monkeypatch.context() as patch:
            patch.setattr(tf.io.gfile, name, _fail(error))
            if (name, error) == ("remove", tf.errors.NotFoundError):
                continue
            with pytest.raises(CheckpointError) as raised:
                CheckpointStore(directory).prepare()
        assert str(raised.value).startswith(f"Checkpoints can't be written to {directory}: ")
        assert hint in str(raised.value)
        assert str(raised.value).count("HINT") == 1
    # Nothing holds the directory.
    CheckpointStore(directory).prepare().release()


def test_an_unknown_scheme_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="'nope' not implemented .* HINT: this TensorFlow"):
        CheckpointStore(RemotePath("nope://bucket/x")).prepare()


@NEEDS_OPENSSL
def test_google_refuses(gcs: FakeGcs) -> None:
    store = CheckpointStore(RemotePath("gs://refused/checkpoints"))
    lock = store.prepare()
    store.write(_step(1), step=1)
    gcs.refuse = 403
    for use in (lambda: store.write(_step(2), step=2), lambda: list(store.newest_first())):
        with pytest.raises(RemoteError, match="^gs://refused/.* PermissionDenied: .* HINT: give"):
            use()
    gcs.refuse = 0
    assert [found.meta["step"] for _, found in store.newest_first()] == [1]  # type: ignore[union-attr]
    lock.release()


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("runs/a", Path("runs/a")),
        (Path("/runs/a"), Path("/runs/a")),
        ("gs://bucket/a/", RemotePath("gs://bucket/a")),
        ("hdfs://name:8020/a", RemotePath("hdfs://name:8020/a")),
        ("file:///runs/a", Path("/runs/a")),
        ("a:b/c", Path("a:b/c")),
    ],
)
def test_what_is_a_url(given: str | Path, path: Path | RemotePath) -> None:
    assert make_path(given) == path


@pytest.mark.parametrize("given", [Path("gs://bucket/a"), "s3:/bucket/a"])
def test_a_url_that_has_lost_a_slash(given: str | Path) -> None:
    with pytest.raises(UnsupportedError, match="a URL that has lost a slash.* HINT: give the URL"):
        make_path(given)


@contextlib.contextmanager
def _holding(directory: RemotePath) -> Iterator[int]:
    """A process that holds the lock, until it is killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        lock = RemoteLock(directory)
        os.write(writer, b"+" if lock.is_held else b"-")
        signal.pause()
    try:
        os.close(writer)
        assert os.read(reader, 1) == b"+"
        yield child
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_directory_belongs_to_one_job(
    directory: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.make_directory()
    monkeypatch.setattr(lock_module, "_SAME_MACHINE_S", 0.3)
    monkeypatch.setattr(lock_module, "_POLL_S", 0.1)
    with _holding(directory) as holder:
        named = f"in use by another job: process {holder} on {socket.gethostname()}. Two jobs would"
        for use in (CheckpointStore(directory).prepare, CheckpointStore(directory).clear):
            with pytest.raises(CheckpointError, match=re.escape(named)):
                use()
        monkeypatch.setattr(lock_module, "_SAME_MACHINE_S", 20.0)
        threading.Timer(0.3, os.kill, [holder, signal.SIGKILL]).start()
        # It is known that it has ended, though nobody has waited for it: it is a zombie.
        CheckpointStore(directory).prepare().release()
    assert _names(directory) == []


def _held_elsewhere(directory: RemotePath, renewals: int = 1) -> None:
    directory.make_directory()
    holder = {"host": "hostB", "pid": 7, "machine": "another", "token": "b", "renewals": renewals}
    (directory / ".lock").write_bytes(json.dumps(holder).encode())


def test_a_lock_of_another_host_counts_while_it_is_renewed(
    directory: RemotePath, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock_module, "_POLL_S", 0.05)
    _held_elsewhere(directory)
    ended = threading.Event()

    def renew() -> None:
        """Again and again: how soon it is read first depends on the machine."""
        for renewals in range(2, 200):
            if ended.wait(0.3):
                return
            _held_elsewhere(directory, renewals)

    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        with pytest.raises(CheckpointError, match="another job: process 7 on hostB. Two jobs"):
            RemoteLock(directory)
    finally:
        ended.set()
        renewing.join()
    assert "is in use by process 7 on hostB. Waiting 120 s, in case that job is lost" in caplog.text
    monkeypatch.setattr(lock_module, "_LOST_S", 0.2)
    RemoteLock(directory).release()
    assert _names(directory) == []


def test_a_lock_that_was_taken_is_noticed_before_the_next_save(
    directory: RemotePath, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(directory)
    lock = store.prepare()
    store.write(_step(1), step=1)
    _held_elsewhere(directory)
    with pytest.raises(CheckpointError, match="is now in use by another job: process 7 on hostB"):
        store.write(_step(2), step=2)
    lock.release()  # It is the other job's by now.
    assert _names(directory) == [".lock", "step-0000000001.npz"]
    check_held(directory)  # Of a process that has no lock.
    assert not caplog.records


def test_a_job_that_has_lost_at_the_start_removes_nothing(
    directory: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_starts(_: RemotePath) -> None:
        _held_elsewhere(directory)
        (directory / ".writing-checkpoint-b").write_bytes(b"half")

    monkeypatch.setattr(checkpoint, "_try_to_write", other_starts)
    with pytest.raises(CheckpointError, match="is now in use by another job: process 7 on hostB"):
        CheckpointStore(directory).prepare()
    assert _names(directory) == [".lock", ".writing-checkpoint-b"]
    assert not lock_module._held


def test_the_holder_renews_its_lock(
    directory: RemotePath, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock_module, "_RENEW_S", 0.02)
    directory.make_directory()
    lock = RemoteLock(directory)
    path = directory / ".lock"

    def content() -> dict[str, Any]:
        return lock_module._parse(lock_module._read(path))

    def wait_for(event: Callable[[], bool]) -> None:
        for _ in range(2000):
            if event():
                return
            threading.Event().wait(0.02)
        pytest.fail("it doesn't come")

    wait_for(lambda: content().get("renewals", 0) > 2)
    path.unlink()  # Somebody cleans up.
    wait_for(path.exists)
    monkeypatch.setattr(RemotePath, "write_bytes", _raise(RemoteError("no route")))
    wait_for(lambda: "can't be renewed; in 120 s another job may take it" in caplog.text)
    monkeypatch.undo()
    assert len(caplog.records) == 1
    lock.release()
    assert not path.exists()
    threads = [thread.name for thread in threading.enumerate()]
    assert "tfddl-lock" not in threads


def _raise(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise error

    return fail


def test_the_lock_is_reentrant_within_a_process(directory: RemotePath) -> None:
    first, second = CheckpointStore(directory).prepare(), CheckpointStore(directory).prepare()
    first.release()
    first.release()
    assert _names(directory) == [".lock"]
    child = os.fork()
    if not child:
        second.release()  # The parent's, which still holds it.
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert _names(directory) == [".lock"]
    second.release()
    assert _names(directory) == []


def test_a_lock_that_stays_is_logged(
    directory: RemotePath, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory.make_directory()
    lock = RemoteLock(directory)
    with monkeypatch.context() as patch:
        patch.setattr(tf.io.gfile, "remove", _fail(tf.errors.UnavailableError))
        lock.release()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "a lock stays, and may make the next job wait 120 s" in caplog.text
    RemoteLock(directory).release()  # It is this process's, which knows that it has let go.
    assert _names(directory) == []
