"""`join`: ranks that have no more data count as zeros until all have joined."""

from typing import Any

import pytest

from tests.group import Groups

CASES = "tests.cases.join"


@pytest.mark.parametrize(
    ("size", "init", "in_graph", "length"),
    [
        (2, {}, False, 3),
        (3, {}, True, 100_000),  # Too large for messages.
        (2, {"hosts": (1, 1)}, True, 100_000),
        pytest.param(3, {}, False, 100_000, marks=pytest.mark.long),
        pytest.param(2, {}, True, 3, marks=pytest.mark.long),
    ],
)
def test_ranks_that_have_joined_count_as_zeros(
    groups: Groups, size: int, init: dict[str, Any], in_graph: bool, length: int
) -> None:
    number = 2
    ranks = groups(size, **init).run(
        f"{CASES}:steps", number=number, in_graph=in_graph, length=length
    )
    for rank, found in enumerate(ranks):
        here = [range(step // number, size) for step in range((rank + 1) * number)]
        sums = [float(sum(r + 1 for r in some)) for some in here]
        by_count = [sum((r + 1) ** 2 for r in some) / sum(r + 1 for r in some) for some in here]
        means = [total / size for total in sums]
        assert found["sum"] == sums
        for kind in ("average", "horovod", "horovod gradient"):
            assert found[kind] == pytest.approx(means), kind
        for kind in ("tfddl", "tfddl gradient"):
            assert found[kind] == pytest.approx(by_count), kind
        assert found["max"] == [0.0 if len(some) < size else -1.0 for some in here]
        assert found["last"] == [size - 1]
        assert found["after"] == list(map(float, range(size)))


def test_other_operations_raise_and_the_next_one_works(groups: Groups) -> None:
    first, *others = groups(3).run(f"{CASES}:others")
    assert others == [{"last": "0"}] * 2
    assert first.pop("last") == "0"
    for name in ("allgather", "broadcast", "alltoall", "reducescatter", "slices"):
        assert "needs all ranks, but ranks 1..2 have called join; until all have" in first[name]
        assert first[f"after {name}"] == "3.0"
    assert first["broadcast"].startswith("broadcast from rank 0 <b> of float32 (6) needs all")


def test_ranks_join_in_a_process_set(groups: Groups) -> None:
    assert groups(3).run(f"{CASES}:of_a_set") == [[2, 3.0], [3.0], [2.0, 2.0, 2, 3.0]]


def test_what_others_did_meanwhile_counts(groups: Groups) -> None:
    """Whoever looks for the rank that others wait for compares these numbers."""
    before = groups(2).run(f"{CASES}:counts")
    after = groups(2).run(f"{CASES}:counts")
    assert before[0] == before[1]
    assert after[0] == after[1] > before[0]


def test_one_rank(groups: Groups) -> None:
    found = groups(1).run(f"{CASES}:steps", number=1, in_graph=True, length=3)[0]
    assert (found["last"], found["after"]) == ([0], [0.0])


def test_refused_where_all_ranks_are_needed(groups: Groups) -> None:
    for rank, text in enumerate(groups(2, collective="ring").run(f"{CASES}:refused")):
        assert text.startswith(f"rank {rank} has called join, which RING doesn't know: all ranks")
