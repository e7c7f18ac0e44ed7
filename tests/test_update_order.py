"""A worker doesn't have everything in memory at once."""

import pytest

from tests.group import Groups

CASES = "tests.cases.update_order"

ALONE: list[list[int]] = [[], [], [], []]


@pytest.mark.parametrize(
    ("num_bytes", "at_once", "overlaps", "expected"),
    [
        (1, 159, False, [[], [0], [0, 1], [0, 1, 2]]),
        (80, 159, False, [[], [], [0, 1], [0, 1]]),
        # Small models wait for nothing.
        (1, 160, False, ALONE),
        # Gradients that arrive one by one, the last ones first, are applied as they come.
        (1, 159, True, ALONE),
    ],
)
def test_updates_wait_for_those_before(
    groups: Groups, num_bytes: int, at_once: int, overlaps: bool, expected: list[list[int]]
) -> None:
    """When all gradients arrive at once, variables are updated group by group."""
    case = {"num_bytes": num_bytes, "at_once": at_once, "overlaps": overlaps}
    assert groups(2).run(f"{CASES}:waits", **case) == [(expected, [-0.5, 0.5, 1.5, 2.5])] * 2


@pytest.mark.parametrize(
    ("limit", "at_once", "packs"),
    [(32, 47, [[0, 1], [2]]), (8, 47, [[0], [1], [2]]), (8, 48, [[0, 1, 2]])],
)
def test_variables_are_broadcast_pack_by_pack(
    groups: Groups, limit: int, at_once: int, packs: list[list[int]]
) -> None:
    """No more are read than travel together; the root's own stay as they are."""
    receiver, root = groups(2).run(f"{CASES}:read_and_written", limit=limit, at_once=at_once)
    events = [f"{what} {i}" for pack in packs for what in ("read", "write") for i in pack]
    assert receiver == (events, [10.0, 11.0, 12.0])
    assert root == (["read 0", "read 1", "read 2"], [])
