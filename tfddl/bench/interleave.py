"""Takes the times of several things in turns, in all workers of a job together."""

import itertools
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import tfddl

if TYPE_CHECKING:
    from tfddl.bench.session import Session

Run = Callable[[int], Sequence[float]]
"""Does something so many times; returns how many seconds each time took."""

K = TypeVar("K", bound=Hashable)
Rounds = list[list[Sequence[float]]]
"""Seconds by round, rank and repetition."""


def count_rounds(number: int, what: str, say: Callable[[str], None]) -> Iterator[int]:
    """Counts rounds of something from 0, and says after each how much is left."""
    began_s = time.monotonic()
    for done in range(1, number + 1):
        yield done - 1
        took_s = time.monotonic() - began_s
        left_s = took_s / done * (number - done)
        left = f"; about {left_s:.0f} s left" if done < number else ""
        say(f"{what}, round {done} of {number} done after {took_s:.1f} s{left}")


def interleave(
    session: "Session", what: str, cases: Mapping[K, Run], *, seconds: float
) -> dict[K, Rounds]:
    """Runs each case once in every round, all ranks at the same time.

    All ranks must call it together, with the same cases in the same order. Each case is run twice
    before, to warm up, and twice to see how long it takes: so often that it then takes about so
    many seconds in a round. Each round begins with another case.
    """
    numbers = {}
    for key, run in cases.items():
        tfddl.barrier()
        run(2)
        numbers[key] = repetitions(seconds, max(tfddl.allgather_object(sum(run(2)) / 2)))
    taken: dict[K, list[Sequence[float]]] = {key: [] for key in cases}
    keys = list(cases)
    for turn in count_rounds(session.config.rounds, what, session.say):
        first = turn % len(keys)
        with session.watching_load():
            for key in keys[first:] + keys[:first]:
                # A worker that waits looks for 50 µs and then sleeps in poll(2): it takes nothing
                # from slower workers that share its cores.
                tfddl.barrier()
                taken[key].append(cases[key](numbers[key]))
            tfddl.barrier()
    of_ranks = tfddl.allgather_object(taken)
    return {
        key: [list(of_round) for of_round in zip(*(r[key] for r in of_ranks), strict=True)]
        for key in cases
    }


def repetitions(seconds: float, each_s: float) -> int:
    """How often to do what takes so long once, within so many seconds: 2 to 500 times."""
    return min(max(math.ceil(seconds / each_s), 2), 500)


def flat(rounds: Rounds) -> list[float]:
    """The seconds of all rounds, ranks and repetitions."""
    return [s for ranks in rounds for taken in ranks for s in taken]


def differences(values: Sequence[float]) -> list[float]:
    """Between neighbours."""
    return [b - a for a, b in itertools.pairwise(values)]
