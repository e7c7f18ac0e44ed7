from typing import Any

import pytest

from tests.group import Groups

CASES = "tests.cases.process_sets"
RING: dict[str, Any] = {"collective": "ring"}  # TensorFlow's own; otherwise it is shared memory.


@pytest.mark.parametrize(
    ("size", "init", "sets"),
    [
        (3, {}, [[0, 2], [1]]),
        (2, RING, [[0], [1]]),
        pytest.param(3, RING, [[0, 2], [1]], marks=pytest.mark.long),
        pytest.param(4, RING, [[0, 1], [2, 3]], marks=pytest.mark.long),
        pytest.param(4, {}, [[3, 0], [2, 1]], marks=pytest.mark.long),
    ],
)
def test_disjoint_sets_side_by_side(
    groups: Groups, size: int, init: dict[str, Any], sets: list[list[int]]
) -> None:
    for rank, found in enumerate(groups(size, **init).run(f"{CASES}:disjoint", ranks=sets)):
        mine = sorted(next(ranks for ranks in sets if rank in ranks))
        root, total = mine[-1], float(sum(mine))
        assert found == [
            total / len(mine),
            sum(range(size)),
            mine,
            root,
            mine,
            [total],
            root,
            root,
            [x for r in mine for x in (r, -r)],
            root,
            ("from", root),
            [{"rank": r} for r in mine],
            (mine.index(rank), len(mine)),
        ]


@pytest.mark.parametrize("init", [{}, pytest.param(RING, marks=pytest.mark.long)])
def test_overlapping_sets_keep_one_order(groups: Groups, init: dict[str, Any]) -> None:
    values = [1.0, 2.0, 3.0]
    for _ in range(3):
        for ranks in ([0, 1], [1, 2], [2, 0], [0, 1, 2]):
            total = sum(values[rank] for rank in ranks)
            values = [x + total if rank in ranks else x for rank, x in enumerate(values)]
    assert groups(3, **init).run(f"{CASES}:overlapping") == [[x, x] for x in values]


def test_gradients_stay_within_a_set(groups: Groups) -> None:
    # The losses weigh by rank + 1: 1 and 3, in all 4. The second row gathered is rank 2's.
    assert groups(3).run(f"{CASES}:gradients") == [[2.0, 0.0, 0.0], [], [2.0, 4.0, 4.0]]


def test_refusals(groups: Groups) -> None:
    for rank, found in enumerate(groups(2).run(f"{CASES}:refusals")):
        other = 1 - rank
        not_in = (
            f"This is rank {rank}, which is not in ProcessSet([{other}]). Only its members may use "
            "it: put the call under `if process_set.included():`."
        )
        assert found == [
            not_in,
            not_in,
            not_in,
            "ProcessSet([0, 7]) names ranks outside of the job's 2.",
            "ranks is []; it must be at least one rank, each once and 0 or more.",
            "ranks is [0, 0]; it must be at least one rank, each once and 0 or more.",
            "ranks is [-1]; it must be at least one rank, each once and 0 or more.",
            "ranks is 3; it must be a list of ranks.",
            "no error" if rank == 1 else "root_rank is 1; it must be one of [0].",
        ]


def test_sets_are_their_ranks(groups: Groups) -> None:
    assert groups(3).run(f"{CASES}:the_same") == [True, True, False]
