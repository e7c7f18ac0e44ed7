"""Output memory that all workers of a host read in place: which block is assigned, and when."""

import os
import random
from typing import NamedTuple

import numpy as np
import pytest

from tests.group import Groups
from tests.native_workers import run
from tfddl._src.comm.native import PeerConfig, connect_local
from tfddl._src.comm.native.shared_results import OutputPool
from tfddl._src.comm.native.shm import MemoryFile, SharedMemory
from tfddl.errors import CommunicationError


class _Taken(NamedTuple):
    """The block of one worker."""

    shared: np.ndarray
    private: np.ndarray


class _Workers:
    """The pools of several workers, in one process."""

    def __init__(self, size: int) -> None:
        file = MemoryFile(size)
        self.memory = SharedMemory(file)
        others = [SharedMemory(file, rank) for rank in range(1, size)]
        self.pools = [
            OutputPool(memory, is_first=memory is self.memory) for memory in (self.memory, *others)
        ]
        self.number = 0

    def offers(self) -> list[bytes]:
        return [pool.offer_free(self.number) for pool in self.pools]

    def take(self, num_bytes: int, offers: list[bytes] | None = None) -> list[_Taken]:
        """The block of the next operation on each worker; slices, as TensorFlow has them."""
        offers = self.offers() if offers is None else offers
        assigned = self.pools[0].assign(num_bytes, self.number, offers)
        self.number += 1
        taken = [pool.take(assigned) for pool in self.pools]
        return [_Taken(shared[:num_bytes], private[:num_bytes]) for shared, private in taken]

    def held_bytes(self) -> int:
        """What the system has private."""
        return os.fstat(self.memory.file.fileno()).st_blocks * 512


def test_all_workers_map_the_same_block_and_it_is_used_again() -> None:
    workers = _Workers(3)
    first = workers.take(100_000)
    for rank, taken in enumerate(first):
        taken.shared[rank] = 10 + rank
    assert [taken.private[:3].tolist() for taken in first] == [[10, 11, 12]] * 3
    del taken, first
    again = workers.take(90_000)  # A bit less fits, too.
    assert again[1].private[:3].tolist() == [10, 11, 12]
    assert workers.pools[0].num_bytes < 110_000


@pytest.mark.parametrize("tells", [True, False], ids=["known", "not known"])
def test_writes_to_a_result_are_private(monkeypatch: pytest.MonkeyPatch, tells: bool) -> None:
    """The worker doesn't see them either, once the block is used again."""
    if not tells:  # Where the system doesn't say which pages a process has written to.
        monkeypatch.setattr("tfddl._src.comm.native.shm._PAGEMAP", "/nowhere")
    workers = _Workers(3)
    first = workers.take(100_000)
    first[0].shared[:] = 1
    first[1].private[7:90_000] = 2
    assert [taken.private[[6, 7, 89_999, 90_000]].tolist() for taken in first] == [
        [1, 1, 1, 1],
        [1, 2, 2, 1],
        [1, 1, 1, 1],
    ]
    del first
    again = workers.take(100_000)
    again[2].shared[50_000:] = 3
    for taken in again:
        assert set(taken.private[:50_000]) == {1}
        assert set(taken.private[50_000:]) == {3}
    assert workers.pools[0].num_bytes < 110_000


class _Copy:
    """A view that doesn't follow what is written later, which POSIX would allow."""

    def __init__(self, fd: int, offset: int, num_bytes: int) -> None:
        self.array = np.frombuffer(bytearray(os.pread(fd, num_bytes, offset)), np.uint8)

    def discard_writes(self) -> None:
        pass


def test_memory_is_not_shared_where_private_views_do_not_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    SharedMemory().check_private_views()
    alone = PeerConfig(job=f"views {os.getpid()}", rank=0, size=1)
    connect_local(alone).close()
    monkeypatch.setattr("tfddl._src.comm.native.shm.PrivateView", _Copy)
    with pytest.raises(CommunicationError, match=r"private mappings don't follow: \[0, 0, 2, 3\]"):
        connect_local(alone)


@pytest.mark.parametrize("holder", [0, 2])
def test_a_block_in_use_is_not_assigned_again(holder: int) -> None:
    workers = _Workers(3)
    first = workers.take(100_000)
    first[1].shared[5:7] = 7
    held = first[holder].private[5:7].view(np.uint16)
    del first
    for _ in range(5):
        others = workers.take(100_000)
        others[1].shared[:] = 9
        del others
    assert held.tolist() == [7 * 257]
    assert workers.pools[0].num_bytes < 220_000


def test_an_offer_from_before_a_block_was_assigned_does_not_count() -> None:
    workers = _Workers(2)
    workers.take(100_000)
    offers = workers.offers()  # The block is free. But then, in another thread:
    first = workers.take(100_000)
    second = workers.take(100_000, offers)
    first[0].shared[:] = 1
    second[0].shared[:] = 2
    assert first[1].private[0] == 1


@pytest.mark.parametrize("size", [1, 2, 3])
def test_blocks_never_overlap_whatever_is_held_and_nothing_piles_up(size: int) -> None:
    def mark(key: int) -> int:
        return (37 * key + key // 1000) % 251

    workers = _Workers(size)
    chance = random.Random(size)
    held: dict[int, list[np.ndarray | None]] = {}
    for turn in range(400):
        stale = workers.offers()
        for _ in range(chance.choice([1, 1, 3])):
            key = len(held) + 1000 * turn
            taken = workers.take(chance.choice([70_000, 100_000, 130_000, 400_000]), stale)
            taken[chance.randrange(size)].shared[:] = mark(key)
            held[key] = [each.private for each in taken]
            for each in taken:
                assert (each.private == mark(key)).all()
            each.private[:] = mark(key)  # A copy of its own, which has to go once this is let go.
            del each, taken
        for key, places in list(held.items()):
            for rank in range(size):
                if chance.random() < 0.5:
                    places[rank] = None
            kept = [array for array in places if array is not None]
            assert all((array == mark(key)).all() for array in kept)
            if not kept:
                del held[key]
            del kept, places
    held.clear()
    for _ in range(100):
        workers.take(50_000)
    assert workers.pools[-1].num_bytes < 200_000
    assert workers.held_bytes() < 200_000


def test_all_workers_raise_where_memory_is_short() -> None:
    for error in run("no_memory", 2):
        assert "the host has no memory for a result of 8000000 bytes: File too large" in error


@pytest.mark.parametrize("size", [2, 3])
def test_no_operation_writes_to_what_others_read(groups: Groups, size: int) -> None:
    assert groups(size).run("tests.cases.collectives:in_place") == [[]] * size
