"""What was measured: what the file of ``--json`` holds, under the same names."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from tfddl.bench.codec import from_json, to_json
from tfddl.bench.config import Mode, Operation, Order, Style
from tfddl.bench.machines import Load, Machine
from tfddl.bench.stats import Spread, StepTimes


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectiveSpeed:
    """A collective with float32 tensors of one size, through one transport.

    Speeds are of the bytes of a rank's tensor over the median. The sum in memory adds two such
    arrays into a third, which is kept, in all workers at once.
    """

    workers: int
    operation: Operation
    transport: str
    num_bytes: int
    mode: Mode
    call_s: Spread  # of all ranks and rounds; in a graph, of each of a chain of collectives
    gb_per_s: float  # 10 ** 9 bytes
    of_memory_sum: float  # the same, over the speed of the sum in memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSpeed:
    """Training one model in one way, against as many plain Keras processes at once.

    Images per second are of all workers together, over the rounds; ratios are taken round by round.
    """

    workers: int
    model: str
    image_size: int
    batch_size: int
    transport: str
    style: Style
    images_per_s: Spread
    plain_images_per_s: Spread
    ratio: Spread
    over_strategy: Spread | None  # a ratio, too; None where TensorFlow's wasn't measured
    step_s: float  # median over all steps and ranks
    plain_step_s: float
    steps_per_round: int
    gradient_bytes: int = 0
    parts: StepTimes | None = None  # None where nothing measures the time in collectives
    bytes_written_per_byte_reduced: float | None = None  # None where the transport doesn't count
    sent_bytes: tuple[int, ...] = ()  # per step and host, by its interfaces; () on one host


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """From launch to the end of the first training step, in processes of their own, and memory."""

    workers: int  # 0 is one plain process that has a host to itself
    model: str
    transport: str
    total_s: Spread  # over the starts: until the last worker has done the step
    import_s: float  # medians of the slowest workers: TensorFlow and Keras,
    init_s: float  # `tfddl.init()` or the strategy,
    first_step_s: float  # making the model, tracing, and the step
    started_bytes: int  # medians of all workers: anonymous and shared memory before the model,
    kept_bytes: int  # and after some steps
    gradient_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What workers keep that read a large file, by rank: bytes above what they began with."""

    workers: int
    order: Order
    shard_bytes: tuple[int, ...]  # what it read
    kept_bytes: tuple[int, ...]  # when the epoch had ended
    peak_bytes: tuple[int, ...]  # the most after any step
    mapped_bytes: tuple[int, ...]  # page cache that it had mapped when the epoch had ended


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """What one TCP stream carries between the first two hosts, one way."""

    workers: int
    gb_per_s: float | None  # None where the second host can't be reached
    error: str = ""


@dataclasses.dataclass(kw_only=True)
class Results:
    """All of it; `add` takes in what a job reports."""

    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    machines: list[Machine] = dataclasses.field(default_factory=list)
    layouts: dict[int, dict[str, int]] = dataclasses.field(default_factory=dict)
    """By number of workers, how many of them each host had."""

    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    streams: list[Stream] = dataclasses.field(default_factory=list)
    collectives: list[CollectiveSpeed] = dataclasses.field(default_factory=list)
    training: list[TrainingSpeed] = dataclasses.field(default_factory=list)
    starts: list[Start] = dataclasses.field(default_factory=list)
    reading: list[Reading] = dataclasses.field(default_factory=list)
    loads: list[Load] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: "Results") -> None:
        """Takes in another's measurements."""
        self.versions |= other.versions
        self.machines = Machine.merged([*self.machines, *other.machines])
        for name in ("streams", "collectives", "training", "starts", "reading", "loads"):
            getattr(self, name).extend(getattr(other, name))

    @property
    def foreign_cores(self) -> dict[str, dict[str, float]]:
        """Cores that others kept busy in the mean: by part that was measured, and machine."""
        found: dict[str, dict[str, float]] = {}
        for part in dict.fromkeys(load.part for load in self.loads):
            for machine in self.machines:
                here = [x for x in self.loads if (x.part, x.machine) == (part, machine.identity)]
                if elapsed_s := sum(load.elapsed_s for load in here):
                    taken = sum(load.foreign_s for load in here) / elapsed_s
                    found.setdefault(part, {})[machine.name] = taken
        return found

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, numbers and texts; `read_json` reads them."""
        plain: dict[str, Any] = json.loads(to_json(self))
        return {**plain, "foreign_cores": self.foreign_cores}


def write_json(results: Results, path: Path) -> None:
    """Writes the file of ``--json``.

    Raises:
        OSError: It can't be written.
    """
    path.write_text(json.dumps(results.as_json(), indent=2) + "\n")


def read_json(path: Path) -> Results:
    """Reads what `write_json` wrote."""
    return from_json(Results, path.read_text())
