"""Cases about `tfddl._src.comm.native`, run by every worker of `tests.native_workers`."""

import errno
import functools
import hashlib
import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np

from tests.processes import wait_until
from tfddl._src.comm.native import (
    Communicator,
    Network,
    OpSignature,
    ReduceOp,
    describe_exit,
    reductions,
)
from tfddl._src.comm.native import communicator as communicator_module
from tfddl._src.comm.native.reductions import REDUCED
from tfddl._src.comm.native.shm_backend import ShmBackend
from tfddl.errors import (
    CommunicationError,
    DisagreementError,
    PeerLostError,
    StalledError,
    UnsupportedError,
)

LENGTHS = (0, 1, 7, 4_096, 300_001, 1_000_003)
DTYPES = (
    *(np.bool_, np.uint8, np.int8, np.int16, np.int32, np.int64),
    *(np.float16, ml_dtypes.bfloat16, np.float32, np.float64),
)
_FUNCTIONS = {
    ReduceOp.SUM: np.add,
    ReduceOp.PRODUCT: np.multiply,
    ReduceOp.MIN: np.minimum,
    ReduceOp.MAX: np.maximum,
}


def _made(rank: int, length: int, dtype: Any) -> np.ndarray:
    """Small whole numbers, so that sums and products are exact in every dtype."""
    return (np.arange(length) % 3 + rank % 2).astype(dtype)


def _expected(size: int, length: int, dtype: Any, reduction: ReduceOp) -> np.ndarray:
    total = _made(0, length, dtype)
    for rank in range(1, size):
        total = _FUNCTIONS[reduction](total, _made(rank, length, dtype))
    return total


def everything(communicator: Communicator, network: Network, few: bool = False) -> dict[str, Any]:
    """All operations, dtypes and lengths; what is wrong.

    Few of them where there are many workers: products of many numbers are exact in few dtypes.
    """
    wrong = []
    digest = hashlib.sha256()

    def check(what: str, found: np.ndarray, expected: np.ndarray) -> None:
        digest.update(found.tobytes())
        if found.dtype != expected.dtype or not np.array_equal(found, expected):
            wrong.append(what)

    for dtype in (np.float64,) if few else DTYPES:
        for length in LENGTHS if dtype in (np.float32, np.int8) else (3, 40_001):
            what = f"{np.dtype(dtype).name} {length}"
            mine = _made(communicator.rank, length, dtype)
            for reduction in REDUCED:
                if dtype is np.bool_ and reduction not in (ReduceOp.MIN, ReduceOp.MAX):
                    continue
                expected = _expected(communicator.size, length, dtype, reduction)
                parts = np.array_split(mine, 3 if length % 2 else 11)  # Few, or many to a chunk.
                reduced = communicator.all_reduce(
                    parts, reduction, OpSignature("", f"reduce {what}")
                )
                check(f"{reduction} {what}", np.concatenate(reduced), expected)
                lengths = [length, *[0] * (communicator.size - 1)][::-1]
                mine_only = communicator.reduce_scatter(
                    mine, lengths, reduction, OpSignature("", what)
                )
                last = communicator.rank == communicator.size - 1
                check(f"scatter {what}", mine_only, expected if last else expected[:0])
            gathered = communicator.all_gather(mine, OpSignature("gather", what))
            rows = np.stack([_made(rank, length, dtype) for rank in range(communicator.size)])
            check(f"gather {what}", gathered, rows)
            [received] = communicator.broadcast(
                [mine], communicator.size - 1, OpSignature("", what)
            )
            check(f"broadcast {what}", received, rows[-1])
            table = np.array(
                [[length + i + j for j in communicator.ranks] for i in communicator.ranks]
            )
            exchanged = communicator.all_to_all(
                [
                    _made(communicator.rank + to, n, dtype)
                    for to, n in enumerate(table[communicator.rank])
                ],
                table,
                OpSignature("", what),
            )
            parts = [
                _made(i + communicator.rank, table[i, communicator.rank], dtype)
                for i in communicator.ranks
            ]
            # What stays with a rank has no digest in common with others.
            if not np.array_equal(exchanged, np.concatenate(parts)):
                wrong.append(f"all_to_all {what}")
            # Each has something for itself only, the last one not even that.
            own = np.diag([*[length] * (communicator.size - 1), 0])
            here = mine[: own[communicator.rank, communicator.rank]]
            nothing = mine[:0]
            parts = [here if rank == communicator.rank else nothing for rank in communicator.ranks]
            if not np.array_equal(communicator.all_to_all(parts, own, OpSignature("", what)), here):
                wrong.append(f"keep {what}")
    return {"wrong": wrong, "digest": _common(digest, communicator)}


def _common(digest: Any, communicator: Communicator) -> str:
    """A digest of what all ranks should have alike: reductions, gathers and broadcasts."""
    return "" if communicator.rank == communicator.size - 1 else digest.hexdigest()


def rounds_once(communicator: Communicator, network: Network) -> tuple[list[float], bytes]:
    """Sums of 16-bit floats, and random sums, whose bits have to be the same everywhere."""
    ones = communicator.all_reduce(
        [np.full(40_000, 1.0 if communicator.rank else 2048.0, np.float16)],
        ReduceOp.SUM,
        OpSignature("", "a"),
    )
    noise = np.random.default_rng(communicator.rank).normal(size=100_003).astype(np.float32)
    [total] = communicator.all_reduce([noise], ReduceOp.SUM, OpSignature("", "b"))
    return ones[0][:1].tolist(), total.tobytes()


def rows(communicator: Communicator, network: Network) -> list[str]:
    """What is wrong with rows that are joined, of which each rank has as many as it likes."""
    wrong = []

    def made(rank: int, number: int, dtype: Any, *inner: int) -> np.ndarray:
        return np.arange(number * math.prod(inner)).reshape(number, *inner).astype(dtype) + dtype(
            rank
        )

    kinds: list[tuple[Any, tuple[int, ...]]] = [
        (np.float32, (3,)),
        (np.int64, ()),
        (np.int8, (5, 1)),
        (np.float16, (0,)),
    ]
    # Nothing, as many of all, others on each; within messages, posted, and neither.
    for number, more in ((0, 0), (0, 1), (4, 0), (7, 3), (9_000, 0), (5_000, 1_001), (300_000, 7)):
        for some in (kinds, kinds[:1], kinds[1:2]):
            counts = [number + more * rank for rank in range(communicator.size)]
            mine = [
                made(communicator.rank, counts[communicator.rank], dtype, *inner)
                for dtype, inner in some
            ]
            what = f"{number} + {more}, {len(some)} arrays"
            found, *joined = communicator.gather_rows(mine, OpSignature("", what))
            if found.tolist() != [[count] * len(some) for count in counts]:
                wrong.append(f"{what}: {found}")
            for (dtype, inner), one in zip(some, joined, strict=True):
                expected = np.concatenate(
                    [made(rank, count, dtype, *inner) for rank, count in enumerate(counts)]
                )
                if one.dtype != dtype or not np.array_equal(one, expected):
                    wrong.append(f"{what}: {np.dtype(dtype)} {inner}")
    return wrong


def weighted(communicator: Communicator, network: Network) -> list[str]:
    """What is wrong with means that ranks weight, whose numbers travel with what they weigh."""
    rank, size = communicator.rank, communicator.size
    wrong = []
    # Within messages, posted in memory of all, reduced in parts; a rank may have nothing.
    for length in (5, 40_000, 700_000):
        for dtype in (np.float32, np.float64):
            value = np.nan if rank == 0 else 1.0 + rank
            mine = [np.full(n, value, dtype) for n in (length, 3, 0)]
            head = np.array([rank, 1.0, np.inf if rank == 0 else 0.0], dtype)
            total = sum(range(size))
            sums = sum(r * (1.0 + r) for r in range(size))
            for divisor, number in ((None, total), (2.0, 2.0), (1.0, 1.0), (0.0, np.inf)):
                what = f"{np.dtype(dtype)} {length} / {divisor}"
                found, *means = communicator.sum_weighted(
                    head, mine, OpSignature("", what), weight=float(rank), divisor=divisor
                )
                if found.tolist() != [total, size, np.inf]:
                    wrong.append(f"{what}: {found}")
                expected = dtype(sums) / dtype(number)
                for array, mean in zip(mine, means, strict=True):
                    if mean.dtype != dtype or mean.tolist() != [expected] * len(array):
                        wrong.append(f"{what}: {mean[:3]} of {len(array)}")
            # What was given stays as it is.
            if not np.array_equal(mine[0], np.full(length, value, dtype), equal_nan=True):
                wrong.append(f"{np.dtype(dtype)} {length}: {mine[0][:3]}")
    return wrong


def scaled(communicator: Communicator, network: Network) -> list[list[float]]:
    """Each rank's numbers times its own factor; a factor of 0 hides even what isn't a number."""
    found = []
    for length in (5, 100_000):
        value = np.nan if communicator.rank == 0 else 8.0
        mine = [np.full(length, value, np.float32), np.full(3, 2.0, np.float32)]
        scale = 0.0 if communicator.rank == 0 else 0.25
        for dtype in (np.float32, np.float16):
            numbers = [array.astype(dtype) for array in mine]
            totals = communicator.all_reduce(
                numbers, ReduceOp.SUM, OpSignature("", "scaled"), scale=scale
            )
            found.append([float(total[-1]) for total in totals])
    return found


def threads(communicator: Communicator, network: Network, count: int, length: int) -> list[float]:
    """Calls by name from several threads, on each rank in another order."""
    found = {}

    def call(number: int) -> None:
        mine = np.full(length, number + communicator.rank, np.float64)
        found[number] = communicator.all_reduce(
            [mine], ReduceOp.SUM, OpSignature(f"n{number}", "x")
        )[0][-1]

    order = range(count) if communicator.rank == 0 else reversed(range(count))
    running = [threading.Thread(target=call, args=(number,)) for number in order]
    if communicator.rank:
        time.sleep(0.3)  # The first one's messages have to wait somewhere meanwhile.
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return [float(found[number]) for number in range(count)]


def disagree(communicator: Communicator, network: Network) -> list[str]:
    messages = []
    odd = communicator.rank == communicator.size - 1
    for length, text in (
        (3 + odd, "allreduce <loss>"),
        (4, f"kind {odd}"),
        (100_000 + odd, "large"),
    ):
        try:
            communicator.all_reduce([np.zeros(length)], ReduceOp.SUM, OpSignature("loss", text))
        except DisagreementError as error:
            messages.append(str(error))
        [total] = communicator.all_reduce(
            [np.ones(50_000)], ReduceOp.SUM, OpSignature("loss", "next")
        )
        assert (total == communicator.size).all()
    return messages


def dies(communicator: Communicator, network: Network, length: int) -> tuple[str, float]:
    """The last rank is killed in the middle of a call of the others."""
    communicator.all_reduce([np.zeros(length)], ReduceOp.SUM, OpSignature("", "warm"))
    begin_s = time.monotonic()
    if communicator.rank == communicator.size - 1:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        communicator.all_reduce(
            [np.zeros(length)], ReduceOp.SUM, OpSignature("gradients", "allreduce <gradients>")
        )
    except PeerLostError as error:
        return str(error), time.monotonic() - begin_s
    return "no error", 0.0


def joins(  # noqa: C901 - one after the other
    communicator: Communicator, network: Network, length: int
) -> list[Any]:
    """In each of two rounds, rank r takes part in 2 + r operations of each kind, or the first in
    most, and joins; what is wrong, who was the last, and what the last one was told."""
    size, rank = communicator.size, communicator.rank
    mine = _made(rank, length, np.float32) + 1
    wrong: list[str] = []
    lasts: list[int] = []
    told: set[str] = set()
    for order in (list(range(size)), list(range(size))[::-1]):
        for number in range(2 + order[rank]):
            here = [r for r in range(size) if number < 2 + order[r]]
            if len(here) == 1:  # Of a name that the others don't know, sent before they join.
                communicator.all_reduce([mine], ReduceOp.SUM, OpSignature("late", "late"))
            for reduction in REDUCED:
                rows = [_made(r, length, np.float32) + 1 for r in here]
                rows += [np.zeros(length, np.float32)] * (size > len(here))
                found = np.concatenate(
                    communicator.all_reduce(
                        np.array_split(mine, 3), reduction, OpSignature("", f"{reduction}")
                    )
                )
                if not np.array_equal(found, functools.reduce(_FUNCTIONS[reduction], rows)):
                    wrong.append(f"{reduction} {number}")
            rows = [(_made(r, length, np.float32) + 1) * (r in here) for r in range(size)]
            rows_found = communicator.all_gather(mine, OpSignature("", "rows"), joinable=True)
            if not np.array_equal(rows_found, np.stack(rows)):
                wrong.append(f"rows {number}")
            told |= _refused_after_joining(communicator, mine)
        is_last = order[rank] == size - 1
        if not is_last:
            time.sleep(0.1)
        joined = communicator.join(OpSignature("", "join"))
        lasts.append(joined.last)
        if joined.missed != (len(REDUCED) + 3) * (size - 1 - order[rank]) + (not is_last):
            wrong.append(f"missed {joined.missed}")
        left = len(network.mesh._mailbox)
        if left > 3:  # The late ones, and what the others do already.
            wrong.append(f"{left} messages left")
        if is_last:
            time.sleep(0.1)  # Its message comes after the one that is left.
        [found] = communicator.all_reduce([mine * 2], ReduceOp.SUM, OpSignature("late", "late"))
        if found[0] != sum(2 * (_made(r, 1, np.float32)[0] + 1) for r in range(size)):
            wrong.append("what was late has come")
    return [wrong, lasts, sorted(told)]


def _refused_after_joining(communicator: Communicator, mine: np.ndarray) -> set[str]:
    """What ranks are told that gather, or differ, while others have joined."""
    name = "allreduce <mine>" if communicator.rank % 2 else "allreduce <other>"
    told = set()
    for call in (
        lambda: communicator.all_gather(mine, OpSignature("g", "allgather <g>")),
        lambda: communicator.all_reduce([mine], ReduceOp.SUM, OpSignature("", name)),
    ):
        try:
            call()
        except DisagreementError as error:
            told.add(str(error))
    return told


def joins_in_order(communicator: Communicator, network: Network, marks: str) -> int:
    """The last rank joins first, then the one before it, …: each once rank 0 knows of the other."""
    rank = communicator.rank
    if rank == 0:
        others = list(range(1, communicator.size))
        for other in reversed(others):
            Path(marks, str(other)).touch()

            def has_joined(other: int = other) -> bool:
                network.mesh.raise_if_unreachable(others, OpSignature("", "waiting"))
                return other in network.mesh.arrived(communicator._starter._joins.tag)

            wait_until(has_joined)
    else:
        wait_until(Path(marks, str(rank)).exists)
    return communicator.join(OpSignature("", "join")).last


def joins_beside_a_late_rank(
    communicator: Communicator, network: Network, join_s: float, late_s: float
) -> float:
    """Rank 0 waits for rank 1, which is late, and asks rank 2 meanwhile, which then joins."""
    if communicator.rank == 2:
        time.sleep(join_s)
        total = 0.0
    else:
        time.sleep(late_s if communicator.rank == 1 else 0)
        total = _sum(communicator, "step")
    communicator.join(OpSignature("", "join"))
    return total


def dies_joined(communicator: Communicator, network: Network) -> str:
    """The last rank is killed once it has joined, which the others wait for."""
    if communicator.rank == communicator.size - 1:
        threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGKILL]).start()
        communicator.join(OpSignature("", "join"))
    try:
        while True:
            _sum(communicator, "step")
    except PeerLostError as error:
        return str(error)


def exits(communicator: Communicator, network: Network, problem: str) -> list[str]:
    """The last rank says how it has ended, and ends; the others wait for it, more than once."""
    errors: list[str] = []
    if communicator.rank == communicator.size - 1:
        network.mesh.announce_exit(describe_exit(ValueError(problem) if problem else None))
        return errors
    for name in ("first", "second"):
        try:
            _sum(communicator, name)
        except PeerLostError as error:
            errors.append(str(error))
    return errors


def dies_late(communicator: Communicator, network: Network) -> str:
    """The last rank is killed where it would take room for the results of something large."""

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    dies = communicator.rank == communicator.size - 1
    with mock.patch.object(
        communicator._backend, "map_outputs", die if dies else communicator._backend.map_outputs
    ):
        try:
            communicator.all_reduce([np.zeros(500_000)], ReduceOp.SUM, OpSignature("", "allreduce"))
        except PeerLostError as error:
            return f"PeerLostError: {error}"
    return "no error"


def busy(communicator: Communicator, network: Network, seconds: float) -> list[float]:
    """The last rank comes late to what others have begun in several threads, at full mailboxes."""
    found = []

    def call(number: int) -> None:
        mine = [np.ones(8_000)]
        totals = [
            communicator.all_reduce(mine, ReduceOp.SUM, OpSignature(f"{number}", "sum"))[0]
            for _ in range(10)
        ]
        found.append(float(totals[-1][-1]))

    if communicator.rank == communicator.size - 1:
        time.sleep(seconds)
    running = [threading.Thread(target=call, args=(number,)) for number in range(40)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return found


def _barrier(communicator: Communicator) -> None:
    """Ranks continue from here at once, however long each took to start."""
    communicator.all_reduce([np.zeros(1)], ReduceOp.SUM, OpSignature("", "barrier"))


def stalls(communicator: Communicator, network: Network) -> str:
    """Ranks wait for each other in different calls."""
    _barrier(communicator)
    name = "left" if communicator.rank == 0 else "right"
    try:
        communicator.all_reduce(
            [np.zeros(3)], ReduceOp.SUM, OpSignature(name, f"allreduce <{name}>\nfloat64 (3)")
        )
    except StalledError as error:
        return str(error)
    return "no error"


def stalls_in_sets(communicator: Communicator, network: Network, marks: str) -> list[str]:
    """Rank 0 waits in two threads, rank 1 in a third call, rank 2 for rank 1 in a set of theirs.

    None ends before all have given up: the others would say that it has ended.
    """
    _barrier(communicator)
    errors: list[str] = []
    pair = Communicator(network, (1, 2)) if network.mesh.rank else communicator

    def call(one: Communicator, name: str) -> None:
        try:
            one.all_reduce([np.zeros(3)], ReduceOp.SUM, OpSignature(name, f"allreduce <{name}>"))
        except StalledError as error:
            errors.append(str(error))

    calls = {
        0: [(communicator, "a"), (communicator, "b")],
        1: [(communicator, "c")],
        2: [(pair, "d")],
    }[network.mesh.rank]
    running = [threading.Thread(target=call, args=one) for one in calls]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    Path(marks, str(communicator.rank)).touch()
    wait_until(lambda: all(Path(marks, str(rank)).exists() for rank in range(communicator.size)))
    return sorted(errors)


def _sum(communicator: Communicator, name: str) -> float:
    [total] = communicator.all_reduce(
        [np.ones(3)], ReduceOp.SUM, OpSignature(name, f"allreduce <{name}>")
    )
    return float(total[0])


def deadlock_of_sets(communicator: Communicator, network: Network, marks: str) -> str:
    """Each rank waits for the next one, in a set of these two; the last has nothing to do with it.

    It comes later to something of all ranks. No other ends before all of them have been told.
    """
    rank, others = network.mesh.rank, communicator.size - 1
    try:
        if rank == others:
            _sum(communicator, "all")
        pair = sorted([rank, (rank + 1) % others])
        _sum(Communicator(network, pair), "of two")
    except (PeerLostError, StalledError) as error:
        if rank != others:
            Path(marks, str(rank)).touch()
            wait_until(lambda: all(Path(marks, str(other)).exists() for other in range(others)))
        return str(error)
    return "no error"


def another_thread_calls(
    communicator: Communicator, network: Network, after_s: float
) -> list[float] | str:
    """Rank 0 waits in what the next one comes to later; a thread of its own comes to the other.

    The last rank is busy meanwhile. A thread that comes after more than a minute doesn't.
    """
    found: list[float] = []

    def come() -> None:
        if not gives_up.wait(after_s):
            found.append(_sum(communicator, "second"))

    gives_up = threading.Event()
    helper = threading.Thread(target=come)
    try:
        if communicator.rank == 0:
            helper.start()
            return [_sum(communicator, "first"), *found]
        if communicator.rank > 1:
            time.sleep(after_s)
        return [_sum(communicator, "second"), _sum(communicator, "first")]
    except StalledError as error:
        return str(error)
    finally:
        gives_up.set()


def fails(communicator: Communicator, network: Network, mark: str) -> list[str]:
    """The last rank gives up in an operation that the first comes to later; then more are tried.

    Args:
        communicator: of two ranks.
        network: what it is on.
        mark: a file that the last one makes when it has received up.
    """
    errors = []

    def call(name: str) -> None:
        try:
            communicator.all_reduce([np.zeros(400_000)], ReduceOp.SUM, OpSignature(name, name))
        except (PeerLostError, StalledError) as error:
            errors.append(f"{type(error).__name__}: {error}")

    communicator.all_reduce([np.zeros(400_000)], ReduceOp.SUM, OpSignature("", "warm"))
    if communicator.rank == 0:
        wait_until(Path(mark).exists)
    call("first")
    Path(mark).touch()
    running = [threading.Thread(target=call, args=(f"n{number}",)) for number in range(3)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return errors


def overflows(communicator: Communicator, network: Network) -> list[bool]:
    """Sums that overflow, or have no value, where whoever runs this wants no warnings.

    One number underflows where it is scaled. Within messages, posted, and reduced in parts.
    """
    found = []
    with np.errstate(all="raise"):
        for length in (4, 100_000, 600_000):
            mine = np.full(length, np.inf if communicator.rank else -np.inf, np.float32)
            mine[:2] = np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal
            [total] = communicator.all_reduce(
                [mine], ReduceOp.SUM, OpSignature("", "sum"), scale=0.75
            )
            found.append(bool(np.isinf(total[0]) and np.isnan(total[2:]).all()))
    return found


def fails_posted(communicator: Communicator, network: Network) -> list[str]:
    """What is posted fails on rank 0: for want of memory, then while it reads, then at once."""
    errors, posts = [], communicator._backend.posts
    assert posts is not None

    def call(text: str) -> None:
        mine = [np.full(30_000, 1.0 + communicator.rank)]
        try:
            [total] = communicator.all_reduce(mine, ReduceOp.SUM, OpSignature("", text))
            errors.append(f"{np.unique(total)}")
        except (CommunicationError, PeerLostError, InterruptedError) as error:
            errors.append(f"{type(error).__name__}: {error}")

    is_first = communicator.rank == 0
    allocate = (
        mock.Mock(side_effect=OSError(errno.ENOMEM, "")) if is_first else posts._memory.allocate
    )
    with mock.patch.object(posts._memory, "allocate", allocate):
        call("no memory")
    call("sum")
    interrupted = InterruptedError("a signal's handler")
    reduce_into = mock.Mock(side_effect=interrupted) if is_first else reductions.reduce_into
    with mock.patch.object(communicator_module, "reduce_into", reduce_into):
        call("interrupted")
    if is_first:
        number = posts._number
        for _ in range(3):
            call("after a failure")
        errors.append(f"{posts._number - number} more posts")
    return errors


def forked(communicator: Communicator, network: Network, mark: str) -> list[list[float]]:
    """A child of rank 0 calls once rank 0 has posted, and before rank 1 reads what it has."""
    posts, found = communicator._backend.posts, []
    assert posts is not None

    def call(value: float) -> None:
        mine = [np.full(30_000, value)]
        [total] = communicator.all_reduce(mine, ReduceOp.SUM, OpSignature("", "sum"))
        found.append(np.unique(total).tolist())

    for _ in range(4):  # Now there are slots that are free.
        call(1.0)
    if communicator.rank == 1:
        wait_until(Path(mark).exists)
        call(10.0)
        return found[-1:]
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.read(read, 1)
            call(999.0)
        except UnsupportedError:
            status = 0
        finally:
            os._exit(status)
    number = posts._number
    thread = threading.Thread(target=call, args=(1.0,))
    thread.start()
    wait_until(lambda: posts._number > number)
    os.write(write, b"x")
    _, status = os.waitpid(child, 0)
    Path(mark).touch()
    thread.join()
    os.close(read)
    os.close(write)
    return [*found[-1:], [float(status)]]


def sets(communicator: Communicator, network: Network) -> list[float]:
    """Disjoint sets side by side, then sets that overlap."""
    rank = network.mesh.rank
    halves = [Communicator(network, half) for half in ((0, 1), (2, 3)) if rank in half]
    overlapping = [
        Communicator(network, some) for some in ((0, 1, 2), (1, 2, 3), (0, 3)) if rank in some
    ]
    found = []
    for one in (*halves, communicator, *overlapping):
        for length in (2, 70_000):
            [total] = one.all_reduce(
                [np.full(length, 10.0**rank)], ReduceOp.SUM, OpSignature("", "allreduce")
            )
            found.append(float(total[-1]))
    return found


def written_to(communicator: Communicator, network: Network) -> list[list[float]]:
    """What each operation gave, once all ranks but this one have written to what they got."""
    mine = np.full(50_000, 1.0 + communicator.rank)
    found = []
    for writer in range(communicator.size):
        [total] = communicator.all_reduce([mine], ReduceOp.SUM, OpSignature("", "reduce"))
        rows = communicator.all_gather(mine, OpSignature("", "gather"))
        [received] = communicator.broadcast([mine], 0, OpSignature("", "broadcast"))
        got = (total, rows, received)
        if communicator.rank != writer:
            for array in got:
                array[:] = -1.0
        communicator.all_reduce([np.zeros(1)], ReduceOp.SUM, OpSignature("", "barrier"))
        if communicator.rank == writer:
            found = [np.unique(array).tolist() for array in got]
        communicator.all_reduce([np.zeros(1)], ReduceOp.SUM, OpSignature("", "barrier"))
    return found


def counted(communicator: Communicator, network: Network) -> float:
    communicator.all_reduce(
        [np.zeros(2_000_000, np.float32)], ReduceOp.SUM, OpSignature("", "allreduce")
    )
    return communicator.counters.written / communicator.counters.reduced


def no_memory(communicator: Communicator, network: Network) -> str:
    """The window that results are in can't grow further; each has what it posts from before."""
    communicator.all_reduce([np.zeros(20_000)], ReduceOp.SUM, OpSignature("", "allreduce"))
    backend = communicator._backend
    assert isinstance(backend, ShmBackend)
    backend._memory.file.window_bytes = 2**24
    held = []
    try:
        for _ in range(4):
            held += communicator.all_reduce(
                [np.zeros(1_000_000)], ReduceOp.SUM, OpSignature("", "allreduce")
            )
    except CommunicationError as error:
        return str(error)
    return "no error"


def addresses(communicator: Communicator, network: Network) -> int:
    """In how many places the results of large sums lie, one let go after the other."""
    places = set()
    for _ in range(6):
        [total] = communicator.all_reduce(
            [np.ones(3_000_000, np.float32)], ReduceOp.SUM, OpSignature("", "sum"), scale=0.5
        )
        places.add(total.ctypes.data)
        del total
    return len(places)


def differ_among_many(communicator: Communicator, network: Network) -> list[str]:
    """One rank differs in name, size or kind from all others, that it has as neighbours or not."""
    told = []
    for odd in (0, 1, communicator.size - 1):
        is_odd = communicator.rank == odd
        for length, text in (
            (3 + is_odd, "same"),
            (4, f"kind {is_odd}"),
            (70_000 + is_odd, "large"),
        ):
            try:
                communicator.all_reduce([np.zeros(length)], ReduceOp.SUM, OpSignature("loss", text))
            except DisagreementError as error:
                told.append(str(error))
            for sent in (10, 50_000):
                [total] = communicator.all_reduce(
                    [np.ones(sent)], ReduceOp.SUM, OpSignature("loss", "next")
                )
                assert (total == communicator.size).all()
    return told


def is_late(communicator: Communicator, network: Network, marks: str) -> list[str]:
    """Rank 1 comes once all others have given up; what they say of it."""
    rank, told = communicator.rank, []
    others = [other for other in range(communicator.size) if other != 1]
    _sum(communicator, "begin")
    if rank != 1:
        try:
            _sum(communicator, "late")
        except StalledError as error:
            told.append(str(error))
        Path(marks, str(rank)).touch()
    # None ends before all have given up: it would be taken for lost.
    wait_until(lambda: all(Path(marks, str(other)).exists() for other in others))
    return told


def killed_among_many(
    communicator: Communicator, network: Network, victim: int, late: int, marks: str
) -> str:
    """One rank is killed at some time; a late one comes to no operation, and reads nothing.

    The late one comes when the others have noticed.
    """
    rank = communicator.rank
    _sum(communicator, "begin")
    if rank == victim:
        threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGKILL]).start()
    if rank == late:
        others = [other for other in range(communicator.size) if other not in (victim, late)]
        wait_until(lambda: all(Path(marks, str(other)).exists() for other in others))
    try:
        while True:
            for length in (3, 100_000):
                communicator.all_reduce(
                    [np.ones(length)], ReduceOp.SUM, OpSignature("", "allreduce <step>")
                )
    except PeerLostError as error:
        Path(marks, str(rank)).touch()
        return str(error)
