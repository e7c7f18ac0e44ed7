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
    """The process groups of ranks that are threads, as far as Adasum uses them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._made: dict[tuple[int, ...], Any] = {}
        self._lock = threading.Lock()

    def group(self, members: tuple[int, ...], rank: int) -> Any:
        with self._lock:
            barrier, given = self._made.setdefault(members, (threading.Barrier(len(members)), {}))

        def broadcast(
            tensors: list[tf.Tensor], root: int, *, signature: DynamicSignature
        ) -> list[tf.Tensor]:
            given[rank] = tensors
            barrier.wait(30)
            found: list[tf.Tensor] = given[members[root]]
            barrier.wait(30)
            return found

        def all_gather(flat: tf.Tensor, *, signature: DynamicSignature) -> tf.Tensor:
            given[rank] = flat
            barrier.wait(30)
            rows = tf.stack([given[member] for member in members])
            barrier.wait(30)
            return rows

        return SimpleNamespace(
            all_gather=all_gather,
            broadcast=broadcast,
            subgroup=lambda places: self.group(places, rank),
        )


def over_threads(vectors: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
    """What each rank gets, of its tensors."""
    size = len(vectors)
    threads = Threads(size)

    def run(rank: int) -> list[np.ndarray]:
        world = threads.group(tuple(range(size)), rank)
        group: Any = SimpleNamespace(process_group=world, signature=UNNAMED, rank=rank, size=size)
        return [t.numpy() for t in adasum(group, [tf.constant(v) for v in vectors[rank]])]

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
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
    monkeypatch.setattr(tf, "reduce_sum", lambda x: exact(x) * (1 + 1e-5 * next(calls)))
    random = np.random.default_rng(size)
    results = over_threads([[random.normal(size=9), random.normal(size=2)] for _ in range(size)])
    for found in results:
        for one, first in zip(found, results[0], strict=True):
            assert one.tobytes() == first.tobytes()


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
