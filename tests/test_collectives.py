import numpy as np
import pytest

from tests.group import Groups
from tfddl._src.collectives.fusion import plan_buffers

CASES = "tests.cases.collectives"


def test_broadcast_keeps_every_bit(groups: Groups) -> None:
    sent = np.array([0x80000000, 0x7FC01234, 0x00000001, 0x7F7FFFFF], np.uint32).tobytes()
    assert groups(2).run(f"{CASES}:exact_bits") == [[sent], [sent]]


@pytest.mark.parametrize("size", [2, 3])
def test_objects(groups: Groups, size: int) -> None:
    for received, gathered in groups(size).run(f"{CASES}:objects"):
        assert received == ["from", 1]
        assert gathered == [(rank, 1000 * rank) for rank in range(size)]


@pytest.mark.parametrize("size", [2, 3])
def test_collectives_in_a_loop_of_a_graph(groups: Groups, size: int) -> None:
    mean = sum(range(size)) / size
    assert groups(size).run(f"{CASES}:loops", steps=5) == [mean + 5 * size] * size


def test_calls_of_a_graph_keep_their_order_in_branches_and_loops(groups: Groups) -> None:
    assert groups(2).run(f"{CASES}:order") == [[], []]


@pytest.mark.parametrize("size", [2, 3])
def test_grouped_allreduce(groups: Groups, size: int) -> None:
    ranks = sum(range(size))
    expected = [[size + ranks, 2 * size + ranks], float(size + ranks), 0.5 * size]
    assert groups(size).run(f"{CASES}:grouped") == [expected] * size


@pytest.mark.parametrize("size", [2, 3])
def test_topology(groups: Groups, size: int) -> None:
    ranks = groups(size).run(f"{CASES}:topology")
    assert [found[:6] for found in ranks] == [(r, size, r, size, 0, 1) for r in range(size)]
    assert all(threads >= 1 and replicas == size for *_, threads, replicas in ranks)


def test_the_strategy_s_own_collectives_work_beside_ours(groups: Groups) -> None:
    assert groups(2).run(f"{CASES}:strategy_still_works") == [2.0, 2.0]


def test_operations_leave_no_threads_behind(groups: Groups) -> None:
    """TensorFlow's own timeout would keep two asleep for each."""
    assert all(left < 20 for left in groups(2).run(f"{CASES}:threads"))


def test_the_transport_is_what_was_asked_for(groups: Groups) -> None:
    """Where TensorFlow's collectives are forced, they run."""
    case = "tests.cases.collectives:group_name"
    assert groups(2, collective="auto").run(case) == ["shared memory"] * 2
    ring = groups(2, collective="ring")
    assert ring.run(case) == ["RING"] * 2
    # One to compare what the ranks are about to do, one for the sum.
    assert ring.run("tests.cases.collectives:launched") == [2, 2]


@pytest.mark.parametrize(("size", "collective"), [(3, "auto"), (2, "ring")])
def test_threads_call_by_name_in_any_order(groups: Groups, size: int, collective: str) -> None:
    """Through shared memory they meet by name. RING has one order: what differs is told."""
    group = groups(size, collective=collective)
    for found in group.run(f"{CASES}:named_in_threads", count=4, rounds=5):
        assert "wrong" not in found
        assert sum(found.values()) == 20
        assert collective == "ring" or found == {"right": 20}


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
    assert [list(run) for run in plan_buffers(sizes, limit=8)] == expected
