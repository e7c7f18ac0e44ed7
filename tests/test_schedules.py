"""Schedules and shared memory, with all workers in one process, without sockets.

The test chooses which connection, or which worker, advances next. So errors that depend on timing
are reproduced each time: numbers that are overwritten before they are reduced, results that are
sent, or read, before they are there.
"""

import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import ml_dtypes
import numpy as np
import pytest

from tfddl._src.comm.native import ReduceOp, schedules, shm_backend, sparse_schedules
from tfddl._src.comm.native.buffer_pool import BufferPool, aligned_size
from tfddl._src.comm.native.fusion_buffer import FusionBuffer
from tfddl._src.comm.native.mesh import Mesh
from tfddl._src.comm.native.operation import OperationContext, OutputBuffers
from tfddl._src.comm.native.schedules import (
    AllReduceSchedule,
    BroadcastSchedule,
    Partition,
    Transfers,
)
from tfddl._src.comm.native.shm import MemoryFile, SharedMemory
from tfddl._src.comm.native.shm_backend import ShmBackend
from tfddl._src.comm.native.sparse_schedules import (
    GatherSchedule,
    SparseSchedule,
    TreeBroadcastSchedule,
    choose_all_reduce,
)
from tfddl._src.comm.native.tcp_backend import _Direction
from tfddl._src.sharding import shard_range

SIZES = pytest.mark.parametrize("size", [2, 3, 4, 5])
UFUNCS = {ReduceOp.SUM: np.add, ReduceOp.MAX: np.maximum}
GARBAGE = 0xAB
"""The bytes of memory that nobody has written to yet."""

PART_BYTES = 32
"""What each worker reduces of a chunk, here."""


class DirtyBuffers(BufferPool):
    """Arrays that are full of garbage."""

    def take(self, dtype: np.dtype, lengths: Sequence[int]) -> list[np.ndarray]:
        arrays = super().take(dtype, lengths)
        for array in arrays:
            array.view(np.uint8)[:] = GARBAGE
        return arrays


class Pipe:
    """The kernel's buffer of one direction of a connection."""

    def __init__(self, capacity: int, most: Callable[[], int]) -> None:
        self.sent = self.received = 0
        self._bytes, self._capacity, self._most = bytearray(), capacity, most

    def send(self, view: memoryview) -> int:
        count = min(len(view), self._capacity - len(self._bytes), self._most())
        if count == 0:
            raise BlockingIOError
        self._bytes += view[:count]
        self.sent += count
        return count

    def receive(self, view: memoryview) -> int:
        count = min(len(view), len(self._bytes), self._most())
        if count == 0:
            raise BlockingIOError
        view[:count] = self._bytes[:count]
        del self._bytes[:count]
        self.received += count
        return count


@dataclasses.dataclass(frozen=True)
class End:
    """One end of a one-way link between two workers."""

    source: int
    target: int
    sends: bool
    direction: _Direction


class Links:
    """All one-way links between some workers."""

    def __init__(
        self,
        size: int,
        sends: Callable[[int, int], Transfers],
        receives: Callable[[int, int], Transfers],
        *,
        capacity: int = 10**9,
        most: Callable[[], int] = lambda: 10**9,
    ) -> None:
        """Connects workers.

        Args:
            size: How many.
            sends: What a worker sends to another one.
            receives: What a worker receives from another one.
            capacity: How many bytes may be under way on each link.
            most: How many bytes the system moves in one call.
        """
        self.pipes, self.ends = {}, []
        for a, b in itertools.permutations(range(size), 2):
            pipe = self.pipes[a, b] = Pipe(capacity, most)
            for is_sender, transfers, move in (
                (True, sends(a, b), pipe.send),
                (False, receives(b, a), pipe.receive),
            ):
                self.ends.append(
                    End(source=a, target=b, sends=is_sender, direction=_Direction(transfers, move))
                )

    def run(self, is_slow: Callable[[End], bool], *, never: bool = False) -> None:
        """Moves all that can be moved; slow ends only when no other can, or never."""
        fast = [end for end in self.ends if not is_slow(end)]
        slow = [end for end in self.ends if is_slow(end)] if not never else []
        while sum(_moves(end) for end in fast) or any(_moves(end) for end in slow):
            pass

    def run_randomly(self, seed: int) -> None:
        """Moves all that can be moved, some ends much more often than others."""
        random = np.random.default_rng(seed)
        paces = random.exponential(size=len(self.ends)) ** 3
        moves = True
        while moves:
            order = np.argsort(random.exponential(size=len(paces)) * paces)
            moves = any(_moves(self.ends[i]) for i in order)

    @property
    def is_over(self) -> bool:
        return all(end.direction.is_done for end in self.ends)


def _moves(end: End) -> bool:
    return not end.direction.is_done and end.direction.advance()


def _connected(workers: Sequence[AllReduceSchedule | BroadcastSchedule], **options: Any) -> Links:
    return Links(
        len(workers),
        lambda a, b: workers[a].sends(b),
        lambda b, a: workers[b].receives(a),
        **options,
    )


Runs = Iterator[tuple[str, dict[str, Any], Callable[[Links], None]]]
"""What a run is called, what the links of it are like, and what runs them."""


def _runs(size: int) -> Runs:
    """Each link, each worker slower than all others, or faster; and at random."""
    slow: dict[str, Callable[[End], bool]] = {}
    for a, b in itertools.permutations(range(size), 2):
        slow[f"slow link {a} to {b}"] = functools.partial(_is_of_link, (a, b))
        slow[f"{b} looks late for {a}"] = functools.partial(_is_getting_end, (a, b))
    for worker in range(size):
        slow[f"slow worker {worker}"] = functools.partial(_is_of_worker, {worker})
        slow[f"fast worker {worker}"] = functools.partial(_is_of_worker, {*range(size)} - {worker})
        slow[f"{worker} sends late"] = functools.partial(_is_sending_end, worker)
    for name, is_slow in slow.items():
        yield name, {}, functools.partial(Links.run, is_slow=is_slow)
    for seed in range(4):
        yield f"random {seed}", {}, functools.partial(Links.run_randomly, seed=seed)
    for seed in range(2):
        most = functools.partial(_some_bytes, np.random.default_rng([size, seed]))
        options = {"capacity": 40, "most": most}
        yield f"small, random {seed}", options, functools.partial(Links.run_randomly, seed=seed)


def _is_of_link(link: tuple[int, int], end: End) -> bool:
    return (end.source, end.target) == link


def _is_getting_end(link: tuple[int, int], end: End) -> bool:
    return _is_of_link(link, end) and not end.sends


def _is_sending_end(worker: int, end: End) -> bool:
    return end.sends and end.source == worker


def _is_of_worker(workers: set[int], end: End) -> bool:
    return (end.source if end.sends else end.target) in workers


def _some_bytes(random: np.random.Generator) -> int:
    return int(random.integers(1, 60))


def _nothing(end: End) -> bool:
    del end
    return False


@dataclasses.dataclass
class Numbers:
    """What each worker has, cut into arrays of the same lengths everywhere."""

    arrays: list[list[np.ndarray]]
    scales: list[float | None]

    @classmethod
    def drawn(cls, size: int, dtype: Any, chunks: float, *, scaled: bool = False) -> "Numbers":
        """Random ones, of so many chunks. Arrays are long, short, of one, and empty."""
        length = int(chunks * size * PART_BYTES / np.dtype(dtype).itemsize) + 1
        random = np.random.default_rng([size, length])
        lengths: list[int] = []
        while sum(lengths) < length:
            some = int(random.integers(1, 9))
            lengths += ([1] * some, [0], [some], [37])[int(random.integers(4))]
        ends = np.cumsum(lengths)
        cuts = ends[ends < length]
        values = [random.normal(size=length) * 100 for _ in range(size)]
        scales: list[float | None] = [None] * size
        if scaled:
            scales = [None, 0.5, 0.0, 3.0, 1.0, 0.25, None, 2.0][:size]
        for value, scale in zip(values, scales, strict=True):
            if scale == 0.0:
                value[::7] = np.nan
        return cls([np.split(value.astype(dtype), cuts) for value in values], scales)

    @property
    def size(self) -> int:
        return len(self.arrays)

    def flat(self, rank: int) -> FusionBuffer:
        return FusionBuffer(self.arrays[rank], scale=self.scales[rank])

    def empty(self) -> list[np.ndarray]:
        """Memory for results, full of garbage."""
        arrays = [np.empty_like(array) for array in self.arrays[0]]
        for array in arrays:
            array.view(np.uint8)[:] = GARBAGE
        return arrays

    def joined(self, rank: int) -> np.ndarray:
        """What a worker has, scaled, without the code that is tested."""
        whole = np.concatenate(self.arrays[rank])
        scale = self.scales[rank]
        if scale is None:
            return whole
        if scale == 0.0:
            return np.zeros_like(whole)
        if whole.dtype.itemsize == 2:
            return (whole.astype(np.float32) * np.float32(scale)).astype(whole.dtype)
        return whole * whole.dtype.type(scale)

    def reduced(self, chunk: int, reduction: ReduceOp) -> np.ndarray:
        """Chunk by chunk, each part by the worker that has it: its own first, then the others'."""
        rows = [self.joined(rank) for rank in range(self.size)]
        result = np.empty_like(rows[0])
        wide = np.float32 if result.dtype.itemsize == 2 else result.dtype
        for start in range(0, len(result), chunk):
            length = min(chunk, len(result) - start)
            for owner in range(self.size):
                first, last = shard_range(length, owner, self.size)
                part = slice(start + first, start + last)
                total = rows[owner][part].astype(wide)
                for other in range(self.size):
                    if other != owner:
                        total = UFUNCS[reduction](total, rows[other][part].astype(wide))
                result[part] = total.astype(result.dtype)
        return result


def _same_bits(found: Sequence[np.ndarray], expected: np.ndarray) -> bool:
    return np.concatenate(found).tobytes() == expected.tobytes()


@pytest.fixture
def _small_parts() -> Iterator[None]:
    with (
        mock.patch.object(schedules, "MAX_PART_BYTES", PART_BYTES),
        mock.patch.object(sparse_schedules, "MAX_PART_BYTES", PART_BYTES),
    ):
        yield


def _sums(
    numbers: Numbers, reduction: ReduceOp
) -> tuple[list[list[np.ndarray]], Callable[..., Links]]:
    """The results of all workers, and what connects these."""
    results = [numbers.empty() for _ in range(numbers.size)]
    sums = [
        AllReduceSchedule(
            Partition(rank, numbers.size),
            numbers.flat(rank),
            FusionBuffer(results[rank]),
            reduction,
            DirtyBuffers(),
        )
        for rank in range(numbers.size)
    ]
    return results, functools.partial(_connected, sums)


KINDS = [
    (np.float32, ReduceOp.SUM, 8.3, False),
    (np.float32, ReduceOp.SUM, 8.3, True),
    (np.float16, ReduceOp.SUM, 5.0, True),
    (np.int16, ReduceOp.MAX, 4.9, False),
    (np.float64, ReduceOp.SUM, 3.0, False),  # As many chunks as are on their way at once.
    (np.float64, ReduceOp.SUM, 2.1, True),
    (np.float32, ReduceOp.SUM, 0.3, False),
]


@pytest.mark.parametrize(
    ("size", "dtype", "reduction", "chunks", "scaled"),
    [(size, *kind) for size, count in ((2, 7), (3, 7), (4, 3), (5, 1)) for kind in KINDS[:count]],
)
@pytest.mark.usefixtures("_small_parts")
def test_sums_are_right_whichever_link_is_slow(
    size: int, dtype: Any, reduction: ReduceOp, chunks: float, scaled: bool
) -> None:
    numbers = Numbers.drawn(size, dtype, chunks, scaled=scaled)
    before = [np.concatenate(arrays).tobytes() for arrays in numbers.arrays]
    expected = numbers.reduced(size * PART_BYTES // np.dtype(dtype).itemsize, reduction)
    for name, options, run in _runs(size):
        results, connect = _sums(numbers, reduction)
        links = connect(**options)
        run(links)
        assert links.is_over, f"{name}: nobody can go on"
        for rank in range(size):
            assert _same_bits(results[rank], expected), f"{name}: rank {rank} has a wrong sum"
    assert [np.concatenate(arrays).tobytes() for arrays in numbers.arrays] == before


def _reduced_sparsely(numbers: Numbers, reduction: ReduceOp) -> np.ndarray:
    """Each segment by halving, or around the ring: rows in the order in which they are added."""
    size, add = numbers.size, UFUNCS[reduction]
    rows = [numbers.joined(rank) for rank in range(size)]
    result = np.empty_like(rows[0])
    for owner in range(size):
        part = slice(*shard_range(len(result), owner, size))
        values = [row[part] for row in rows]
        if size in (8, 16):
            distance = size
            while distance := distance // 2:
                values = [
                    add(values[rank & ~distance], values[rank | distance]) for rank in range(size)
                ]
            result[part] = values[owner]
        else:
            order = [(owner + step) % size for step in range(size)]
            result[part] = functools.reduce(add, [values[rank] for rank in order])
    return result


@pytest.mark.parametrize(
    ("size", "dtype", "reduction", "chunks", "scaled"),
    [
        (5, np.float32, ReduceOp.SUM, 8.3, True),
        (5, np.float64, ReduceOp.SUM, 0.3, False),
        (7, np.int16, ReduceOp.MAX, 4.9, False),
        (8, np.float32, ReduceOp.SUM, 8.3, False),
        (8, np.float64, ReduceOp.SUM, 0.1, True),
        pytest.param(9, np.float32, ReduceOp.SUM, 3.0, False, marks=pytest.mark.long),
        pytest.param(16, np.float32, ReduceOp.SUM, 1.1, False, marks=pytest.mark.long),
    ],
)
@pytest.mark.usefixtures("_small_parts")
def test_sums_between_many_are_right_whichever_link_is_slow(
    size: int, dtype: Any, reduction: ReduceOp, chunks: float, scaled: bool
) -> None:
    numbers = Numbers.drawn(size, dtype, chunks, scaled=scaled)
    expected = _reduced_sparsely(numbers, reduction)
    total = sum(array.nbytes for array in numbers.arrays[0])
    runs = [run for run in _runs(size) if "worker" in run[0] or "random" in run[0]]
    for name, options, run in runs:
        results = [numbers.empty() for _ in range(size)]
        sums = [
            choose_all_reduce(
                Partition(rank, size),
                numbers.flat(rank),
                FusionBuffer(results[rank]),
                reduction,
                DirtyBuffers(),
            )
            for rank in range(size)
        ]
        links = Links(
            size,
            functools.partial(_transfers, "sends", sums),
            functools.partial(_transfers, "receives", sums),
            **options,
        )
        run(links)
        assert links.is_over, f"{name}: nobody can go on"
        for rank in range(size):
            assert _same_bits(results[rank], expected), f"{name}: rank {rank} has a wrong sum"
            assert len(sums[rank].peers) <= np.log2(size)
            sent = sum(pipe.sent for (source, _), pipe in links.pipes.items() if source == rank)
            assert sent <= 2 * total * (size - 1) / size + 4 * size * 8


@pytest.mark.parametrize(
    "size", [5, 8, *(pytest.param(size, marks=pytest.mark.long) for size in (11, 16))]
)
@pytest.mark.usefixtures("_small_parts")
def test_gathers_and_broadcasts_between_many_arrive_whichever_link_is_slow(size: int) -> None:
    numbers = Numbers.drawn(size, np.float32, 1.3)
    whole = np.random.default_rng(size).normal(size=(size, 20))
    runs = [run for run in _runs(size) if "worker" in run[0] or "random" in run[0]]
    for root, (name, options, run) in zip(itertools.cycle([0, 3, size - 1]), runs, strict=False):
        tables = [np.full_like(whole, np.nan) for _ in range(size)]
        results = [numbers.empty() for _ in range(size)]
        for rank, table in enumerate(tables):
            table[rank] = whole[rank]
        for result, own in zip(results[root], numbers.arrays[root], strict=True):
            result[:] = own
        gathers = [GatherSchedule(Partition(r, size), table) for r, table in enumerate(tables)]
        broadcasts = [
            TreeBroadcastSchedule(Partition(r, size), FusionBuffer(result), root, DirtyBuffers())
            for r, result in enumerate(results)
        ]
        schedules_of_ranks: list[Sequence[SparseSchedule]] = [gathers, broadcasts]
        for of_ranks in schedules_of_ranks:
            links = Links(
                size,
                functools.partial(_transfers, "sends", of_ranks),
                functools.partial(_transfers, "receives", of_ranks),
                **options,
            )
            run(links)
            assert links.is_over, f"{name}: nobody can go on"
            assert all(len(schedule.peers) <= max(3, np.log2(size)) for schedule in of_ranks)
        for rank in range(size):
            assert tables[rank].tobytes() == whole.tobytes(), f"{name}, rank {rank}"
            assert _same_bits(results[rank], numbers.joined(root)), f"{name}, rank {rank}, {root=}"


def _transfers(kind: str, sums: Sequence[SparseSchedule], rank: int, peer: int) -> Transfers:
    if peer not in sums[rank].peers:
        return iter(())
    return getattr(sums[rank], kind)(peer)


def test_few_workers_and_16_bit_floats_are_reduced_directly() -> None:
    """Each by one worker, from all inputs: those of 16 bits are rounded once."""
    for size, dtype in ((4, np.float32), (8, np.float16), (6, ml_dtypes.bfloat16)):
        flat = FusionBuffer([np.zeros(100, dtype)])
        given = Partition(0, size), flat, flat, ReduceOp.SUM, BufferPool()
        assert isinstance(choose_all_reduce(*given), AllReduceSchedule)


@pytest.mark.parametrize("size", [3, 4])
@pytest.mark.usefixtures("_small_parts")
def test_a_stalled_link_stalls_the_others_some_chunks_later(size: int) -> None:
    """No more than there is memory for; but no less, as links would wait for each other then."""
    numbers = Numbers.drawn(size, np.float32, 8.3)
    for slow in itertools.permutations(range(size), 2):
        _, connect = _sums(numbers, ReduceOp.SUM)
        links = connect()
        links.run(functools.partial(_is_of_link, slow), never=True)
        for (_, target), pipe in links.pipes.items():
            if target == slow[1] and pipe is not links.pipes[slow]:
                # Numbers of three chunks have come. Of the sums of the first none are there yet,
                # and the fourth one's memory is that of the first, whose numbers it still has.
                assert pipe.received == 3 * PART_BYTES
        links.run(_nothing)
        assert links.is_over


@pytest.mark.parametrize(
    ("size", "chunks"), [(2, 2.4), (3, 5.4), (3, 1.0), (3, 0.2), (4, 5.4), (5, 2.4)]
)
@pytest.mark.usefixtures("_small_parts")
def test_a_broadcast_arrives_whichever_link_is_slow(size: int, chunks: float) -> None:
    numbers = Numbers.drawn(size, np.float32, chunks)
    for root, (name, options, run) in itertools.product({0, size - 1}, _runs(size)):
        results = [numbers.empty() for _ in range(size)]
        for result, own in zip(results[root], numbers.arrays[root], strict=True):
            result[:] = own
        broadcasts = [
            BroadcastSchedule(
                Partition(rank, size), FusionBuffer(results[rank]), root, DirtyBuffers()
            )
            for rank in range(size)
        ]
        links = _connected(broadcasts, **options)
        run(links)
        assert links.is_over, f"{name}: nobody can go on"
        for rank in range(size):
            assert _same_bits(results[rank], numbers.joined(root)), f"{name}: rank {rank}, {root=}"


@pytest.mark.usefixtures("_small_parts")
def test_each_worker_sends_less_than_twice_what_it_has() -> None:
    for size in (2, 3, 5, 8):
        numbers = Numbers.drawn(size, np.float32, 6.0)
        _, connect = _sums(numbers, ReduceOp.SUM)
        links = connect()
        links.run(_nothing)
        total = sum(array.nbytes for array in numbers.arrays[0])
        for rank in range(size):
            sent = sum(pipe.sent for (source, _), pipe in links.pipes.items() if source == rank)
            assert sent <= 2 * total * (size - 1) / size + 4 * size * 8


@pytest.mark.parametrize(
    ("size", "chunk_bytes"), [(2, 2**20), (3, 3 * 2**19), (16, 2**23), (17, 2**23), (1000, 2**23)]
)
def test_chunk_sizes(size: int, chunk_bytes: int) -> None:
    """Half a MiB for each worker, 8 MiB at most."""
    chunks = Partition(0, size).chunks(FusionBuffer([np.empty(5 * 2**20, np.float32)]))
    assert chunks[0] == range(chunk_bytes // 4)
    assert [c.start for c in chunks[1:]] == [c.stop for c in chunks[:-1]]
    assert chunks[-1].stop == 5 * 2**20


@pytest.mark.parametrize(("count", "calls"), [(4, 4), (5, 1)])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_few_segments_are_sent_one_by_one_and_many_at_once(
    count: int, calls: int, scale: float | None
) -> None:
    scratch, part = np.zeros(16, np.float32), range(1, 2 * count)
    values = [np.full(2, i + 1.0, np.float32) for i in range(count)]
    going = [
        some.tolist()
        for some in schedules.outgoing(FusionBuffer(values, scale=scale), part, scratch)
    ]
    assert len(going) == calls
    expected = (np.concatenate(values)[1:] * (scale or 1.0)).tolist()
    sent: list[float] = sum(going, [])
    assert sent == expected
    arrived = [np.zeros(2, np.float32) for _ in range(count)]
    coming = 0
    for place in schedules.incoming(FusionBuffer(arrived), part, scratch):
        coming += 1
        place[:] = sent[: len(place)]
        sent = sent[len(place) :]
    assert coming == calls
    assert np.concatenate(arrived).tolist() == [0.0, *expected]


class Scheduler:
    """Workers in threads of which one runs at a time: up to its next barrier, or its end.

    Which one is the test's choice, among those whose barrier all have come to.
    """

    def __init__(self, size: int, choose: Callable[[list[int]], int]) -> None:
        self._size, self._choose = size, choose
        self._arrived, self._ended = [0] * size, [False] * size
        self._values: dict[tuple[int, int], int] = {}
        self._running = -1
        self._errors: list[BaseException] = []
        self._changed = threading.Condition()

    def step(self, rank: int, number: int) -> dict[int, int]:
        """Called by a worker's thread; returns what the others have told."""
        with self._changed:
            self._arrived[rank] += 1
            at = self._arrived[rank]
            self._values[rank, at] = number
            self._hand_over()
            self._wait_for(rank)
            return {r: self._values[r, at] for r in range(self._size) if r != rank}

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """What the work of each worker returned."""
        results: list[Any] = [None] * self._size

        def one(rank: int) -> None:
            try:
                with self._changed:
                    self._wait_for(rank)
                results[rank] = work(rank)
            except BaseException as error:  # noqa: BLE001 - it is raised where the test runs
                self._errors.append(error)
            finally:
                with self._changed:
                    self._ended[rank] = True
                    self._hand_over()

        threads = [threading.Thread(target=one, args=(r,), daemon=True) for r in range(self._size)]
        for thread in threads:
            thread.start()
        with self._changed:
            while not self._errors and (ready := self._ready()):
                self._running = self._choose(ready)
                self._changed.notify_all()
                assert self._changed.wait_for(lambda: self._running < 0, timeout=60)
            if not self._errors and not all(self._ended):
                self._errors.append(AssertionError("some wait for a step that others don't make"))
            self._changed.notify_all()
        for thread in threads:
            thread.join(60)
        if self._errors:
            raise self._errors[0]
        return results

    def _ready(self) -> list[int]:
        reached = min(self._arrived)
        return [r for r in range(self._size) if not self._ended[r] and self._arrived[r] <= reached]

    def _hand_over(self) -> None:
        self._running = -1
        self._changed.notify_all()

    def _wait_for(self, rank: int) -> None:
        def is_over() -> bool:
            return self._running == rank or bool(self._errors)

        assert self._changed.wait_for(is_over, timeout=60)
        if self._errors:
            raise AssertionError("another worker has failed")


class StubOperation:
    """The barriers of an operation, ordered by a `Scheduler`."""

    def __init__(self, scheduler: Scheduler, rank: int) -> None:
        self._meeting, self._rank = scheduler, rank

    def barrier(self) -> None:
        self._meeting.step(self._rank, 0)

    def exchange(self, number: int) -> dict[int, int]:
        return self._meeting.step(self._rank, number)


CHUNK_BYTES = 320


@pytest.fixture
def _small_chunks() -> Iterator[None]:
    with mock.patch.object(shm_backend, "CHUNK_BYTES", CHUNK_BYTES):
        yield


@dataclasses.dataclass
class Host:
    """Workers that see each other's memory, and what chooses who runs."""

    backends: list[ShmBackend]
    scheduler: Scheduler
    offers: dict[int, bytes] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, size: int, choose: Callable[[list[int]], int]) -> "Host":
        file, backends = MemoryFile(size), []
        for rank in range(size):
            mesh = cast(Mesh, SimpleNamespace(rank=rank))
            backends.append(ShmBackend(mesh, range(size), memory=SharedMemory(file, rank)))
        return cls(backends, Scheduler(size, choose))

    def operation(self, rank: int) -> OperationContext:
        """Of a new operation, which begins once all have come to it."""
        operation = StubOperation(self.scheduler, rank)
        operation.barrier()
        return cast(OperationContext, operation)

    def outputs(
        self, operation: OperationContext, rank: int, number: int, arrays: list[np.ndarray]
    ) -> OutputBuffers:
        """Memory of all for results like these arrays; garbage, or those of an operation before."""
        dtype, lengths = arrays[0].dtype, [len(array) for array in arrays]
        self.offers[rank] = self.backends[rank].offer_free(number)
        operation.barrier()
        if rank == 0:
            offers = [self.offers[r] for r in range(len(self.backends))]
            num_bytes = aligned_size(dtype, lengths)
            self.offers[-1] = self.backends[0].assign_outputs(num_bytes, number, offers)
        operation.barrier()
        return self.backends[rank].map_outputs(self.offers[-1], dtype, lengths)

    def close(self) -> None:
        self.backends[0]._memory.file.close()


def _choices(size: int) -> Iterator[tuple[str, Callable[[list[int]], int]]]:
    """One worker always before all others, or after them; and at random."""
    for rank in range(size):
        yield f"rank {rank} first", functools.partial(_first, rank)
        yield f"rank {rank} last", functools.partial(_last, rank)
    for seed in range(2):
        yield f"random {seed}", functools.partial(_any, np.random.default_rng(seed))


def _first(rank: int, ready: list[int]) -> int:
    return rank if rank in ready else ready[0]


def _last(rank: int, ready: list[int]) -> int:
    return next((other for other in ready if other != rank), rank)


def _any(random: np.random.Generator, ready: list[int]) -> int:
    return int(random.choice(ready))


@SIZES
@pytest.mark.usefixtures("_small_chunks")
def test_shared_memory_is_right_whichever_worker_is_first(size: int) -> None:
    """Several operations in a row: memory has what the operation before has left in it."""
    sums = [
        (Numbers.drawn(size, dtype, chunks * CHUNK_BYTES / (size * PART_BYTES), scaled=scaled), how)
        for dtype, how, chunks, scaled in KINDS
    ]
    random = np.random.default_rng(size)
    lengths = random.integers(0, 200, (size, size))
    parts = [[random.normal(size=n).astype(np.float32) for n in row] for row in lengths]
    rows = [random.normal(size=300) for _ in range(size)]
    root = size - 1
    for name, choose in _choices(size):
        host = Host.of(size, choose)
        gathered = np.full((size, 300), np.nan)
        copied = sums[0][0].empty()

        def work(
            rank: int,
            host: Host = host,
            gathered: np.ndarray = gathered,
            copied: list[np.ndarray] = copied,
        ) -> dict[str, Any]:
            backend = host.backends[rank]
            found: dict[str, Any] = {}
            for i, (numbers, how) in enumerate(sums):
                operation = host.operation(rank)
                outputs = host.outputs(operation, rank, i, numbers.arrays[rank])
                backend.all_reduce(operation, numbers.flat(rank), FusionBuffer(outputs.shared), how)
                found[f"reduce {i}"] = np.concatenate(outputs.private).tobytes()
                found[f"all_to_all {i}"] = _exchanged(backend, host.operation(rank), parts, rank)
            backend.all_gather(host.operation(rank), rows[rank], gathered)
            found["gather"] = gathered.tobytes()
            mine = sums[0][0].flat(rank)
            backend.broadcast(host.operation(rank), mine, FusionBuffer(copied), root)
            found["broadcast"] = np.concatenate(copied).tobytes()
            found["written"] = backend.counters.written
            return found

        try:
            results = host.scheduler.run(work)
        finally:
            host.close()
        for rank, found in enumerate(results):
            for i, (numbers, how) in enumerate(sums):
                itemsize = numbers.arrays[0][0].dtype.itemsize
                expected = numbers.reduced(CHUNK_BYTES // itemsize, how).tobytes()
                assert found[f"reduce {i}"] == expected, f"{name}, rank {rank}, {i}"
                exchanged = [parts[source][rank].tolist() for source in range(size)]
                assert found[f"all_to_all {i}"] == exchanged, f"{name}, rank {rank}, {i}"
            assert found["gather"] == np.stack(rows).tobytes(), f"{name}, rank {rank}"
            # A byte for each that is reduced: those of the others' parts, and this worker's sums.
            reduced = sum(array.nbytes for numbers, _ in sums for array in numbers.arrays[rank])
            assert found["written"] == reduced, f"{name}, rank {rank}"
            copy = np.concatenate(sums[0][0].arrays[root]).tobytes()
            assert found["broadcast"] == copy, f"{name}, rank {rank}"


def _exchanged(
    backend: ShmBackend, operation: OperationContext, parts: list[list[np.ndarray]], rank: int
) -> list[list[float]]:
    """What each worker has had for this one, in bounds one behind the other."""
    expected = [len(row[rank]) for row in parts]
    arrived = [np.full(length, np.nan, np.float32) for length in expected]

    bounds: list[tuple[int, int]] = []

    def consume(at: int, spans: list[np.ndarray]) -> None:
        (length,) = {len(span) for span in spans}
        bounds.append((at, at + length))
        for mine, span in zip(arrived, spans, strict=True):
            target = mine[at : at + len(span)]
            target[:] = span[: len(target)]

    longest = max(len(part) for row in parts for part in row)
    backend.all_to_all(operation, parts[rank], expected, longest, consume)
    assert [0, *(stop for _, stop in bounds)] == [*(start for start, _ in bounds), longest]
    return [array.tolist() for array in arrived]
