"""What each of several workers reads, in one process; how an epoch is taken up again."""

import itertools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.rank_shards import shards, table
from tfddl._src.data import ResumePoint, find_shard, repeats_shard
from tfddl._src.sharding import BlockPlan, GlobalPlan, Plan, Position
from tfddl.errors import ShardingError, UnsupportedError

Batches = list[tuple[Any, ...]]
LABELS = np.arange(100.0) * 10


def _shards(plan: Plan, *arrays: Any) -> list[tuple[Any, tf.data.Dataset]]:
    return shards(plan, table(*arrays))


def _ids(n: int) -> np.ndarray:
    return np.arange(n)


def test_padding_examples_have_weight_minus_zero() -> None:
    plan = GlobalPlan(num_examples=4, size=3, batch_size=1)
    weight = np.array([1.0, -0.0, 2.0, 3.0], "float32")
    for given in (weight, weight.tolist(), np.array([1, 0, 2, 3]), None):
        datasets = [dataset for _, dataset in _shards(plan, _ids(4), LABELS[:4], given)]
        steps = [[batch[2] for batch in dataset.as_numpy_iterator()] for dataset in datasets]
        signs = [[bool(np.signbit(w[0])) for w in weights] for weights in steps]
        # 4 examples are 2 + 2 in two steps: the last rank has none.
        assert signs == [[False, False], [False, False], [True, True]], "a user's -0.0 must count"
        assert {w.dtype for weights in steps for w in weights} <= {
            np.dtype("float32"),
            np.dtype("float64"),
        }
        if given is not None:
            assert [float(w[0]) for weights in steps for w in weights] == [1, 2, 0, 3, 0, 0]
    with pytest.raises(UnsupportedError, match="HINT: use a batch_size of at least 2"):
        _shards(plan, _ids(4))


def test_a_shard_is_found_through_what_makes_one_of_one() -> None:
    plan = GlobalPlan(num_examples=10, size=1, batch_size=4)
    ((_, dataset),) = _shards(plan, _ids(10))
    shard = dataset.tfddl_shard
    one_to_one = [
        dataset,
        dataset.map(tf.identity),
        dataset.map(tf.identity, num_parallel_calls=2).prefetch(1),
        dataset.with_options(tf.data.Options()).prefetch(tf.data.AUTOTUNE),
        dataset.map(tf.identity).apply(tf.data.experimental.assert_cardinality(3)),
    ]
    assert all(find_shard(found) is shard for found in one_to_one)
    unordered = tf.data.Options()
    unordered.deterministic = False
    others = [
        dataset.shuffle(3),
        dataset.batch(1),
        dataset.unbatch(),
        dataset.repeat(2),
        dataset.cache(),
        dataset.take(2),
        dataset.skip(1),
        dataset.filter(lambda _: True),
        dataset.enumerate(),
        dataset.concatenate(dataset),
        dataset.map(tf.identity).shuffle(2).map(tf.identity),
        dataset.map(tf.identity, num_parallel_calls=2, deterministic=False),
        dataset.map(tf.identity, num_parallel_calls=2).with_options(unordered),
        tf.data.Dataset.range(3),
        np.zeros(3),
        None,
    ]
    assert [other for other in others if find_shard(other) is not None] == []
    repeated = [dataset.repeat(2), dataset.map(tf.identity).repeat().prefetch(2)]
    assert all(repeats_shard(other) for other in repeated)
    assert not any(
        repeats_shard(found) for found in [*one_to_one, tf.data.Dataset.range(3).repeat()]
    )


def test_where_tensorflow_does_not_tell_there_is_no_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    ((_, dataset),) = _shards(GlobalPlan(num_examples=3, size=1, batch_size=4), _ids(3))
    mapped = dataset.map(tf.identity)
    monkeypatch.setattr(type(mapped), "_inputs", None)
    assert find_shard(mapped) is None
    assert find_shard(dataset) is dataset.tfddl_shard


def _take_up(ranks: list[tuple[Any, tf.data.Dataset]], position: Position) -> list[Batches]:
    """What each rank gets of the rest of an epoch, mapped by the user."""
    found = []
    for state, dataset in ranks:
        shard = dataset.tfddl_shard
        state.epoch, state.resume = position.epoch, ResumePoint(shard, position)
        mapped = dataset.map(lambda x, y, *w: (x, y + 1, *w), num_parallel_calls=2)
        assert find_shard(mapped) == shard
        rest = state.resume.rest_of(mapped)
        expected = shard.plan.after(position).steps
        assert int(rest.cardinality()) == expected == shard.plan.steps - shard.steps_done(position)
        found.append(list(rest.as_numpy_iterator()))
        assert len(list(dataset.as_numpy_iterator())) == shard.plan.steps, "placeholders first"
        state.epoch += 1
        ids = [batch[0] for batch in dataset.as_numpy_iterator()]
        assert len(ids) == shard.plan.steps, "the epoch after it is a whole one"
        assert len(np.concatenate(ids)) == len(set(np.concatenate(ids)))
        state.resume = None
    return found


def _trained_on(batches: Batches) -> list[int]:
    found = []
    for x, y, *weights in batches:
        assert (y == x * 10 + 1).all()
        if not weights or not np.signbit(weights[0]).any():
            found += x.tolist()
    return found


@pytest.mark.parametrize("kind", [GlobalPlan, BlockPlan])
@pytest.mark.parametrize("seed", [None, 5])
def test_an_epoch_is_taken_up_with_other_workers(kind: type[GlobalPlan], seed: int | None) -> None:
    n = 23
    before = kind(num_examples=n, size=2, batch_size=3, seed=seed)
    after = kind(num_examples=n, size=3, batch_size=2, seed=seed)
    for steps in (0, 2):
        begun = [
            list(itertools.islice(_epoch(state, dataset, 4), steps))
            for state, dataset in _shards(before, _ids(n), LABELS[:n])
        ]
        done = [int(i) for batches in begun for x, _ in batches for i in x]
        position = before.position(epoch=4, steps=steps)
        rest = _take_up(_shards(after, _ids(n), LABELS[:n]), position)
        assert len({len(batches) for batches in rest}) == 1
        again = [i for batches in rest for i in _trained_on(batches)]
        assert sorted(done + again) == list(range(n))


def _epoch(state: Any, dataset: tf.data.Dataset, epoch: int) -> Any:
    state.epoch = epoch
    return dataset.as_numpy_iterator()


@pytest.mark.parametrize(
    "weights", [None, np.ones(7, "int32"), np.full(7, -0.0, "float32")], ids=str
)
def test_fewer_examples_left_than_workers(weights: np.ndarray | None) -> None:
    """The dataset has no weights, or integers; what is left of it has some that can be told."""
    position = GlobalPlan(num_examples=7, size=1, batch_size=5).position(epoch=0, steps=1)
    assert position.consumed == 4
    plan = GlobalPlan(num_examples=7, size=5, batch_size=4)
    shards = _shards(plan, _ids(7), LABELS[:7], weights)
    rest = _take_up(shards, position)
    assert [_trained_on(batches) for batches in rest] == [[4], [5], [6], [], []]
    assert {batches[0][2].dtype for batches in rest} == {np.dtype("float32")}


def test_padding_examples_need_weights_to_be_told_by() -> None:
    position = GlobalPlan(num_examples=7, size=1, batch_size=5).position(epoch=0, steps=1)
    plan = GlobalPlan(num_examples=7, size=5, batch_size=4)
    state, dataset = _shards(plan, _ids(7))[0]
    resume = state.resume = ResumePoint(dataset.tfddl_shard, position)
    with pytest.raises(UnsupportedError, match="fewer examples than workers are left.*fewer work"):
        resume.rest_of(dataset)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"iterate over ResumePoint.rest_of\("):
        list(dataset)
    with pytest.raises(ShardingError, match="reached in block order"):
        dataset.tfddl_shard.steps_done(
            BlockPlan(num_examples=7, size=1, batch_size=4).position(epoch=0, steps=1)
        )


def test_keras_reads_the_weights_of_the_rest() -> None:
    """A batch of the rest is one that Keras unpacks, with the labels as they were."""
    position = GlobalPlan(num_examples=3, size=1, batch_size=1).position(epoch=0, steps=1)
    plan = GlobalPlan(num_examples=3, size=3, batch_size=2)
    y = {"a": np.arange(3.0), "b": np.ones((3, 2))}
    state, dataset = _shards(plan, {"x": _ids(3)}, y)[2]
    state.resume = ResumePoint(dataset.tfddl_shard, position)
    (batch,) = state.resume.rest_of(dataset)
    _, labels, weight = keras.utils.unpack_x_y_sample_weight(batch)
    assert labels["b"].shape == (1, 2)
    assert np.signbit(weight.numpy()).all()
