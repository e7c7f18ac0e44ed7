"""Measures the speed of training, where a step's time goes, and what a worker keeps meanwhile."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence

from tfddl.bench.crew import Crew
from tfddl.bench.field import Field
from tfddl.bench.load import ForeignLoad
from tfddl.bench.orders import Ran, Steps
from tfddl.bench.results import Memory, TrainingSpeed
from tfddl.bench.spread import Spread, StepTimes, ratios
from tfddl.bench.workloads import Workload

_WARM_UP = 2
_LEAST_STEPS, _MOST_STEPS = 2, 500

Rounds = Sequence[Sequence[Ran]]
"""What each rank answered in each round."""


def measure_training(
    field: Field, workload: Workload, *, load: ForeignLoad
) -> tuple[list[TrainingSpeed], list[Memory]]:
    """Lets all crews train in turns.

    Args:
        field: Who.
        workload: What.
        load: Watches.
    """
    settings, progress = field.place.settings, field.place.progress
    with field.training(workload) as gradient_bytes:
        first = {crew.label: crew.ask(Steps(_WARM_UP)) for crew in field.crews}
        step_s = _median_step([first[field.lone.label]])
        steps = min(max(math.ceil(settings.round_seconds / step_s), _LEAST_STEPS), _MOST_STEPS)
        rounds: dict[str, list[list[Ran]]] = {crew.label: [] for crew in field.crews}
        progress.say(f"{steps} steps of about {1e3 * step_s:.0f} ms, each in turn")
        for number in progress.rounds(settings.rounds):
            with field.watched(load):
                for crew in field.in_turns(number):
                    rounds[crew.label].append(crew.ask(Steps(steps)))
        clocked = {c.label: c.ask(Steps(steps, with_clock=True)) for c in field.rivals}
    speeds = [_speed(crew, field, workload, rounds, clocked) for crew in field.rivals]
    memories = [_memory(c, field, workload, rounds, gradient_bytes) for c in field.rivals]
    return speeds, memories


def _speed(
    crew: Crew,
    field: Field,
    workload: Workload,
    rounds: Mapping[str, Rounds],
    clocked: Mapping[str, Sequence[Ran]],
) -> TrainingSpeed:
    mine, lone = rounds[crew.label], rounds[field.lone.label]
    speeds, lone_speeds = (
        [images_per_s(ran, workload.batch_size) for ran in taken] for taken in (mine, lone)
    )
    return TrainingSpeed(
        workers=field.num_workers,
        model=workload.model,
        image_size=workload.image_size,
        batch_size=workload.batch_size,
        transport=crew.label,
        images_per_s=Spread.of(speeds),
        lone_images_per_s=Spread.of(lone_speeds),
        ratio=ratios(speeds, lone_speeds),
        steps_per_round=len(mine[0][0].step_s),
        step_s=_median_step(mine),
        lone_step_s=_median_step(lone),
        parts=step_times(clocked[crew.label]),
        bytes_written_per_byte_reduced=written_per_reduced(mine),
    )


def _memory(
    crew: Crew,
    field: Field,
    workload: Workload,
    rounds: Mapping[str, Rounds],
    gradient_bytes: int,
) -> Memory:
    return Memory(
        workers=field.num_workers,
        model=workload.model,
        transport=crew.label,
        kept_bytes=_median_kept(rounds[crew.label]),
        lone_kept_bytes=_median_kept(rounds[field.lone.label]),
        started_bytes=_median_started(crew),
        lone_started_bytes=_median_started(field.lone),
        gradient_bytes=gradient_bytes,
    )


def images_per_s(ran: Sequence[Ran], batch_size: int) -> float:
    """Of all ranks together, in one round."""
    return sum(batch_size * len(rank.step_s) / sum(rank.step_s) for rank in ran)


def step_times(ran: Sequence[Ran]) -> StepTimes | None:
    """Where the time goes; None where not every rank has measured it."""
    if not all(rank.collective_s for rank in ran) or not any(
        itertools.chain.from_iterable(rank.collective_s for rank in ran)
    ):
        return None
    return StepTimes.of([rank.step_s for rank in ran], [rank.collective_s for rank in ran])


def written_per_reduced(rounds: Rounds) -> float | None:
    """The bytes that all ranks' transports wrote over those that they reduced."""
    counters = [rank.counters for ran in rounds for rank in ran]
    reduced = sum(counted.get("bytes_reduced", 0) for counted in counters)
    written = sum(counted.get("bytes_written", 0) for counted in counters)
    return written / reduced if reduced else None


def _median_step(rounds: Rounds) -> float:
    return statistics.median(s for ran in rounds for rank in ran for s in rank.step_s)


def _median_kept(rounds: Rounds) -> int:
    return round(statistics.median(rank.kept_bytes for ran in rounds for rank in ran))


def _median_started(crew: Crew) -> int:
    return round(statistics.median(hello.kept_bytes for hello in crew.hellos))
