import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfddl.errors import PlanError
from tfddl.plan import BlockPlan, GlobalPlan, Position, pack, permutation, shard_range


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
    with pytest.raises(PlanError, match=message):
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
        stand_ins = False
        for step, rank in itertools.product(range(plan.steps), range(plan.size)):
            batch = plan.batch(epoch=1, step=step, rank=rank)
            assert 1 <= len(batch.indices) <= plan.batch_size
            assert batch.count in (0, len(batch.indices))
            assert len(batch.indices) == 1 or batch.count
            counted += batch.indices[: batch.count].tolist()
            stand_ins = stand_ins or not batch.count
        assert sorted(counted) == list(range(plan.num_examples)), plan
        assert stand_ins == plan.has_stand_ins, plan


def test_only_a_batch_of_one_needs_stand_ins() -> None:
    assert not [p for p in _small_plans() if p.has_stand_ins and p.batch_size > 1]
    assert GlobalPlan(num_examples=4, size=3, batch_size=1).has_stand_ins


def test_global_batches_do_not_depend_on_the_number_of_workers() -> None:
    for n, workers, batch_size in itertools.product((8, 23, 40), (2, 4, 8), (1, 2, 5)):
        many = GlobalPlan(num_examples=n, size=workers, batch_size=batch_size, seed=7)
        one = GlobalPlan(num_examples=n, size=1, batch_size=workers * batch_size, seed=7)
        assert many.steps == one.steps
        for step in range(one.steps):
            shares = [many.batch(epoch=2, step=step, rank=rank) for rank in range(workers)]
            together = [i for share in shares for i in share.indices[: share.count]]
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


@given(n=st.integers(2, 400), size=st.integers(1, 6), batch_size=st.integers(1, 9), data=st.data())
def test_going_on_after_any_step_leaves_the_other_steps_as_they_were(
    n: int, size: int, batch_size: int, data: st.DataObject
) -> None:
    size = min(size, n)
    plan = GlobalPlan(num_examples=n, size=size, batch_size=batch_size, seed=1)
    done = data.draw(st.integers(0, plan.steps - 1))
    rest = GlobalPlan(
        num_examples=n,
        size=size,
        batch_size=batch_size,
        seed=1,
        consumed=plan.global_range(done)[0],
    )
    assert rest.steps == plan.steps - done
    for step in range(rest.steps):
        assert rest.global_range(step) == plan.global_range(done + step)


@given(n=st.integers(9, 200), sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)), data=st.data())
def test_going_on_with_other_workers_visits_the_rest_once(
    n: int, sizes: tuple[int, int], data: st.DataObject
) -> None:
    before = GlobalPlan(num_examples=n, size=sizes[0], batch_size=2, seed=4)
    done = data.draw(st.integers(0, before.steps - 1))
    consumed = before.global_range(done)[0]
    after = GlobalPlan(num_examples=n, size=sizes[1], batch_size=3, seed=4, consumed=consumed)
    seen = permutation(n, 4, 0)[:consumed].tolist()
    for step, rank in itertools.product(range(after.steps), range(after.size)):
        batch = after.batch(epoch=0, step=step, rank=rank)
        seen += batch.indices[: batch.count].tolist()
    assert sorted(seen) == list(range(n))


def test_epochs_and_seeds_change_the_order() -> None:
    orders = {tuple(permutation(20, seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}
    assert len(orders) == 4
    assert permutation(5, None, 3).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", [GlobalPlan, BlockPlan])
@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"num_examples": 3, "size": 4}, "There are 3 examples for 4 workers.*at most 3 workers"),
        ({"num_examples": 0, "size": 1}, "There are 0 examples for 1 workers"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1."),
        ({"seed": -1}, "seed is -1; it must be at least 0."),
    ],
)
def test_plans_refuse_at_birth(
    kind: type[GlobalPlan], numbers: dict[str, int], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        kind(**{"num_examples": 10, "size": 2, "batch_size": 2, **numbers})


def test_nothing_left_is_refused() -> None:
    with pytest.raises(PlanError, match="consumed is 10 of 10 examples; nothing is left"):
        GlobalPlan(num_examples=10, size=2, batch_size=2, consumed=10)


def test_position_refuses_nonsense() -> None:
    assert Position(epoch=1, consumed=5).consumed == 5
    with pytest.raises(PlanError, match="epoch is -1"):
        Position(epoch=-1, consumed=0)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([4], [[0]]),
        ([4, 4, 4], [[0, 1], [2]]),
        ([9, 1, 1], [[0], [1, 2]]),
        # A tensor larger than the limit travels alone.
        ([1, 20, 1], [[0], [1], [2]]),
    ],
)
def test_pack(sizes: list[int], expected: list[list[int]]) -> None:
    assert [list(run) for run in pack(sizes, limit=8)] == expected
