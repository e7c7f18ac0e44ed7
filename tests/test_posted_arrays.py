"""Arrays that workers of a host show to each other: when their slots are written again."""

import contextlib
import errno
import os
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest

from tfddl._src.comm.native import shm
from tfddl._src.comm.native.fusion_buffer import FusionBuffer
from tfddl._src.comm.native.posted_arrays import SLOTS_PER_WORKER, PostedArrays, max_posted_bytes
from tfddl._src.comm.native.shm import MemoryFile, SharedMemory
from tfddl.errors import CommunicationError, DisagreementError, StalledError

SIZE = 3
LENGTH = 20_000


class Workers:
    """Some workers in one process, each with memory that the others map."""

    def __init__(self) -> None:
        self.file = MemoryFile(SIZE)
        self.memories = [SharedMemory(self.file, rank) for rank in range(SIZE)]
        self.posts = [PostedArrays(SIZE, rank, one) for rank, one in enumerate(self.memories)]
        self.num_slots = 0
        for memory in self.memories:
            self._count_slots(memory)

    def _count_slots(self, memory: SharedMemory) -> None:
        allocate = memory.allocate

        def counted(num_bytes: int) -> tuple[int, np.ndarray]:
            self.num_slots += 1
            return allocate(num_bytes)

        memory.allocate = counted  # type: ignore[method-assign]

    def close(self) -> None:
        self.file.close()


class Operation:
    """An operation of some workers; each posts first, and reads when it is told to."""

    def __init__(self, workers: Workers, value: float, ranks: tuple[int, ...] = (0, 1, 2)) -> None:
        self.value, self.ranks, self.workers = value, ranks, workers
        self._stacks = {rank: contextlib.ExitStack() for rank in ranks}
        self.inputs = {rank: FusionBuffer([self._array(rank)]) for rank in ranks}
        places = {
            rank: self._stacks[rank].enter_context(workers.posts[rank].posted(self.inputs[rank]))
            for rank in ranks
        }
        nothing = np.zeros_like(places[ranks[0]])
        self.gathered = np.stack([places.get(rank, nothing) for rank in range(SIZE)])
        self._rows: dict[int, list[np.ndarray]] = {}

    def _array(self, rank: int) -> np.ndarray:
        return np.full(LENGTH, self.value + rank, np.float32)

    def read(self, rank: int) -> None:
        """Reads what all have posted, and ends there."""
        with self._stacks[rank]:
            self.begin_reading(rank)
            self._check(rank)

    def begin_reading(self, rank: int) -> None:
        posts = self.workers.posts[rank]
        posts.check_memory(self.gathered, self.inputs[rank])
        self._rows[rank] = self._stacks[rank].enter_context(
            posts.read(self.gathered, self.inputs[rank])
        )

    def end_reading(self, rank: int) -> None:
        with self._stacks[rank]:
            self._check(rank)

    def _check(self, rank: int) -> None:
        """What is read is as it was written."""
        for other, row in enumerate(self._rows[rank]):
            expected = self._array(other) if other in self.ranks else np.zeros(LENGTH)
            np.testing.assert_array_equal(row, expected)

    def read_all(self) -> None:
        for rank in self.ranks:
            self.read(rank)

    def differ(self) -> None:
        """Raises everywhere before anything is read."""
        for rank in self.ranks:
            self.fail(rank, DisagreementError)

    def fail(self, rank: int, error: type[Exception]) -> None:
        """Raises on one rank before it reads anything."""
        with pytest.raises(error), self._stacks[rank]:
            raise error


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("size", "expected"),
    # With more than 63 the places themselves would have to be posted.
    [(1, 2**22), (3, 2**22 // 3), (63, 2**22 // 63), (64, 0), (1024, 0)],
)
def test_how_much_is_posted(size: int, expected: int) -> None:
    assert max_posted_bytes(size) == expected


def test_two_slots_take_turns(workers: Workers) -> None:
    for number in range(10):
        Operation(workers, 10.0 * number).read_all()
    assert workers.num_slots == SLOTS_PER_WORKER * SIZE


def test_a_slot_is_kept_until_all_have_read_it(workers: Workers) -> None:
    """A thread of one worker is late, while others go on with operations of other names."""
    late = Operation(workers, 100.0)
    late.read(0)
    late.read(1)
    for number in range(5):
        Operation(workers, 10.0 * number).read_all()
    late.read(2)
    for number in range(20):
        Operation(workers, 10.0 * number).read_all()
    assert workers.num_slots == 3 * SIZE  # That of the late one and two that took turns.


def test_a_slot_is_kept_until_its_own_worker_has_read_it(workers: Workers) -> None:
    """The others have, and say so, while a thread of this one is still at it."""
    slow = Operation(workers, 100.0)
    slow.begin_reading(0)
    slow.read(1)
    slow.read(2)
    for number in range(5):
        Operation(workers, 10.0 * number).read_all()
    slow.end_reading(0)
    for number in range(20):
        Operation(workers, 10.0 * number).read_all()
    assert workers.num_slots == 3 * SIZE  # Nor has it said that it has read the others'.


def test_operations_that_end_in_another_order(workers: Workers) -> None:
    for number in range(10):
        begun = [Operation(workers, 100.0 * number + 10 * i) for i in range(4)]
        for operation in (begun[2], begun[0], begun[3], begun[1]):
            operation.read_all()
    assert workers.num_slots <= 8 * SIZE


def test_what_fails_takes_no_slot_for_ever(workers: Workers) -> None:
    for number in range(10):
        Operation(workers, 10.0 * number).read_all()
        Operation(workers, 1.0).differ()
    assert workers.num_slots <= 3 * SIZE


def test_what_a_worker_has_given_up_can_still_be_read(workers: Workers) -> None:
    given_up = Operation(workers, 100.0)
    given_up.fail(0, StalledError)
    for number in range(5):
        Operation(workers, 10.0 * number).read_all()
    given_up.read(1)
    given_up.read(2)


def test_workers_that_take_no_part_count_as_zeros(workers: Workers) -> None:
    """And are told later what the others have read of theirs."""
    for number in range(10):
        Operation(workers, 10.0 * number).read_all()
        for i in range(3):
            Operation(workers, 500.0 + i, ranks=(0, 2)).read_all()
    assert workers.num_slots <= 4 * SIZE


def test_where_memory_is_short_all_raise_and_go_on(workers: Workers) -> None:
    error = OSError(errno.ENOSPC, "")
    with mock.patch.object(workers.memories[1], "allocate", side_effect=error):
        operation = Operation(workers, 1.0)
    for rank in range(SIZE):
        text = r"the host has no memory for arrays of 80000 bytes: No space left.* HINT: fewer work"
        with pytest.raises(CommunicationError, match=text):
            operation.read(rank)
    Operation(workers, 2.0).read_all()


def test_where_no_descriptor_is_left_the_error_says_what_to_allow(workers: Workers) -> None:
    operation = Operation(workers, 1.0)
    error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    text = r"can't map 131072 bytes of another worker's memory: Too many open.* HINT: .*ulimit -n"
    with (
        mock.patch.object(shm, "_map_shared", side_effect=error),
        pytest.raises(CommunicationError, match=text),
    ):
        operation.read(0)
