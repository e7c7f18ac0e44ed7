"""Every collective, for every dtype, against NumPy in one process."""

from typing import Any

import numpy as np
import pytest

from tests.cases.collective_tables import ROWS, TIES
from tests.group import Groups

CASES = "tests.cases.collective_tables"
NAMES = list(ROWS)
# What can be differentiated; the product can't, nor can what cuts off.
ROUGH = ("product", "reducescatter max", "factors of integers")
SMOOTH = [name for name in NAMES if name not in ROUGH]
LONG = pytest.mark.long
RING: dict[str, Any] = {"collective": "ring"}  # TensorFlow's own; otherwise it is shared memory.


def _in_graphs(size: int, init: dict[str, Any]) -> bool:
    """Every day, RING makes those of `test_every_operation_and_dtype`: they take the most time."""
    return init is not RING or size == 3


SIZES = pytest.mark.parametrize(
    ("size", "init"),
    [(2, RING), (3, {}), pytest.param(2, {}, marks=LONG), pytest.param(3, RING, marks=LONG)],
)


@SIZES
def test_every_operation_and_dtype(groups: Groups, size: int, init: dict[str, Any]) -> None:
    # Graphs of RING take longer to make than all else.
    every = 33 if init is RING and size == 2 else 11
    found = groups(size, **init).run(f"{CASES}:every_dtype", every=every, timeout_s=170)
    assert all(compared > sum(len(row.dtypes) for row in ROWS.values()) for compared in found)


@pytest.mark.parametrize(
    ("size", "init", "order", "in_graphs"),
    [
        (2, RING, 1, False),
        pytest.param(2, RING, 1, True, marks=LONG),
        pytest.param(2, RING, 2, True, marks=LONG),
        (3, {}, 1, True),
        pytest.param(3, {}, 2, True, marks=LONG),
        pytest.param(3, RING, 1, True, marks=LONG),
        pytest.param(3, RING, 2, True, marks=LONG),
    ],
)
def test_gradients(
    groups: Groups, size: int, init: dict[str, Any], order: int, in_graphs: bool
) -> None:
    ranks = groups(size, **init).run(
        f"{CASES}:differentiated", order=order, names=SMOOTH, in_graphs=in_graphs, timeout_s=170
    )
    assert all(compared > 40 for compared in ranks)


@SIZES
def test_groups_of_tensors(groups: Groups, size: int, init: dict[str, Any]) -> None:
    in_graphs = _in_graphs(size, init)
    for found in groups(size, **init).run(f"{CASES}:groups", in_graphs=in_graphs):
        assert found > (30 if in_graphs else 15)


@SIZES
def test_scalars_and_empty_tensors(groups: Groups, size: int, init: dict[str, Any]) -> None:
    for found in groups(size, **init).run(f"{CASES}:shapes"):
        assert found == {
            "scalar allreduce": (),
            "scalar broadcast": (),
            "empty allreduce": (0, 3),
            "no columns": (3, 0),
            "empty allgather": (0, 3),
            "allgather, no columns": (2 * size, 0),
            "empty broadcast": (0, 3),
            "empty alltoall": (0, 3),
            "alltoall, no columns": (size, 0),
            "empty splits": (0, 3),
            "empty reducescatter": (0, 3),
            "unknown allreduce": (size, 1, 2),
            "unknown allgather": (size * size, 1, 2),
            "unknown broadcast": (size, 1, 2),
            "unknown alltoall": (size, 1, 2),
            "unknown reducescatter": (1, 1, 2),
            "unknown empty allreduce": (0, 2),
            "unknown empty allgather": (0, 2),
            "unknown empty broadcast": (0, 2),
            "unknown empty alltoall": (0, 2),
            "unknown empty reducescatter": (0, 2),
        }


@SIZES
def test_slices(groups: Groups, size: int, init: dict[str, Any]) -> None:
    # Rank r gives r + 1 slices of r + 1, times 2; each rank's loss weighs its sum by r + 1.
    total = [2.0 * sum(range(row + 1, size + 1)) for row in range(5)]
    weight = 2.0 * sum(range(1, size + 1))
    in_graphs = _in_graphs(size, init)
    ranks = groups(size, **init).run(f"{CASES}:slices", in_graphs=in_graphs)
    for rank, found in enumerate(ranks):
        assert len(found) == (4 if in_graphs else 2)
        for name, (dense, gradient) in found.items():
            divisor = size if "average" in name else 1
            assert dense == pytest.approx([x / divisor for x in total]), name
            np.testing.assert_allclose(
                gradient, [[weight / divisor] * 2] * (rank + 1), err_msg=name
            )


@SIZES
def test_small_numbers_are_reduced_in_large_ones(
    groups: Groups, size: int, init: dict[str, Any]
) -> None:
    for found in groups(size, **init).run(f"{CASES}:roundings"):
        assert found == {
            "large": 60000,  # Their sum is beyond float16.
            # In bfloat16 256 + 1 is 256, and 258 is the next number: two ones count together.
            "many": 256 if size == 2 else 258,
            "scattered": 60000,
            "bytes": 200,
            "scaled": 7 * size // 2,
        }


@SIZES
def test_ranks_that_have_the_extremum_share_its_gradient(
    groups: Groups, size: int, init: dict[str, Any]
) -> None:
    """All upstream gradients, added up: one n-th for each of the n ranks that have it."""
    has_it = np.equal(TIES[:size], np.max(TIES[:size], axis=0))
    shares = has_it / has_it.sum(axis=0) * sum(range(1, size + 1))
    in_graphs = _in_graphs(size, init)
    for rank, found in enumerate(groups(size, **init).run(f"{CASES}:ties", in_graphs=in_graphs)):
        assert len(found) == (6 if in_graphs else 3)
        for name, gradient in found.items():
            # A negative x is differentiated by -1; the factors are -2 and 0.25.
            factor = {"max": 1.0, "min": -1.0, "factors": -0.5}[name.partition(",")[0]]
            assert gradient == pytest.approx((shares[rank] * factor).tolist()), name
