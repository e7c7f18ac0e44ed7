"""Circles of ranks that wait for each other: found where there is one, and nowhere else.

Programs of a few ranks, made at random, are run with messages that arrive at random times.
"""

import collections
import random
from typing import NamedTuple

import pytest

from tfddl._src.comm.native.deadlock import (
    DeadlockDetector,
    Waiter,
    describe_deadlock,
    describe_waits,
)
from tfddl._src.comm.native.messages import Tag


class Operation(NamedTuple):
    """An operation of some ranks, as the programs of these have it."""

    tag: Tag
    members: frozenset[int]


class Rank:
    """One rank at its place in its program."""

    def __init__(self, number: int, program: list[Operation]) -> None:
        self.number, self.program = number, program
        self.at = 0
        self.is_waiting = False
        self.sent: set[Tag] = set()
        self.arrived: dict[Tag, set[int]] = collections.defaultdict(set)
        self.circles = DeadlockDetector(lambda tag: tag in self.sent)

    @property
    def operation(self) -> Operation:
        return self.program[self.at]

    @property
    def missing(self) -> list[int]:
        here = self.arrived[self.operation.tag] | {self.number}
        return sorted(self.operation.members - here)

    @property
    def waiter(self) -> Waiter:
        return Waiter(self.number, self.at, f"rank {self.number}", str(self.at), True)

    def ask(self, *, begins: bool) -> tuple[list[bytes], tuple[Waiter, ...]]:
        if begins:
            return [self.circles.begin(self.waiter, self.operation.tag)], ()
        return self.circles.look(self.waiter, self.operation.tag)


def programs(rng: random.Random) -> list[list[Operation]]:
    """What each rank calls: the same, but that some calls are exchanged, or left out."""
    size = rng.randint(2, 5)
    common = []
    for number in range(rng.randint(1, 6)):
        members = frozenset(rng.sample(range(size), rng.randint(2, size)))
        common.append(Operation(Tag(number, 0, 0), members))
    found = []
    for rank in range(size):
        mine = [operation for operation in common if rank in operation.members]
        if len(mine) > 1 and rng.random() < 0.5:
            at = rng.randrange(len(mine) - 1)
            mine[at], mine[at + 1] = mine[at + 1], mine[at]
        if mine and rng.random() < 0.2:
            del mine[rng.randrange(len(mine))]
        found.append(mine)
    return found


def last_places(given: list[list[Operation]]) -> list[int]:
    """How far each rank comes, however long that takes."""
    at = [0] * len(given)
    while True:
        now = {
            rank: program[at[rank]].tag
            for rank, program in enumerate(given)
            if at[rank] < len(program)
        }
        begun = {
            (rank, operation.tag)
            for rank, program in enumerate(given)
            for operation in program[: at[rank] + 1]
        }
        going = [
            rank
            for rank in now
            if all((other, now[rank]) in begun for other in given[rank][at[rank]].members)
        ]
        if not going:
            return at
        for rank in going:
            at[rank] += 1


def has_circle(given: list[list[Operation]], at: list[int]) -> bool:
    """Whether ranks that come no further wait for each other."""
    begun = [{operation.tag for operation in p[: at[r] + 1]} for r, p in enumerate(given)]
    waits = {
        rank: {
            other
            for other in program[at[rank]].members
            if program[at[rank]].tag not in begun[other]
        }
        for rank, program in enumerate(given)
        if at[rank] < len(program)
    }
    left = dict(waits)
    while ended := [rank for rank, others in left.items() if not others & set(left)]:
        for rank in ended:
            del left[rank]
    return bool(left)


def run(given: list[list[Operation]], rng: random.Random, *, steps: int) -> list[Waiter]:
    """A circle that was found while these programs ran."""
    ranks = [Rank(number, program) for number, program in enumerate(given)]
    links: dict[tuple[int, int], collections.deque[Tag | bytes]] = collections.defaultdict(
        collections.deque
    )
    for _ in range(steps):
        rank = rng.choice(ranks)
        peer = rng.choice(ranks).number
        if rank.at == len(rank.program):
            continue
        if not rank.is_waiting:
            rank.is_waiting = True
            rank.sent.add(rank.operation.tag)
            for other in rank.operation.members - {rank.number}:
                links[rank.number, other].append(rank.operation.tag)
            continue
        if not rank.missing:
            rank.at, rank.is_waiting = rank.at + 1, False
            continue
        if links[peer, rank.number] and rng.random() < 0.7:
            message = links[peer, rank.number].popleft()
            if isinstance(message, Tag):
                rank.arrived[message].add(peer)
            else:
                rank.circles.hear(message)
            continue
        onwards, circle = rank.ask(begins=rng.random() < 0.3)
        if circle:
            return list(circle)
        for other in rank.missing:
            links[rank.number, other].extend(onwards)
    return []


@pytest.mark.parametrize("first", range(0, 300, 100))
def test_a_circle_is_found_where_there_is_one_and_nowhere_else(first: int) -> None:
    kinds = set()
    for seed in range(first, first + 100):
        rng = random.Random(seed)
        given = programs(rng)
        at = last_places(given)
        expected = has_circle(given, at)
        kinds.add(expected)
        circle = run(given, rng, steps=6000)
        assert bool(circle) == expected, seed
        # All of them are where they will be for ever.
        assert all(waiter.number == at[waiter.rank] for waiter in circle), seed
    assert kinds == {True, False}


def test_a_circle_is_told_by_rank_once_for_those_who_wait_together() -> None:
    circle = [
        Waiter(2, 7, "ranks 0, 2", "allreduce <a>", True),
        Waiter(1, 4, "rank 1", "allreduce <b> (train.py, line 3: f(x))", True),
        Waiter(0, 9, "ranks 0, 2", "allreduce <a>", False),
    ]
    assert describe_deadlock(describe_waits(circle)).splitlines()[:3] == [
        "The ranks wait for each other in different operations, and none can go on:",
        "  ranks 0, 2: allreduce <a>",
        "  rank 1: allreduce <b> (train.py, line 3: f(x))",
    ]
    assert describe_deadlock(describe_waits(circle), waited_s=600.2).startswith(
        "For 600 s, ranks have waited"
    )
