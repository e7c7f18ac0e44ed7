"""Measures how long it takes from launch to the first training step."""

from collections.abc import Mapping, Sequence

from tfddl.bench.field import Begun, Place, begin
from tfddl.bench.ground import Team
from tfddl.bench.orders import AUTO, LONE, Stop
from tfddl.bench.results import Start
from tfddl.bench.spread import Spread
from tfddl.bench.workloads import Workload

SINGLE = "plain Keras, one process"


def measure_starts(place: Place, begun: Mapping[str, Begun], *, num_workers: int) -> list[Start]:
    """Starts single processes, and jobs of the first rival in alternation with them.

    Args:
        place: Where.
        begun: How the rivals began already, by label; the first of them as tfddl chooses.
        num_workers: How many workers each of them has.
    """
    workload, progress, ground = place.settings.models[0], place.progress, place.settings.ground
    way = (*place.settings.transports, AUTO)[0]
    first = next(iter(begun))
    singles: list[Begun] = []
    samples = {label: [sample] for label, sample in begun.items()}
    for number in progress.rounds(place.settings.starts):
        singles.append(_start(place, LONE, ground.single(), workload))
        if number:  # The first round's is there.
            samples[first].append(_start(place, way, ground.team(num_workers), workload))
    return [
        summarize(0, SINGLE, singles),
        *(summarize(num_workers, label, taken) for label, taken in samples.items()),
    ]


def summarize(num_workers: int, transport: str, samples: Sequence[Begun]) -> Start:
    """What several starts come to."""
    return Start(
        workers=num_workers,
        transport=transport,
        total_s=Spread.of([sample.total_s for sample in samples]),
        import_s=Spread.of([sample.import_s for sample in samples]).median,
        init_s=Spread.of([sample.init_s for sample in samples]).median,
        first_step_s=Spread.of([sample.first_step_s for sample in samples]).median,
    )


def _start(place: Place, way: str, team: Team, workload: Workload) -> Begun:
    with place.crew(way, team) as crew:
        sample = begin(crew, workload)
        crew.ask(Stop())
    return sample
