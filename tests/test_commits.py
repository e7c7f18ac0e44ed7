"""What outlives a worker: the newest that is whole, whatever happened while it was written."""

import dataclasses
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.processes import wait_until
from tfddl._src import commits
from tfddl._src.commits import CommitStore
from tfddl._src.launcher.host_store import HostStore
from tfddl._src.launcher.plan import local_allocation, plan_processes
from tfddl._src.launcher.worker_process import WorkerProcess


@pytest.fixture
def fd() -> Iterator[int]:
    number = commits.create_store()
    yield number
    os.close(number)


def _contents(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def test_the_newest_commit_is_read(fd: int) -> None:
    store = CommitStore(fd)
    assert store.newest == -1
    with pytest.raises(LookupError):
        store.read()
    # Longer, shorter, empty, much longer: the room that is left differs each time.
    for number, data in enumerate([b"a" * 10, b"b" * 9000, b"", b"c" * 5000, b"d" * 100_000, b"e"]):
        store.write(data)
        assert (store.newest, store.read()) == (number, data)
        assert CommitStore(fd).read() == data
    assert store.has_written
    assert not CommitStore(fd).has_written


def test_the_store_is_as_large_as_two_commits(fd: int) -> None:
    store = CommitStore(fd)
    for number in range(20):
        store.write(bytes([number]) * 10_000)
        assert os.fstat(fd).st_size <= 4096 + 2 * 10_000
    store.write(b"a")
    store.write(b"b")
    assert os.fstat(fd).st_size <= 4096 + 2


def test_partial_reads_and_writes_are_completed(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pread, os.pwrite
    monkeypatch.setattr(os, "pread", lambda fd, count, at: read(fd, min(count, 1000), at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:1000], at))
    store = CommitStore(fd)
    data = os.urandom(10_500)
    for _ in range(2):
        store.write(data)
        assert store.read() == data


def test_an_invalid_slot_is_skipped(fd: int) -> None:
    """Half written, it may say anything; what it speaks of isn't even looked for."""
    store = CommitStore(fd)
    store.write(b"first")
    for offset, length in ((4096, 2**62), (2**62, 5), (4096, 2000)):
        os.pwrite(fd, struct.pack("<QQQ32s", 8, offset, length, b"?" * 32), 0)
        assert (store.newest, store.read()) == (0, b"first")
        # The next goes neither there nor over the one that is left.
        store.write(b"second")
        assert (store.newest, store.read()) == (1, b"second")
        os.ftruncate(fd, 0)
        store.write(b"first")


def test_a_store_truncated_while_it_is_read(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CommitStore(fd)
    store.write(b"x" * 3000)
    read = os.pread
    monkeypatch.setattr(
        os, "pread", lambda fd, count, at: read(fd, min(count, 1000), at) if at < 5000 else b""
    )
    assert store.newest == -1


@pytest.mark.parametrize("sizes", [(3000, 3000), (3000, 90), (90, 3000), (3000, 6000)])
def test_an_interrupted_write_keeps_the_commit_before(
    fd: int, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CommitStore(fd)
    store.write(b"older" * 100)
    store.write(b"o" * sizes[0])
    before = _contents(fd)
    written: list[tuple[bytes, int]] = []
    real = os.pwrite

    def only_noted(_: int, data: memoryview, at: int) -> int:
        written.append((bytes(data), at))
        return len(data)

    monkeypatch.setattr(os, "pwrite", only_noted)
    store.write(b"n" * sizes[1])
    monkeypatch.undo()
    all_bytes = [(byte, at + i) for data, at in written for i, byte in enumerate(data)]
    for end in range(0, len(all_bytes) + 1, 7):
        os.ftruncate(fd, 0)
        real(fd, before, 0)
        for byte, at in all_bytes[:end]:
            real(fd, bytes([byte]), at)
        assert CommitStore(fd).read() in (b"o" * sizes[0], b"n" * sizes[1])
        if end < len(all_bytes):
            assert CommitStore(fd).newest == 1


def test_a_flipped_bit_is_found(fd: int) -> None:
    store = CommitStore(fd)
    store.write(b"first")
    store.write(b"second")
    whole = _contents(fd)
    at = whole.index(b"second")
    os.pwrite(fd, b"S", at)
    assert CommitStore(fd).read() == b"first"
    os.ftruncate(fd, 50)
    assert CommitStore(fd).newest == -1


def test_the_commit_before_is_never_overwritten(fd: int) -> None:
    store = CommitStore(fd)
    for data in (b"a" * 100, b"b" * 9000, b"c" * 50):
        store.write(data)
    os.pwrite(fd, b"?", _contents(fd).index(b"c" * 50))
    assert store.read() == b"b" * 9000


def test_only_memfds_of_the_launcher_are_stores(fd: int) -> None:
    found = commits.find_store({commits.VARIABLE: str(fd)})
    assert found is not None
    found.write(b"x")
    assert CommitStore(fd).read() == b"x"
    assert commits.find_store({}) is None
    # A process that has the environment of a worker, but not its files, may have others there.
    with open(os.devnull) as other:
        assert commits.find_store({commits.VARIABLE: str(other.fileno())}) is None
    for nonsense in ("", "x", "-1", "99999"):
        assert commits.find_store({commits.VARIABLE: nonsense}) is None


@pytest.mark.parametrize("keeps_commits", [True, False])
def test_the_first_worker_of_a_host_gets_the_store(keeps_commits: bool, tmp_path: Path) -> None:
    plans = plan_processes(
        ["true"], allocations=[local_allocation((10000, 10001))], environment=os.environ
    )
    line = [sys.executable, "-c", f"{FIND}\nPath('found').write_text(str(store is not None))"]
    with closing(HostStore()) as store:
        for _ in range(2):  # The same at each start.
            for plan in plans:
                worker = WorkerProcess(
                    dataclasses.replace(
                        plan,
                        argv=tuple(line),
                        directory=str(tmp_path),
                        keeps_commits=keeps_commits,
                    ),
                    store=store,
                )
                wait_until(worker.look)
                worker.reap()
                for pipe in worker.outputs:
                    pipe.close()
                assert worker.returncode == 0
                given = (tmp_path / "found").read_text()
                assert given == str(keeps_commits and plan.rank == 0)
        assert store.newest == (1 if keeps_commits else -1)


FIND = """
import os
from pathlib import Path
from tfddl._src import commits
store = commits.find_store(os.environ)
if store is not None:
    store.write(b"x")
"""
