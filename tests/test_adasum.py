"""Adasum against its definition, in NumPy."""

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.group import Groups
from tfddl._src.collectives.adasum import adasum, check_adasum
from tfddl._src.comm.native import ReduceOp
from tfddl._src.comm.process_group import UNNAMED, DynamicSignature
from tfddl.errors import UnimplementedError, UnsupportedError

CASES = "tests.cases.adasum"


def expected(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """The definition: of two, then of the results of both halves, in float64."""
    if len(vectors) == 1:
        return vectors[0].astype(np.float64)
    half = len(vectors) // 2
    one, other = expected(vectors[:half]), expected(vectors[half:])
    dot = np.vdot(one, other)
    shares = [dot / (2 * np.vdot(x, x)) if np.any(x) else 0.0 for x in (one, other)]
    return (1 - shares[0]) * one + (1 - shares[1]) * other


class Threads:
    """The process groups of ranks that are threads, as far as Adasum uses them.

    Attributes:
        sent: By rank, how many elements of the tensors' dtype it has sent, if each rank passes on
            to each other one what is for it.
    """

    def __init__(self, size: int) -> None:
        self.sent = [0] * size
        self._made: dict[tuple[int, ...], Any] = {}
        self._lock = threading.Lock()

    def group(self, members: tuple[int, ...], rank: int) -> Any:
        """The group of some ranks, as one of them has it."""
        with self._lock:
            barrier, given = self._made.setdefault(members, (threading.Barrier(len(members)), {}))

        def of_all(mine: Any) -> list[Any]:
            given[rank] = mine
            barrier.wait(30)
            found = [given[member] for member in members]
            barrier.wait(30)
            return found

        def all_gather(flat: tf.Tensor, *, signature: DynamicSignature) -> tf.Tensor:
            if flat.dtype.is_floating:
                self.sent[rank] += int(tf.size(flat)) * (len(members) - 1)
            return tf.stack(of_all(flat))

        def all_reduce(
            tensors: list[tf.Tensor], op: ReduceOp, *, signature: DynamicSignature
        ) -> list[tf.Tensor]:
            assert op == ReduceOp.SUM
            return [tf.add_n(rows) for rows in zip(*of_all(tensors), strict=True)]

        def all_to_all(
            flat: tf.Tensor, lengths: tf.Tensor, *, signature: DynamicSignature
        ) -> tf.Tensor:
            place = members.index(rank)
            assert int(tf.reduce_sum(lengths[place])) == int(tf.size(flat))
            self.sent[rank] += int(tf.size(flat) - tf.cast(lengths[place, place], tf.int32))
            rows = [tf.split(row, lengths[i])[place] for i, row in enumerate(of_all(flat))]
            return tf.concat(rows, axis=0)

        return SimpleNamespace(
            all_gather=all_gather,
            all_reduce=all_reduce,
            all_to_all=all_to_all,
            subgroup=lambda places: self.group(tuple(members[place] for place in places), rank),
        )


def over_threads(
    vectors: Sequence[Sequence[np.ndarray]], threads: Threads | None = None
) -> list[list[np.ndarray]]:
    """What each rank gets, of its tensors."""
    size = len(vectors)
    threads = threads or Threads(size)

    def run(rank: int) -> list[np.ndarray]:
        world = threads.group(tuple(range(size)), rank)
        group: Any = SimpleNamespace(process_group=world, signature=UNNAMED, rank=rank, size=size)
        return [t.numpy() for t in adasum(group, [tf.constant(v) for v in vectors[rank]])]

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
@pytest.mark.parametrize(
    ("dtype", "rtol"), [("float16", 5e-3), ("float32", 1e-6), ("float64", 1e-14)]
)
def test_it_is_what_it_is_defined_as(size: int, dtype: str, rtol: float) -> None:
    random = np.random.default_rng(size)
    shapes = [(3, 5), (7,), ()]
    vectors = [[random.normal(size=s).astype(dtype) for s in shapes] for _ in range(size)]
    vectors[0][1] *= 0  # Has no length, and so no direction.
    found = over_threads(vectors)
    for results in found:
        for one, first, *mine in zip(results, found[0], *vectors, strict=True):
            assert one.dtype == dtype
            assert one.tobytes() == first.tobytes()
            theirs = expected(mine)
            np.testing.assert_allclose(one, theirs, rtol=rtol, atol=rtol * np.max(np.abs(theirs)))


@pytest.mark.parametrize("size", [2, 4])
def test_all_ranks_have_the_same_bits(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though their sums differ, as they do with other numbers of threads."""
    exact, calls = tf.reduce_sum, itertools.count()

    def inexact(x: tf.Tensor) -> tf.Tensor:
        return exact(x) * (1 + 1e-5 * next(calls)) if x.dtype.is_floating else exact(x)

    monkeypatch.setattr(tf, "reduce_sum", inexact)
    random = np.random.default_rng(size)
    results = over_threads([[random.normal(size=9), random.normal(size=2)] for _ in range(size)])
    for found in results:
        for one, first in zip(found, results[0], strict=True):
            assert one.tobytes() == first.tobytes()


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_rank_sends_less_than_twice_what_there_is(size: int) -> None:
    threads, elements = Threads(size), 16 * 7
    over_threads([[np.ones(elements - 5), np.ones([5])] for _ in range(size)], threads)
    assert threads.sent == [2 * elements * (size - 1) // size] * size


@pytest.mark.parametrize("shapes", [[(1,)], [(0,)], [(0, 3), (2,)], [(1,), (), (0,), (9,)]])
def test_of_few_elements(shapes: list[tuple[int, ...]]) -> None:
    """Fewer than ranks, or none."""
    random = np.random.default_rng(0)
    vectors = [[random.normal(size=s) for s in shapes] for _ in range(8)]
    for results in over_threads(vectors):
        for one, *mine in zip(results, *vectors, strict=True):
            np.testing.assert_allclose(one, expected(mine), rtol=1e-13)


def test_what_it_is_for() -> None:
    """The same are averaged, orthogonal ones added up."""
    same, right = [np.array([1.0, 2.0])] * 4, [np.array([1.0, 0.0]), np.array([0.0, 3.0])]
    for results in over_threads([[v] for v in same]):
        np.testing.assert_allclose(results[0], [1, 2], rtol=1e-6)
    for results in over_threads([[v] for v in right]):
        assert results[0].tolist() == [1, 3]


def test_refusals() -> None:
    with pytest.raises(UnimplementedError, match="adasum is for 2, 4, 8, … ranks, not for 3. HINT"):
        check_adasum(3, [])
    with pytest.raises(
        UnsupportedError, match="adasum of int32 isn't supported; of float16, float32,"
    ):
        check_adasum(2, [tf.constant([1])])


@pytest.mark.parametrize(
    ("size", "init"),
    [
        (2, {}),
        (2, {"collective": "ring"}),
        pytest.param(4, {}, marks=pytest.mark.long),
        pytest.param(4, {"hosts": (3, 1)}, marks=pytest.mark.long),
    ],
)
def test_everywhere(groups: Groups, size: int, init: dict[str, Any]) -> None:
    def mine(rank: int) -> np.ndarray:
        return np.array([rank + 1.0, 2.0, -rank])

    whole = expected([mine(rank) for rank in range(size)])
    ranks = groups(size, **init).run(f"{CASES}:everywhere")
    for rank, found in enumerate(ranks):
        for kind in ("eager", "graph", "horovod", "tape", "optimizer", "compressed"):
            tolerance = 2e-3 if kind == "compressed" else 1e-5
            np.testing.assert_allclose(found[kind], whole, rtol=tolerance, err_msg=kind)
        np.testing.assert_allclose(
            found["factors"], 3 * expected([mine(r) / 2 for r in range(size)]), rtol=1e-5
        )
        # As in Horovod, the gradient is the Adasum of what comes from above.
        ones = expected([np.full(3, float(r + 1)) for r in range(size)])
        np.testing.assert_allclose(found["gradient"], ones, rtol=1e-5)
        pair = sorted({0, size - 1})
        if rank in pair:
            np.testing.assert_allclose(found["set"], expected([mine(r) for r in pair]), rtol=1e-5)
        for name, text in {
            "integers": "adasum of int32 isn't supported",
            "slices": "only average and sum are",
            "sparse": "adasum of sparse gradients isn't built. HINT: sparse_as_dense=True",
            "own gradient": "allreduce adasum has no gradient here",
            "reducescatter": "reducescatter can't do adasum",
        }.items():
            assert text in found[name], name


def test_of_three_ranks(groups: Groups) -> None:
    assert groups(3).run(f"{CASES}:refused") == ["NotImplementedError"] * 3
