"""All measurements of `tfddl-bench`, one after the other."""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tfddl.bench.calling import measure_collectives
from tfddl.bench.field import Field, Place, start_field
from tfddl.bench.load import ForeignLoad
from tfddl.bench.machines import Machines
from tfddl.bench.progress import Progress
from tfddl.bench.results import Results
from tfddl.bench.settings import Part, Settings
from tfddl.bench.starting import measure_starts
from tfddl.bench.training import measure_training


def measure(settings: Settings, *, environment: Mapping[str, str], progress: Progress) -> Results:
    """Measures what is asked for.

    Args:
        settings: What.
        environment: What the workers inherit.
        progress: Is told what is done.

    Raises:
        LaunchError: A job failed; the message has what it said.
    """
    results = Results(options=settings.as_json())
    watch = Watch()
    progress.say(
        f"{', '.join(settings.only)}, with {', '.join(map(str, settings.workers))} workers on "
        f"{settings.ground.describe()}, {settings.rounds} rounds of each"
    )
    with tempfile.TemporaryDirectory(prefix="tfddl-bench-") as name:
        place = Place(
            settings=settings, environment=environment, directory=Path(name), progress=progress
        )
        for num_workers in settings.workers:
            with progress.within(f"{num_workers} workers"):
                _measure_with(place, num_workers, results, watch)
    met = watch.machines.met()
    results.machines = list(met.values())
    results.foreign_cores = {
        part: {met[key].name: n for key, n in load.cores_taken.items() if key in met}
        for part, load in watch.loads.items()
        if load.cores_taken
    }
    results.seconds = progress.seconds
    return results


@dataclasses.dataclass(frozen=True)
class Watch:
    """What is seen of the machines."""

    machines: Machines = dataclasses.field(default_factory=Machines)
    # Who starts and ends within a stretch of time can't be told from others: START isn't watched.
    loads: Mapping[Part, ForeignLoad] = dataclasses.field(
        default_factory=lambda: {part: ForeignLoad() for part in (Part.TRAINING, Part.COLLECTIVES)}
    )


def _measure_with(place: Place, num_workers: int, results: Results, watch: Watch) -> None:
    settings, progress = place.settings, place.progress
    trains = {Part.TRAINING, Part.START} & set(settings.only)
    workload = settings.models[0] if trains else None
    with start_field(place, num_workers, workload=workload) as field:
        results.versions = field.lone.hellos[0].versions
        results.layouts[num_workers] = {h.name: h.slots for h in field.lone.team.hosts}
        field.meet(watch.machines)
        begun = {crew.label: field.begun[crew.label] for crew in field.rivals if trains}
        if Part.TRAINING in settings.only:
            _train(field, results, watch.loads[Part.TRAINING])
        elif workload is not None:
            field.end_training()
        if Part.COLLECTIVES in settings.only and num_workers > 1:
            with progress.within("collectives"):
                speeds, sums = measure_collectives(field, load=watch.loads[Part.COLLECTIVES])
            results.collectives += speeds
            results.memory_sums += sums
    if Part.START in settings.only and num_workers == max(settings.workers):
        with progress.within("starts"):
            results.starts = measure_starts(place, begun, num_workers=num_workers)


def _train(field: Field, results: Results, load: ForeignLoad) -> None:
    for workload in field.place.settings.models:
        with field.place.progress.within(workload.label):
            speeds, memories = measure_training(field, workload, load=load)
        results.training += speeds
        results.memory += memories
