"""Takes the times of what several workers do together, in turns."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import tfddl
from tfddl.bench.devices import wait_for_devices
from tfddl.bench.progress import Progress
from tfddl.bench.spread import Spread

_WARM_UP = 2
_LEAST_CALLS, _MOST_CALLS = 2, 200


@dataclasses.dataclass(frozen=True)
class Case:
    """What is timed."""

    label: str
    run: Callable[[], object] | None
    """None on ranks that have no part in it."""


def in_turns(
    cases: Sequence[Case], *, rounds: int, seconds: float, progress: Progress
) -> dict[str, list[float]]:
    """Runs each case some times in each round. All ranks must call it together, with all cases.

    Args:
        cases: What.
        rounds: How often each has its turn.
        seconds: How long a turn takes about.
        progress: Is told how far it is.

    Returns:
        By label, for each round, how many seconds one run took on the slowest rank.
    """
    number_of_runs = {}
    for case in cases:
        _slowest(case, _WARM_UP)
        number = math.ceil(seconds / _slowest(case, _LEAST_CALLS))
        number_of_runs[case.label] = min(max(number, _LEAST_CALLS), _MOST_CALLS)
    times: dict[str, list[float]] = {case.label: [] for case in cases}
    for turn in progress.rounds(rounds):
        first = turn % len(cases)
        for case in [*cases[first:], *cases[:first]]:
            times[case.label].append(_slowest(case, number_of_runs[case.label]))
    return times


def median_s(times: Sequence[float]) -> float:
    """Of one case."""
    return Spread.of(times).median


def _slowest(case: Case, number: int) -> float:
    """Seconds of one run, the same on all ranks."""
    tfddl.barrier()
    began_s = time.perf_counter()
    if case.run is not None:
        for _ in range(number):
            case.run()
        wait_for_devices()
    took_s = (time.perf_counter() - began_s) / number if case.run is not None else 0.0
    return max(tfddl.allgather_object(took_s))
