"""Sums over virtual workers, on any number of ranks: threads, each with a rank of its own."""

import threading
import types
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfddl._src.gradients import virtual_sum
from tfddl._src.virtual_workers import Node, TreeSum, own_workers

_TIMEOUT_S = 60.0


class _Ranks:
    """Collectives between threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._local = threading.local()
        self._barrier = threading.Barrier(size, timeout=_TIMEOUT_S)
        self._given: list[Any] = [None] * size

    def run(self, function: Callable[[int], Any]) -> list[Any]:
        def call(rank: int) -> Any:
            self._local.rank = rank
            return function(rank)

        with ThreadPoolExecutor(self.size) as threads:
            return list(threads.map(call, range(self.size)))

    def current(self) -> Any:
        cluster = types.SimpleNamespace(rank=self._local.rank, size=self.size)
        return types.SimpleNamespace(cluster=cluster)

    def _everyone(self, mine: Any) -> list[Any]:
        self._given[self._local.rank] = mine
        self._barrier.wait()
        everyone = list(self._given)
        self._barrier.wait()
        return everyone

    def stack(self, tensor: tf.Tensor, *, name: str) -> tf.Tensor:
        return tf.stack(self._everyone(tensor))

    def exchange_parts(
        self, flat: tf.Tensor, lengths: Sequence[Sequence[int]], *, name: str
    ) -> tf.Tensor:
        sent = [
            tf.split(part, row) for part, row in zip(self._everyone(flat), lengths, strict=True)
        ]
        return tf.concat([parts[self._local.rank] for parts in sent], axis=0)

    def grouped_allreduce(self, tensors: Sequence[tf.Tensor], op: Any, *, name: str) -> Any:
        return [tf.add_n(column) for column in zip(*self._everyone(tensors), strict=True)]


def _values(worker: int) -> list[tf.Tensor]:
    rng = np.random.default_rng(worker)
    return [
        tf.constant(rng.normal(size=(5, 7)), tf.float32),
        tf.constant(rng.integers(0, 9, 3), tf.int32),
        tf.constant(rng.normal(size=211), tf.float32),
        tf.constant(rng.normal(), tf.float64),
    ]


def _sums(monkeypatch: pytest.MonkeyPatch, virtual_workers: int, size: int) -> list[list[bytes]]:
    ranks = _Ranks(size)
    for name in ("current", "stack", "exchange_parts", "grouped_allreduce"):
        monkeypatch.setattr(virtual_sum, name, getattr(ranks, name))

    def sum_on(rank: int) -> list[bytes]:
        own: TreeSum[list[tf.Tensor]] = TreeSum(virtual_sum.add)
        for worker in own_workers(virtual_workers, rank, size):
            own.push(Node(worker, 1), _values(worker))
        found = virtual_sum.sum_nodes(own.nodes, virtual_workers, name="values")
        assert [total.shape for total in found] == [value.shape for value in _values(0)]
        return [total.numpy().tobytes() for total in found]

    return ranks.run(sum_on)


@pytest.mark.parametrize(
    ("virtual_workers", "gathered_bytes", "joined_bytes"),
    [(2, 0, 2**24), (5, 0, 2**24), (5, 2**18, 2**24), (8, 0, 2**24), (5, 0, 0), (5, 0, 1000)],
)
def test_sums_have_the_same_bits_on_any_number_of_ranks(
    monkeypatch: pytest.MonkeyPatch, virtual_workers: int, gathered_bytes: int, joined_bytes: int
) -> None:
    monkeypatch.setattr(virtual_sum, "_GATHERED_BYTES", gathered_bytes)
    monkeypatch.setattr(virtual_sum, "_JOINED_BYTES", joined_bytes)
    (alone,) = _sums(monkeypatch, virtual_workers, 1)
    third = [_values(worker)[2] for worker in range(virtual_workers)]
    in_rank_order = sum(third[1:], third[0]).numpy().tobytes()
    assert virtual_workers < 4 or alone[2] != in_rank_order  # The order matters.
    for size in {2, 3, virtual_workers} & set(range(2, virtual_workers + 1)):
        assert _sums(monkeypatch, virtual_workers, size) == [alone] * size, size
