"""Jobs that measure, one after the other, and the table of what they found."""

import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tfddl._src.launcher.job import JobOptions, run_job
from tfddl.bench.reading import EXAMPLE_BYTES, Reading, Way, check_all_were_read, write_examples
from tfddl.bench.table import span, table
from tfddl.errors import DataError, LaunchError

_MB = 1e6
_COMMAND = (sys.executable, "-m", "tfddl.bench.memory")
_HEADINGS = ("way", "workers", "share", "kept", "at most", "mapped")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """What to measure."""

    size_gb: float
    """Of the file, in 10 ** 9 bytes."""

    workers: tuple[int, ...]
    """Jobs of how many workers."""

    ways: tuple[Way, ...]
    batch_size: int
    """Examples per worker and step."""

    directory: Path
    """Where the file is written for a while."""

    def __post_init__(self) -> None:
        if not self.workers or min(self.workers) < 1:
            raise DataError(f"workers is {self.workers}; each must be at least 1.")
        if self.batch_size < 1:
            raise DataError(f"batch_size is {self.batch_size}; it must be at least 1.")
        if self.num_examples < max(self.workers):
            raise DataError(f"{self.size_gb} GB are less than an example for each worker.")
        free = shutil.disk_usage(self.directory).free
        if free < self.num_examples * EXAMPLE_BYTES:
            raise DataError(
                f"{self.directory} has {free / _MB:.0f} MB left, too little for a file of "
                f"{self.size_gb} GB. Ask for a smaller one, or for another folder."
            )

    @property
    def num_examples(self) -> int:
        """As many as fit into the size."""
        return int(self.size_gb * 1e9) // EXAMPLE_BYTES


def measure(config: MemoryConfig, *, environment: Mapping[str, str]) -> str:
    """Runs all jobs, and returns what they found, as text.

    Args:
        config: What to measure.
        environment: What the workers inherit.

    Raises:
        OSError: The file can't be written.
        LaunchError: A job failed; it has said why.
        DataError: The workers didn't read every example once.
    """
    rows = []
    with tempfile.TemporaryDirectory(prefix="tfddl-bench-", dir=config.directory) as name:
        directory = Path(name)
        write_examples(directory, config.num_examples)
        for way in config.ways:
            for num_workers in config.workers:
                command = (
                    *_COMMAND,
                    f"--read={directory}",
                    f"--way={way.name}",
                    f"--batch_size={config.batch_size}",
                )
                options = JobOptions(num_workers=num_workers, command=command)
                if run_job(options, environment=environment):
                    raise LaunchError(f"the job of {num_workers} workers that read {way} failed.")
                readings = _take_readings(directory, num_workers)
                check_all_were_read(readings, config.num_examples)
                rows.append(row(way, readings))
    return f"{_caption(config)}\n\n{table(_HEADINGS, rows)}"


def row(way: Way, readings: Sequence[Reading]) -> list[str]:
    """Of the table: what the workers of one job read and kept, least..most, in MB."""
    columns = [
        [reading.examples * EXAMPLE_BYTES for reading in readings],
        [reading.kept for reading in readings],
        [reading.peak for reading in readings],
        [reading.mapped for reading in readings],
    ]
    return [way, str(len(readings)), *(span([v / _MB for v in values]) for values in columns)]


def write_reading(directory: Path, rank: int, reading: Reading) -> None:
    """Leaves what a worker measured where `measure` finds it."""
    text = json.dumps(dataclasses.asdict(reading))
    (directory / f"rank.{rank}.json").write_text(text)


def _take_readings(directory: Path, num_workers: int) -> list[Reading]:
    """What each worker of a job measured, in rank order."""
    paths = [directory / f"rank.{rank}.json" for rank in range(num_workers)]
    readings = [Reading(**json.loads(path.read_text())) for path in paths]
    for path in paths:
        path.unlink()  # None is taken for another job's.
    return readings


def _caption(config: MemoryConfig) -> str:
    batch = config.batch_size * EXAMPLE_BYTES / _MB
    return (
        f"{config.num_examples} examples of {EXAMPLE_BYTES} bytes in a .npy file, batches of "
        f"{batch:.1f} MB.\n"
        "MB per worker, least..most: its share of the file; what it kept after an epoch, and at\n"
        "most meanwhile, of anonymous memory and its part of what is shared, above what it had\n"
        "after init(); and what it had mapped of files then, which is page cache. global, block:\n"
        "shard_dataset of a memory map, in this order; held: the worker's block as an array."
    )
