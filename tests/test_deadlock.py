"""Deadlocks: found where ranks wait for each other in a cycle, and nowhere else.

Random programs of a few ranks are simulated, with messages that arrive at random times.
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


class ProgramStep(NamedTuple):
    """An operation of some ranks, as the programs of these have it."""

    tag: Tag
    members: frozenset[int]


class Rank:
    """One rank at its place in its program."""

    def __init__(self, number: int, program: list[ProgramStep]) -> None:
        self.number, self.program = number, program
        self.at = 0
        self.is_waiting = False
        self.sent: set[Tag] = set()
        self.arrived: dict[Tag, set[int]] = collections.defaultdict(set)
        self.detector = DeadlockDetector(lambda tag: tag in self.sent)

    @property
    def operation(self) -> ProgramStep:
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
            return [self.detector.start_probe(self.waiter, self.operation.tag)], ()
        return self.detector.examine(self.waiter, self.operation.tag)


@pytest.mark.parametrize(("excuse", "is_waited_for"), [(None, True), (Tag(2, 0, 0), False)])
def test_a_rank_that_has_joined_keeps_nobody_waiting(
    excuse: Tag | None, is_waited_for: bool
) -> None:
    """It waits for the others itself, and passes on no probe of an operation that goes on."""
    waiting = DeadlockDetector(lambda _: False)
    joined = DeadlockDetector(lambda tag: tag == Tag(2, 0, 0))
    probe = waiting.start_probe(Waiter(0, 0, "rank 0", "0", True), Tag(1, 0, 0), excuse)
    joined.receive(probe)
    forwarded, cycle = joined.examine(Waiter(2, 0, "rank 2", "0", True), Tag(2, 0, 0))
    assert (len(forwarded), cycle) == (int(is_waited_for), ())


def programs(rng: random.Random) -> list[list[ProgramStep]]:
    """What each rank calls: the same, but that some calls are exchanged, or left out."""
    size = rng.randint(2, 5)
    common = []
    for number in range(rng.randint(1, 6)):
        members = frozenset(rng.sample(range(size), rng.randint(2, size)))
        common.append(ProgramStep(Tag(number, 0, 0), members))
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


def final_positions(given: list[list[ProgramStep]]) -> list[int]:
    """How far each rank comes, however long that takes."""
    position = [0] * len(given)
    while True:
        now = {
            rank: program[position[rank]].tag
            for rank, program in enumerate(given)
            if position[rank] < len(program)
        }
        begun = {
            (rank, operation.tag)
            for rank, program in enumerate(given)
            for operation in program[: position[rank] + 1]
        }
        going = [
            rank
            for rank in now
            if all((other, now[rank]) in begun for other in given[rank][position[rank]].members)
        ]
        if not going:
            return position
        for rank in going:
            position[rank] += 1


def has_cycle(given: list[list[ProgramStep]], position: list[int]) -> bool:
    """Whether ranks that come no further wait for each other."""
    begun = [{operation.tag for operation in p[: position[r] + 1]} for r, p in enumerate(given)]
    waits = {
        rank: {
            other
            for other in program[position[rank]].members
            if program[position[rank]].tag not in begun[other]
        }
        for rank, program in enumerate(given)
        if position[rank] < len(program)
    }
    left = dict(waits)
    while ended := [rank for rank, others in left.items() if not others & set(left)]:
        for rank in ended:
            del left[rank]
    return bool(left)


def run(given: list[list[ProgramStep]], rng: random.Random, *, steps: int) -> list[Waiter]:
    """A cycle that was found while these programs ran."""
    ranks = [Rank(number, program) for number, program in enumerate(given)]
    queues: dict[tuple[int, int], collections.deque[Tag | bytes]] = collections.defaultdict(
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
                queues[rank.number, other].append(rank.operation.tag)
            continue
        if not rank.missing:
            rank.at, rank.is_waiting = rank.at + 1, False
            continue
        if queues[peer, rank.number] and rng.random() < 0.7:
            message = queues[peer, rank.number].popleft()
            if isinstance(message, Tag):
                rank.arrived[message].add(peer)
            else:
                rank.detector.receive(message)
            continue
        forwarded, cycle = rank.ask(begins=rng.random() < 0.3)
        if cycle:
            return list(cycle)
        for other in rank.missing:
            queues[rank.number, other].extend(forwarded)
    return []


@pytest.mark.parametrize("first", range(0, 300, 100))
def test_a_deadlock_is_found_where_there_is_one_and_nowhere_else(first: int) -> None:
    kinds = set()
    for seed in range(first, first + 100):
        rng = random.Random(seed)
        given = programs(rng)
        position = final_positions(given)
        expected = has_cycle(given, position)
        kinds.add(expected)
        cycle = run(given, rng, steps=6000)
        assert bool(cycle) == expected, seed
        # All of them are where they will be for ever.
        assert all(waiter.number == position[waiter.rank] for waiter in cycle), seed
    assert kinds == {True, False}


def test_ranks_that_wait_together_have_one_line() -> None:
    cycle = [
        Waiter(2, 7, "ranks 0, 2", "allreduce <a>", True),
        Waiter(1, 4, "rank 1", "allreduce <b> (train.py, line 3: f(x))", True),
        Waiter(0, 9, "ranks 0, 2", "allreduce <a>", False),
    ]
    assert describe_deadlock(describe_waits(cycle)).splitlines()[:3] == [
        "The ranks wait for each other in different operations, and none can go on:",
        "  ranks 0, 2: allreduce <a>",
        "  rank 1: allreduce <b> (train.py, line 3: f(x))",
    ]
    assert describe_deadlock(describe_waits(cycle), waited_s=600.2).startswith(
        "For 600 s, ranks have waited"
    )
