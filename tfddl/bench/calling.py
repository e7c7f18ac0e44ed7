"""Measures collectives by size, and the sum in memory that they are compared with."""

import itertools
import math
import statistics
from collections import defaultdict

from tfddl.bench.crew import Crew
from tfddl.bench.field import Field
from tfddl.bench.load import ForeignLoad
from tfddl.bench.orders import Call, Called, Mode, Operation
from tfddl.bench.results import CollectiveSpeed, MemorySum
from tfddl.bench.spread import Spread

_LEAST_CALLS, _MOST_CALLS = 2, 500
_KINDS_PER_ROUND = 10
"""Calls of one kind take such a part of the seconds that a round of training takes."""

_GB = 1e9

Key = tuple[Operation, int, Mode]


def measure_collectives(
    field: Field, *, load: ForeignLoad
) -> tuple[list[CollectiveSpeed], list[MemorySum]]:
    """Lets all crews call collectives in turns, and the lone one add up in memory.

    Args:
        field: Who.
        load: Watches.
    """
    settings, progress = field.place.settings, field.place.progress
    keys = [
        (operation, size, mode)
        for operation in settings.operations
        for size in settings.sizes
        for mode in Mode
    ]
    progress.say(f"{len(keys)} kinds of calls are made ready")
    first = settings.operations[0]
    orders = {
        (crew.label, key): _prepare(crew, key, settings.round_seconds / _KINDS_PER_ROUND)
        for key in keys
        for crew in field.crews
        if crew is not field.lone or _has_sum(key, first)
    }
    taken: dict[tuple[str, Key], list[float]] = defaultdict(list)
    for number in progress.rounds(settings.rounds):
        with field.watched(load):
            for key, crew in itertools.product(keys, field.in_turns(number)):
                order = orders.get((crew.label, key))
                if order is not None:
                    taken[crew.label, key] += _all_calls(crew.ask(order))
    lone = field.lone.label
    sums = [
        MemorySum(
            workers=field.num_workers,
            num_bytes=key[1],
            gb_per_s=key[1] / statistics.median(taken[lone, key]) / _GB,
        )
        for key in keys
        if _has_sum(key, first)
    ]
    speeds = [
        _speed(field.num_workers, crew.label, key, taken[crew.label, key])
        for crew in field.rivals
        for key in keys
    ]
    return speeds, sums


def _has_sum(key: Key, first: Operation) -> bool:
    """Whether the sum in memory is taken along with these calls: once for a size is enough."""
    return key[0] is first and key[2] is Mode.GRAPH


def _speed(workers: int, transport: str, key: Key, call_s: list[float]) -> CollectiveSpeed:
    operation, num_bytes, mode = key
    spread = Spread.of(call_s)
    return CollectiveSpeed(
        workers=workers,
        operation=operation,
        transport=transport,
        num_bytes=num_bytes,
        mode=mode,
        call_s=spread,
        gb_per_s=num_bytes / spread.median / _GB,
    )


def _prepare(crew: Crew, key: Key, budget_s: float) -> Call:
    """Lets a crew make a kind of call for the first times, and finds out how many fit."""
    operation, num_bytes, mode = key
    order = Call(operation=operation, mode=mode, num_bytes=num_bytes, calls=_LEAST_CALLS)
    called: list[Called] = crew.ask(order)
    # All ranks must make as many calls.
    slowest_s = max(statistics.median(rank.call_s) for rank in called)
    run_s = slowest_s * called[0].number
    calls = min(max(math.ceil(budget_s / run_s), _LEAST_CALLS), _MOST_CALLS)
    return Call(operation=operation, mode=mode, num_bytes=num_bytes, calls=calls)


def _all_calls(called: list[Called]) -> list[float]:
    return [seconds for rank in called for seconds in rank.call_s]
