import dataclasses
import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfddl._src.sharding import (
    BlockPlan,
    CompletedSpan,
    GlobalPlan,
    Position,
    permutation,
    shard_range,
)
from tfddl.errors import ShardingError


@pytest.mark.parametrize(
    ("num_examples", "size", "expected"),
    [
        # The worked example of the source system.
        (5000, 10, [(500 * i, 500 * (i + 1)) for i in range(10)]),
        (10, 3, [(0, 4), (4, 7), (7, 10)]),
        (7, 1, [(0, 7)]),
        (2, 4, [(0, 1), (1, 2), (2, 2), (2, 2)]),
        (0, 2, [(0, 0), (0, 0)]),
    ],
)
def test_shard_range_table(num_examples: int, size: int, expected: list[tuple[int, int]]) -> None:
    assert [shard_range(num_examples, rank, size) for rank in range(size)] == expected


def test_shards_are_disjoint_in_order_and_cover_everything() -> None:
    for num_examples, size in itertools.product(range(41), range(1, 9)):
        shards = [shard_range(num_examples, rank, size) for rank in range(size)]
        seen = [i for start, stop in shards for i in range(start, stop)]
        assert seen == list(range(num_examples))
        lengths = [stop - start for start, stop in shards]
        assert max(lengths) - min(lengths) <= 1
        assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 1), "num_examples is -1; it must be at least 0."),
        ((5, 0, 0), "size is 0; it must be at least 1."),
        ((5, -1, 2), "rank is -1; it must be at least 0."),
        ((5, 2, 2), r"rank is 2 but size is 2; rank must be 0..1."),
        ((5.0, 0, 2), r"num_examples must be an integer, not 5.0 \(float\)."),
        ((5, True, 2), r"rank must be an integer, not True \(bool\)."),
    ],
)
def test_shard_range_refuses(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ShardingError, match=message):
        shard_range(*arguments)
    with pytest.raises(ValueError, match=message):
        shard_range(*arguments)


def _small_plans() -> list[GlobalPlan | BlockPlan]:
    return [
        kind(num_examples=n, size=size, batch_size=batch_size, seed=seed)
        for kind in (GlobalPlan, BlockPlan)
        for n in range(1, 41)
        for size in range(1, min(n, 8) + 1)
        for batch_size in (1, 2, 3, 4, 7, 50)
        for seed in (None, 3)
    ]


def test_every_example_counts_exactly_once_in_equal_steps() -> None:
    for plan in _small_plans():
        counted = []
        padded = False
        for step, rank in itertools.product(range(plan.steps), range(plan.size)):
            batch = plan.batch(epoch=1, step=step, rank=rank)
            assert 1 <= len(batch.indices) <= plan.batch_size
            assert batch.count in (0, len(batch.indices))
            assert len(batch.indices) == 1 or batch.count
            counted += batch.indices[: batch.count].tolist()
            padded = padded or not batch.count
        assert sorted(counted) == list(range(plan.num_examples)), plan
        assert padded == plan.has_padding, plan


@settings(max_examples=150)
@given(
    kind=st.sampled_from([GlobalPlan, BlockPlan]),
    size=st.integers(1, 8),
    batch_size=st.integers(1, 6),
    more=st.integers(0, 40),
    done=st.integers(0, 12),
)
def test_batch_sizes_are_those_of_the_batches(
    kind: type[GlobalPlan], size: int, batch_size: int, more: int, done: int
) -> None:
    plan = kind(num_examples=size + more, size=size, batch_size=batch_size, seed=3)
    if done < plan.steps:
        plan = plan.after(plan.position(epoch=2, steps=done))
    for rank in range(size):
        batches = [plan.batch(epoch=2, step=step, rank=rank) for step in range(plan.steps)]
        assert plan.batch_sizes(rank) == Counter(batch.count for batch in batches)


def test_only_a_batch_of_one_needs_padding() -> None:
    assert not [p for p in _small_plans() if p.has_padding and p.batch_size > 1]
    assert GlobalPlan(num_examples=4, size=3, batch_size=1).has_padding


def test_global_batches_do_not_depend_on_the_number_of_workers() -> None:
    for n, workers, batch_size in itertools.product((8, 23, 40), (2, 4, 8), (1, 2, 5)):
        many = GlobalPlan(num_examples=n, size=workers, batch_size=batch_size, seed=7)
        one = GlobalPlan(num_examples=n, size=1, batch_size=workers * batch_size, seed=7)
        assert many.steps == one.steps
        for step in range(one.steps):
            batches = [many.batch(epoch=2, step=step, rank=rank) for rank in range(workers)]
            together = [i for batch in batches for i in batch.indices[: batch.count]]
            assert together == one.batch(epoch=2, step=step, rank=0).indices.tolist()


def test_block_order_stays_within_the_shard() -> None:
    plan = BlockPlan(num_examples=23, size=4, batch_size=3, seed=5)
    for rank in range(4):
        start, stop = shard_range(23, rank, 4)
        seen = np.concatenate(
            [plan.batch(epoch=0, step=step, rank=rank).indices for step in range(plan.steps)]
        )
        assert sorted(seen) == list(range(start, stop))
        assert seen.tolist() != list(range(start, stop))


KINDS = (GlobalPlan, BlockPlan)


def _counted(plan: GlobalPlan | BlockPlan, steps: int) -> list[list[list[int]]]:
    """The examples that count, of each rank in each of the first steps."""
    found = []
    for step in range(steps):
        batches = [plan.batch(epoch=2, step=step, rank=rank) for rank in range(plan.size)]
        for batch in batches:
            assert 1 <= len(batch.indices) <= plan.batch_size, "an empty batch, or a large one"
            assert all(0 <= i < plan.num_examples for i in batch.indices)
            assert batch.count in (0, len(batch.indices))
        found.append([batch.indices[: batch.count].tolist() for batch in batches])
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [None, 3])
@given(
    n=st.integers(5, 40),
    groups=st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(0, 6)), min_size=1, max_size=5
    ),
    end=st.tuples(st.integers(1, 5), st.integers(1, 4)),
)
@settings(max_examples=150)
def test_an_epoch_with_interruptions_has_every_example_once(
    kind: type[GlobalPlan],
    seed: int | None,
    n: int,
    groups: list[tuple[int, int, int]],
    end: tuple[int, int],
) -> None:
    """Each group of workers makes some steps, the last one all that are left."""
    position = Position(epoch=2, consumed=0)
    seen: list[int] = []
    for size, batch_size, wanted in [*groups, (*end, n)]:
        if position.consumed == n:
            break
        whole = kind(num_examples=n, size=size, batch_size=batch_size, seed=seed)
        rest = whole.after(position)
        steps = min(wanted, rest.steps)
        counted = _counted(rest, steps)
        seen += [i for step in counted for rank in step for i in rank]
        assert 1 <= rest.steps <= whole.steps
        idle = any(not rank for step in _counted(rest, rest.steps) for rank in step)
        assert idle == rest.has_padding
        position = rest.position(epoch=2, steps=steps)
        assert position.consumed == len(seen)
        assert position.epoch == 2
    assert sorted(seen) == list(range(n))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_workers_resume_as_if_uninterrupted(kind: type[GlobalPlan]) -> None:
    """Also where others had worked on the epoch before; stopped twice, after every step."""
    for n, size, batch_size in itertools.product((6, 13, 40), (1, 2, 3, 5), (1, 2, 3)):
        whole = kind(num_examples=n, size=size, batch_size=batch_size, seed=1)
        others = kind(num_examples=n, size=4, batch_size=1, seed=1)
        for begun in (whole, whole.after(others.position(epoch=2, steps=1))):
            undisturbed = _counted(begun, begun.steps)
            for first in range(begun.steps):
                rest = whole.after(begun.position(epoch=2, steps=first))
                assert _counted(rest, rest.steps) == undisturbed[first:]
                for second in range(rest.steps):
                    again = whole.after(rest.position(epoch=2, steps=second))
                    assert _counted(again, again.steps) == undisturbed[first + second :]


def test_global_batches_of_the_rest_are_the_same_for_the_same_product() -> None:
    for n, (size, other) in itertools.product((9, 23, 40), ((1, 2), (2, 4), (4, 1))):
        before = GlobalPlan(num_examples=n, size=size, batch_size=4 // size, seed=1)
        whole = GlobalPlan(num_examples=n, size=other, batch_size=4 // other, seed=1)
        undisturbed = [sum(step, []) for step in _counted(before, before.steps)]
        for steps in range(before.steps):
            rest = whole.after(before.position(epoch=2, steps=steps))
            found = [sum(step, []) for step in _counted(rest, rest.steps)]
            assert found == undisturbed[steps:]


def test_block_order_resumes_with_the_rest_of_each_shard() -> None:
    before = BlockPlan(num_examples=12, size=2, batch_size=2)
    position = before.position(epoch=0, steps=2)
    assert position == Position(0, 8, (CompletedSpan(size=2, batch_size=2, steps=2),))
    after = BlockPlan(num_examples=12, size=3, batch_size=2).after(position)
    # Of 0..5 and 6..11 the last two each: 4, 5, 10, 11, in contiguous parts for three.
    assert _counted(after, after.steps) == [[[4, 5], [10], [11]]]


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_examples_left_than_workers(kind: type[GlobalPlan]) -> None:
    before = kind(num_examples=7, size=1, batch_size=1).position(epoch=0, steps=5)
    rest = kind(num_examples=7, size=4, batch_size=8).after(before)
    assert rest.has_padding
    assert _counted(rest, rest.steps) == [[[5], [6], [], []]]


def test_positions_are_refused_where_they_do_not_belong() -> None:
    blocks = BlockPlan(num_examples=12, size=2, batch_size=2)
    batches = GlobalPlan(num_examples=12, size=2, batch_size=2)
    in_blocks = blocks.position(epoch=0, steps=1)
    for refused, message in (
        (
            lambda: batches.after(in_blocks),
            "reached in block order.*HINT: resume with order=.block.",
        ),
        (lambda: blocks.after(batches.position(epoch=0, steps=1)), "says that 4 .* would be 0"),
        (lambda: blocks.after(Position(0, 5, in_blocks.spans)), "says that 5 .* would be 4"),
        (lambda: blocks.after(blocks.position(epoch=0, steps=3)), "nothing is left"),
        (lambda: batches.after(batches.position(epoch=0, steps=3)), "nothing is left"),
        (
            lambda: blocks.after(Position(0, 4, (CompletedSpan(2, 2, 9),))),
            "steps is 9, but .* only 3",
        ),
        (lambda: blocks.position(epoch=0, steps=4), "steps is 4, but there are only 3"),
        (lambda: batches.position(epoch=0, steps=-1), "steps is -1; it must be at least 0"),
        (lambda: CompletedSpan(size=2, batch_size=2, steps=0), "steps is 0; it must be at least 1"),
    ):
        with pytest.raises(ShardingError, match=message):
            refused()


def test_epochs_and_seeds_change_the_order() -> None:
    orders = {tuple(permutation(20, seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}
    assert len(orders) == 4
    assert permutation(5, None, 3).tolist() == [0, 1, 2, 3, 4]


def test_cached_orders_are_read_only() -> None:
    blocks = BlockPlan(num_examples=12, size=2, batch_size=2, seed=1)
    rest = dataclasses.replace(blocks, size=3).after(blocks.position(epoch=0, steps=1))
    for order in (
        permutation(5, None),
        permutation(5, 1, 0),
        GlobalPlan(num_examples=12, size=2, batch_size=2).batch(epoch=0, step=0, rank=0).indices,
        rest.batch(epoch=0, step=0, rank=0).indices,
    ):
        with pytest.raises(ValueError, match="read-only"):
            order[0] = 7


@pytest.mark.parametrize("kind", [GlobalPlan, BlockPlan])
@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"num_examples": 3, "size": 4}, "There are 3 examples for 4 workers.*at most 3 workers"),
        ({"num_examples": 0, "size": 1}, "There are 0 examples for 1 workers"),
        ({"num_examples": -1}, "num_examples is -1; it must be at least 0."),
        ({"num_examples": 10.0}, "num_examples must be an integer, not 10.0"),
        ({"size": 0}, "size is 0; it must be at least 1."),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1."),
        ({"seed": -1}, "seed is -1; it must be at least 0."),
    ],
)
def test_plans_refuse_wrong_values_at_construction(
    kind: type[GlobalPlan], numbers: dict[str, Any], message: str
) -> None:
    with pytest.raises(ShardingError, match=message):
        kind(**{"num_examples": 10, "size": 2, "batch_size": 2, **numbers})


def test_a_step_that_was_made_before_is_refused() -> None:
    whole = BlockPlan(num_examples=10, size=2, batch_size=2)
    rest = whole.after(whole.position(epoch=0, steps=1))
    with pytest.raises(ShardingError, match="step is -1; it must be at least 0"):
        rest.batch(epoch=0, step=-1, rank=0)


def test_less_than_nothing_consumed_is_refused() -> None:
    with pytest.raises(ShardingError, match="consumed is -1; it must be at least 0"):
        GlobalPlan(num_examples=10, size=2, batch_size=2, consumed=-1)


def test_nothing_left_is_refused() -> None:
    with pytest.raises(ShardingError, match="consumed is 10 of 10 examples; nothing is left"):
        GlobalPlan(num_examples=10, size=2, batch_size=2, consumed=10)


def test_position_refuses_nonsense() -> None:
    assert Position(epoch=1, consumed=5).consumed == 5
    with pytest.raises(ShardingError, match="epoch is -1"):
        Position(epoch=-1, consumed=0)
