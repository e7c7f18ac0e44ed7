"""The crews that compete, started for one number of workers."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tfddl.bench.crew import Crew
from tfddl.bench.ground import Team
from tfddl.bench.load import ForeignLoad, Moment
from tfddl.bench.machines import Machine, Machines
from tfddl.bench.orders import AUTO, LONE, STRATEGY, Look, Stop, Train
from tfddl.bench.progress import Progress
from tfddl.bench.settings import Settings
from tfddl.bench.workloads import Workload


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where crews are started, and who is told of it."""

    settings: Settings
    environment: Mapping[str, str]
    directory: Path
    """For what they say, and their sockets."""

    progress: Progress

    def crew(self, way: str, team: Team) -> Crew:
        """Prepares one."""
        return Crew(
            way,
            team=team,
            ground=self.settings.ground,
            environment=self.environment,
            directory=self.directory,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Begun:
    """How a crew began to train, in seconds."""

    total_s: float
    """From its launch until its last worker had done the first step."""

    import_s: float
    """Of the slowest worker, as below."""

    init_s: float
    first_step_s: float
    gradient_bytes: int


class Field:
    """A crew of lone workers, and rivals that train together; all have as many workers."""

    def __init__(self, place: Place, lone: Crew, rivals: Sequence[Crew]) -> None:
        self.place = place
        self.num_workers = lone.team.size
        self.lone, self.rivals = lone, list(rivals)
        self.begun: dict[str, Begun] = {}
        """How each crew began its first training, by its label."""
        self._trains: Workload | None = None

    @property
    def crews(self) -> list[Crew]:
        """All of them."""
        return [self.lone, *self.rivals]

    def in_turns(self, round_number: int) -> list[Crew]:
        """All of them; each round begins with another one."""
        first = round_number % len(self.crews)
        return self.crews[first:] + self.crews[:first]

    @contextlib.contextmanager
    def watched(self, load: ForeignLoad) -> Iterator[None]:
        """Watches what others do on the machines meanwhile."""
        before = self._look()
        yield
        load.add(before, self._look())

    def meet(self, machines: Machines) -> None:
        """Tells which machines they are on."""
        for rank, hello in enumerate(self.lone.hellos):
            machines.add(self.lone.team.host(rank), hello.machine)

    @contextlib.contextmanager
    def training(self, workload: Workload) -> Iterator[int]:
        """Lets all crews train; yields the size of a step's gradients, in bytes.

        Those that have been started with this workload go on with it.
        """
        if self._trains != workload:
            begun = [begin(crew, workload) for crew in self.crews]
        else:
            begun = list(self.begun.values())
        self._trains = workload
        yield begun[0].gradient_bytes
        self.end_training()

    def end_training(self) -> None:
        """Lets all crews end what they train."""
        self._trains = None
        for crew in self.crews:
            crew.ask(Stop())

    def _look(self) -> list[Moment]:
        """Of all workers, and of those here who look after them."""
        ours = [os.getpid(), *(crew.launcher_pid for crew in self.crews)]
        moments = [moment for crew in self.crews for moment in crew.ask(Look())]
        return [*moments, Moment.now(Machine.here(), ours)]

    def add(self, crew: Crew, workload: Workload | None) -> None:
        """Takes in another rival, or the lone crew itself, just started.

        Args:
            crew: Who.
            workload: What it is to begin to train.
        """
        if crew is not self.lone:
            self.rivals.append(crew)
        if workload is not None:
            self.begun[crew.label] = begin(crew, workload)
            self._trains = workload
        took_s = time.monotonic() - crew.launched_s
        done = "started" if workload is None else f"started, first step of {workload.label}"
        self.place.progress.say(f"{crew.label}: {done} after {took_s:.1f} s")


@contextlib.contextmanager
def start_field(place: Place, num_workers: int, *, workload: Workload | None) -> Iterator[Field]:
    """Starts all crews of one number of workers, one after the other, and ends them.

    Args:
        place: Where.
        num_workers: Of each crew.
        workload: What they are to begin to train at once, or None.

    Raises:
        LaunchError: One of them doesn't start; it says why.
    """
    asked = place.settings.transports
    with contextlib.ExitStack() as stack:
        team = place.settings.ground.team(num_workers)
        field = Field(place, stack.enter_context(place.crew(LONE, team)), [])
        field.add(field.lone, workload)
        ways = list(asked or [AUTO])
        while ways:
            crew = stack.enter_context(place.crew(ways.pop(0), team))
            field.add(crew, workload)
            if not asked and crew.way == AUTO:
                ways += crew.hellos[0].others
                if place.settings.compare and num_workers > 1:
                    ways.append(STRATEGY)
        yield field


def begin(crew: Crew, workload: Workload) -> Begun:
    """Lets a crew begin to train."""
    answers = crew.ask(Train(workload))
    return Begun(
        total_s=time.monotonic() - crew.launched_s,
        import_s=max(hello.import_s for hello in crew.hellos),
        init_s=max(hello.init_s for hello in crew.hellos),
        first_step_s=max(answer.first_step_s for answer in answers),
        gradient_bytes=answers[0].gradient_bytes,
    )
