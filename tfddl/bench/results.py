"""What was measured: what the file of ``--json`` holds, under the same names."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from tfddl.bench.machines import Met
from tfddl.bench.orders import Mode, Operation
from tfddl.bench.spread import Spread, StepTimes


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemorySum:
    """Two arrays added into a third, which is kept, by all workers at once."""

    workers: int
    num_bytes: int
    """Of the result."""

    gb_per_s: float
    """Of the result, 10 ** 9 bytes per second and worker."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectiveSpeed:
    """A collective, with tensors of one size, through one transport."""

    workers: int
    operation: Operation
    transport: str
    num_bytes: int
    """Of each rank's tensor."""

    mode: Mode
    call_s: Spread
    """Over the calls of all ranks and rounds; in a graph, of each of a chain of collectives."""

    gb_per_s: float
    """The bytes of a rank's tensor over the median."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSpeed:
    """Training one model in one way, compared with as many lone workers at once."""

    workers: int
    model: str
    image_size: int
    batch_size: int
    transport: str
    images_per_s: Spread
    """Of all workers together, over the rounds."""

    lone_images_per_s: Spread
    ratio: Spread
    """One over the other, round by round."""

    steps_per_round: int
    step_s: float
    """The median over all steps and ranks."""

    lone_step_s: float
    parts: StepTimes | None
    """Where the time of a step goes; None where nothing tells."""

    bytes_written_per_byte_reduced: float | None
    """None where the transport doesn't count."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """What a worker of one way keeps while it trains, compared with a lone one."""

    workers: int
    model: str
    transport: str
    kept_bytes: int
    """Anonymous and shared memory between steps: the median over the workers and rounds."""

    lone_kept_bytes: int
    started_bytes: int
    """What it kept before any model was made."""

    lone_started_bytes: int
    gradient_bytes: int

    @property
    def beyond_in_gradients(self) -> float:
        """What it keeps beyond the lone one, in units of the gradients' size."""
        return (self.kept_bytes - self.lone_kept_bytes) / self.gradient_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """From launch to the end of the first training step, in seconds."""

    workers: int
    """0 is a single plain process, with all cores to itself: on this machine started without
    `tfddlrun`, on hosts by it, on the first of them."""

    transport: str
    total_s: Spread
    """Until the last worker is done, over the starts."""

    import_s: float
    """The medians of the slowest workers: TensorFlow and Keras,"""

    init_s: float
    """`tfddl.init()` or the strategy,"""

    first_step_s: float
    """making the model, tracing, and the step."""


@dataclasses.dataclass(kw_only=True)
class Results:
    """All of it."""

    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    machines: list[Met] = dataclasses.field(default_factory=list)
    layouts: dict[int, dict[str, int]] = dataclasses.field(default_factory=dict)
    """By number of workers, how many of them each host had."""

    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    collectives: list[CollectiveSpeed] = dataclasses.field(default_factory=list)
    memory_sums: list[MemorySum] = dataclasses.field(default_factory=list)
    training: list[TrainingSpeed] = dataclasses.field(default_factory=list)
    memory: list[Memory] = dataclasses.field(default_factory=list)
    starts: list[Start] = dataclasses.field(default_factory=list)
    foreign_cores: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """How many cores others kept busy in the mean: while what was measured, on which machine."""

    seconds: float = 0.0
    """How long all of it took."""

    def sum_speed(self, workers: int, num_bytes: int) -> float | None:
        """The speed of the sum in memory at a size, in GB/s; None where it wasn't measured."""
        found = [
            s.gb_per_s for s in self.memory_sums if (s.workers, s.num_bytes) == (workers, num_bytes)
        ]
        return found[0] if found else None

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, numbers and texts."""
        plain = dataclasses.asdict(self)
        for entry, memory in zip(plain["memory"], self.memory, strict=True):
            entry["beyond_in_gradients"] = memory.beyond_in_gradients
        return plain


def write_json(results: Results, path: Path) -> None:
    """Writes the file of ``--json``.

    Raises:
        OSError: It can't be written.
    """
    path.write_text(json.dumps(results.as_json(), indent=2) + "\n")
