"""shard_dataset in one process; several workers are in test_exact.py."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tfddl
from tfddl.errors import DataError


@pytest.fixture(autouse=True)
def _initialized() -> Any:
    tfddl.init()
    yield
    tfddl.shutdown()


def _elements(dataset: tf.data.Dataset) -> list[Any]:
    return list(dataset.as_numpy_iterator())


def test_batches_are_cut_evenly_and_keep_the_order() -> None:
    dataset = tfddl.shard_dataset(np.arange(10), batch_size=4)
    assert int(dataset.cardinality()) == 3
    assert [batch.tolist() for batch in _elements(dataset)] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_auto_sharding_and_tuning_are_off() -> None:
    options = tfddl.shard_dataset(np.arange(10), batch_size=4).options()
    assert options.autotune.enabled is False  # Its thread would hold up the end of an epoch.
    policy = options.experimental_distribute.auto_shard_policy
    assert policy == tf.data.experimental.AutoShardPolicy.OFF


def test_a_seed_shuffles_anew_in_every_epoch_and_the_same_in_every_run() -> None:
    def order(**options: Any) -> list[int]:
        batches = _elements(tfddl.shard_dataset(np.arange(30), batch_size=7, **options))
        return [int(i) for batch in batches for i in batch]

    assert order(seed=1) == order(seed=1)
    assert order(seed=1) != order(seed=2)
    assert order(seed=1) != order(seed=1, epoch=1)
    assert sorted(order(seed=1, epoch=1)) == list(range(30))
    assert order() == list(range(30))


def test_structures() -> None:
    x = {"image": np.zeros((6, 2, 2), "uint8"), "size": (np.arange(6), [1, 2, 3, 4, 5, 6])}
    y = (np.arange(6.0), np.ones((6, 1)))
    weight = np.full(6, 0.5)
    (first, *_) = _elements(tfddl.shard_dataset(x, y, weight, batch_size=3))
    got_x, got_y, got_weight = first
    assert got_x["image"].shape == (3, 2, 2)
    assert got_x["image"].dtype == np.uint8
    assert [part.tolist() for part in got_x["size"]] == [[0, 1, 2], [1, 2, 3]]
    assert [part.shape for part in got_y] == [(3,), (3, 1)]
    assert got_weight.tolist() == [0.5] * 3


def test_memory_maps_and_tensors(tmp_path: Any) -> None:
    np.save(tmp_path / "x.npy", np.arange(12.0).reshape(6, 2))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    for source in (x, tf.constant(np.arange(12.0).reshape(6, 2))):
        batches = _elements(tfddl.shard_dataset(source, np.arange(6), batch_size=4))
        assert np.concatenate([b[0] for b in batches]).tolist() == x.tolist()
        assert batches[0][1].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None,), DataError, "x is None; expected at least the inputs"),
        (
            (np.zeros(3), np.zeros(4)),
            DataError,
            "x has 3, y has 4; expected the same number of examples",
        ),
        (
            ({"a": np.zeros(3), "b": np.zeros(2)},),
            DataError,
            r"x\['a'\] has 3, x\['b'\] has 2",
        ),
        ((np.zeros(3), None, np.zeros(3)), DataError, "sample_weight is given without y"),
        ((np.float32(3),), DataError, "x is a scalar; expected an array whose rows"),
        (("images",), DataError, "x is a str; expected arrays"),
        (({},), DataError, "x is {}; expected at least one array in it"),
        ((np.zeros(0),), DataError, "x has no examples: its length is 0"),
    ],
)
def test_refusals(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tfddl.shard_dataset(*arguments, batch_size=2)


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(DataError, match="order is 'random'; expected global or block"):
        tfddl.shard_dataset(np.zeros(3), batch_size=2, order="random")


def test_it_wants_init() -> None:
    tfddl.shutdown()
    with pytest.raises(ValueError, match="call tfddl.init\\(\\) first"):
        tfddl.shard_dataset(np.zeros(3), batch_size=2)
