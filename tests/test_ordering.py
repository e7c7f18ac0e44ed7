"""TensorFlow orders the tasks of a process group as text; ranks are numbers."""

from collections.abc import Sequence

import pytest

from tests.group import WorkerGroup
from tfddl._src.comm.tensorflow_group import tensorflow_order

SETS = [(1, 2, 10), (0, 9, 10), (9, 10), (2, 3, 4)]


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([0], [0]),
        (range(10), list(range(10))),
        (range(11), [0, 1, 10, *range(2, 10)]),
        (range(16), [0, 1, *range(10, 16), *range(2, 10)]),
        # Places in the set, not ranks.
        ([2, 10], [1, 0]),
        ([1, 2, 10], [0, 2, 1]),
        ([9, 10, 11], [1, 2, 0]),
        ([2, 3, 4], [0, 1, 2]),
        ([5, 50, 500], [0, 1, 2]),
        ([8, 80, 9, 90][::2], [0, 1]),
    ],
)
def test_order(ranks: Sequence[int], expected: list[int]) -> None:
    assert list(tensorflow_order(ranks)) == expected


@pytest.mark.parametrize("size", [11, 16, 100, 1024])
def test_order_is_that_of_the_names_of_tasks(size: int) -> None:
    """For all ranks, and for every third and the last ones."""
    for ranks in (list(range(size)), list(range(1, size, 3)), list(range(size - 5, size))):
        names = [f"/job:worker/replica:0/task:{rank}" for rank in ranks]
        assert [names[place] for place in tensorflow_order(ranks)] == sorted(names)


@pytest.mark.long
@pytest.mark.parametrize(
    ("hosts", "collective", "everywhere"),
    [
        ((11,), "auto", True),
        ((16,), "auto", True),
        ((11,), "ring", True),
        ((16,), "ring", False),  # Each graph of RING takes a minute to make there.
        ((9, 7), "auto", True),  # Two levels.
        ((1,) * 11, "auto", True),  # TCP between all.
    ],
)
def test_many_workers(hosts: tuple[int, ...], collective: str, everywhere: bool) -> None:
    """Every collective in rank order, and `fit` as in one process.

    Nothing else runs beside so many processes: they are ended at once.
    """
    size = sum(hosts)
    group = WorkerGroup(size, hosts=hosts, collective=collective, with_strategy=False)
    try:
        group.start()
        sets = SETS if everywhere else SETS[:1]
        found = group.run(
            "tests.cases.ordering:wrong", sets=sets, everywhere=everywhere, timeout_s=300
        )
        assert found == [[]] * size
        assert max(group.run("tests.cases.many:fit_differs", timeout_s=300)) < 1e-5
    finally:
        group.close()
