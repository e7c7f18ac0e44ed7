"""Takes the times of several things in turns, in all workers of a job together."""

import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import tfddl
from tfddl.bench.machines import LoadMeter
from tfddl.bench.progress import Progress

_LEAST, _MOST = 2, 500

Run = Callable[[int], Sequence[float]]
"""Does something so many times; returns how many seconds each time took."""

K = TypeVar("K", bound=Hashable)
Rounds = list[list[Sequence[float]]]
"""Seconds by round, rank and repetition."""


def interleave(
    cases: Mapping[K, Run],
    *,
    rounds: int,
    seconds: float,
    progress: Progress,
    meter: LoadMeter,
) -> dict[K, Rounds]:
    """Runs each case once in every round, all ranks at the same time.

    All ranks must call it together, with the same cases in the same order. Between two cases they
    meet in a barrier, where a worker that waits looks for 50 µs and then sleeps in poll(2): it
    takes nothing from slower workers that share its cores.

    Args:
        cases: By any key. Each is run twice before, to warm up, and twice to see how long it takes.
        rounds: How many; each begins with another case.
        seconds: How long a case takes in a round, about: 2 to 500 repetitions, as many on all
            ranks.
        progress: Says how far it is.
        meter: Runs meanwhile.

    Returns:
        By key, the seconds of all ranks.
    """
    numbers = {}
    for key, run in cases.items():
        tfddl.barrier()
        run(_LEAST)
        slowest_s = max(tfddl.allgather_object(sum(run(_LEAST)) / _LEAST))
        numbers[key] = min(max(math.ceil(seconds / slowest_s), _LEAST), _MOST)
    taken: dict[K, list[Sequence[float]]] = {key: [] for key in cases}
    for turn in progress.rounds(rounds):
        with meter.running():
            for key in _rotated(list(cases), turn):
                tfddl.barrier()
                taken[key].append(cases[key](numbers[key]))
            tfddl.barrier()
    of_ranks = tfddl.allgather_object(taken)
    return {key: [[r[key][turn] for r in of_ranks] for turn in range(rounds)] for key in cases}


def flat(rounds: Rounds) -> list[float]:
    """The seconds of all rounds, ranks and repetitions."""
    return [s for ranks in rounds for taken in ranks for s in taken]


def differences(values: Sequence[float]) -> list[float]:
    """Between neighbours."""
    return [b - a for a, b in itertools.pairwise(values)]


def _rotated(keys: list[K], turn: int) -> list[K]:
    first = turn % len(keys)
    return keys[first:] + keys[:first]
