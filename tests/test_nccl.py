"""The NCCL branch without a GPU: over RING, with an all-to-all that is as wrong as NCCL's."""

from typing import Any

import pytest

from tests.cases.collective_tables import ROWS
from tests.group import Groups

CASES = "tests.cases.nccl"
LONG = pytest.mark.long
RING: dict[str, Any] = {"collective": "ring"}
SIZES = pytest.mark.parametrize("size", [2, pytest.param(3, marks=LONG)])


@SIZES
def test_every_operation_and_dtype(groups: Groups, size: int) -> None:
    found = groups(size, **RING).run(f"{CASES}:table", name="every_dtype", every=33, timeout_s=170)
    assert all(compared > sum(len(row.dtypes) for row in ROWS.values()) for compared in found)


@SIZES
@LONG
def test_groups_shapes_and_roundings(groups: Groups, size: int) -> None:
    """As by RING: see `tests/test_collective_tables.py`."""
    group = groups(size, **RING)
    assert all(found > 30 for found in group.run(f"{CASES}:table", name="groups", in_graphs=True))
    options: dict[str, Any]
    for case, options in (("shapes", {}), ("slices", {"in_graphs": True}), ("roundings", {})):
        by_ring = group.run(f"tests.cases.collective_tables:{case}", **options)
        assert group.run(f"{CASES}:table", name=case, **options) == by_ring, case


@LONG
def test_gradients(groups: Groups) -> None:
    rough = ("product", "reducescatter max", "factors of integers")
    names = [name for name in ROWS if name not in rough]
    ranks = groups(2, **RING).run(
        f"{CASES}:table", name="differentiated", order=1, names=names, in_graphs=True, timeout_s=170
    )
    assert all(compared > 40 for compared in ranks)


@LONG
def test_others(groups: Groups) -> None:
    bits = bytes.fromhex("00000080 3412c07f 01000000 ffff7f7f")
    for found in groups(2, **RING).run(f"{CASES}:others", timeout_s=170):
        assert found == {
            "name": "NCCL",
            "bits": bits.hex(),
            "order": [],
            "loops": 6.5,
            "cut": [True] * 4,
            "known and unknown": [0.0] * 6,
            "measured": False,
            # 257 is rounded to 256 once it is added up.
            "narrow": [256.0, 1.0],
            "odd broadcasts": [],
            "open": 0,
        }


def test_a_result_that_was_cut_short_is_not_used(groups: Groups) -> None:
    group = groups(2, collective="ring", timeout_s=61.0)
    ended, fine = group.run(f"{CASES}:cut_short")
    group.close()
    assert "ended while this one was under way: its result is not to be trusted" in (ended["graph"])
    assert ended["eager"] == "it took too long"
    assert all("[2. 2. 2.]" in text for text in fine.values())
