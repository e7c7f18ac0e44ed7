"""Gradients of the collectives under Horovod's names: those of Horovod 0.28.1."""

import pytest

from tests.cases.horovod_gradients import ROWS
from tests.group import Groups

CASES = "tests.cases.horovod_gradients"
LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("size", "sets", "first", "every"),
    [
        (2, [[0, 1]], 0, 8),
        (3, [[0, 1, 2]], 3, 8),
        (3, [[0, 2], [1]], 1, 16),
        pytest.param(2, [[0, 1]], 0, 1, marks=LONG),
        pytest.param(3, [[0, 1, 2]], 0, 1, marks=LONG),
        pytest.param(3, [[0, 2], [1]], 0, 1, marks=LONG),
    ],
)
def test_every_operation(
    groups: Groups, size: int, sets: list[list[int]], first: int, every: int
) -> None:
    found = groups(size).run(
        f"{CASES}:differentiated", sets=sets, first=first, every=every, timeout_s=250
    )
    assert all(compared > 6 * len(ROWS) for compared in found)


@pytest.mark.parametrize("size", [pytest.param(2, marks=LONG), 3])
def test_gradients_of_some_rows_of_a_result(groups: Groups, size: int) -> None:
    """Ranks 0 and 1 use the first row of what they get twice, and weigh it by 1 and 2."""
    nothing, total = [0.0] * 2, [2.0 + 4.0] * 2
    mean = [6.0 / size] * 2
    expected = {
        # The first rows of what all got are the sums of all first ones.
        "allreduce": [[total, nothing]] * size,
        # The first row is rank 0's.
        "allgather": [[mean, nothing]] + [[nothing, nothing]] * (size - 1),
        "broadcast": [[mean if r == 1 else nothing, nothing] for r in range(size)],
        # Rank 0's rows are the first that rank 0 and rank 1 get.
        "alltoall": [[[2.0] * 2, [4.0] * 2]] + [[nothing, nothing]] * (size - 1),
        # Ranks get two rows each: the first is number 0, 2, … of what was repeated.
        "reducescatter": [
            [[size * w for w in row] for row in _repeated([2.0, 4.0, 0.0][:size], size)]
        ]
        * size,
    }
    for rank, found in enumerate(groups(size).run(f"{CASES}:picked")):
        assert found.keys() == expected.keys()
        for name, ways in found.items():
            for gradient in ways:
                assert gradient == [pytest.approx(row) for row in expected[name][rank]], name


def _repeated(weights: list[float], size: int) -> list[list[float]]:
    """The gradients of two rows, each of which is there `size` times in a row."""
    joined = [value for weight in weights for value in (weight, 0.0)]
    return [[sum(joined[row * size : (row + 1) * size])] * 2 for row in range(2)]


def test_operations_without_a_gradient(groups: Groups) -> None:
    """Every upstream gradient is 1: on the 2 ranks, tfddl's own gradients are their sums."""
    message = "reducescatter max has no gradient; only those of sum and average have."
    for rank, found in enumerate(groups(2).run(f"{CASES}:beside_integers")):
        expected = {
            "tfddl allreduce": 1.0,  # Both have the largest number.
            "tfddl allgather": 2.0,
            "tfddl broadcast": 0.0 if rank else 2.0,
            "tfddl reducescatter": 1.0,
            "allreduce": 1.0,
            "allgather": 1.0,
            "reducescatter": 2.0,
        }
        assert found == {name: [[one, one]] * 2 for name, one in expected.items()}
    assert groups(2).run(f"{CASES}:scattered_maximum") == [message] * 2
