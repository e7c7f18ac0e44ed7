"""A file of examples, and what a worker keeps in memory that reads its shard of them."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import tfddl
from tfddl.bench.config import Config
from tfddl.bench.machines import Memory
from tfddl.bench.results import Row

ORDERS = "global", "block", "held"
"""Orders of `shard_dataset`; and the worker's block held as an array."""

_SHAPE = (96, 96, 3)
_FILE = "examples.npy"
_BATCH_SIZE = 32
_WARM_UP_STEPS = 64


def make_file(directory: Path, num_examples: int) -> None:
    """Makes a sparse file of zeros: no space on the disk, but as much page cache as any other."""
    np.lib.format.open_memmap(
        directory / _FILE, mode="w+", dtype=np.uint8, shape=(num_examples, *_SHAPE)
    )


def measure_reading(config: Config) -> list[Row]:
    """Reads an epoch of the file in each order. All ranks must call it together."""
    directory, batch_size = config.file_dir, config.batch_size or _BATCH_SIZE
    # What TensorFlow allocates once for an input pipeline isn't what reading costs.
    for _ in itertools.islice(_batches(directory, "global", batch_size), _WARM_UP_STEPS):
        pass
    rows = []
    for order in ORDERS:
        reads = tfddl.allgather_object(read_shard(directory, order, batch_size=batch_size))
        values = {name: max(read[name] for read in reads) for name in reads[0]}
        values["ratio"] = values["kept_mb"] / values["shard_mb"]
        rows.append(Row("reading", {"order": order, "workers": tfddl.size()}, values))
    return rows


def read_shard(directory: Path, order: str, *, batch_size: int) -> dict[str, float]:
    """Reads an epoch of this worker's shard; returns its size, and memory that is more than before.

    ``kept_mb``, and page cache that is mapped, ``mapped_mb``, are those at the end of the epoch;
    ``peak_mb`` is the most after any step.
    """
    before = Memory.now()
    peak = num_bytes = 0
    for batch in _batches(directory, order, batch_size):
        num_bytes += batch.nbytes
        after = Memory.now()  # While a block that is held still is.
        peak = max(peak, after.kept - before.kept)
    return {
        "shard_mb": num_bytes / 1e6,
        "kept_mb": (after.kept - before.kept) / 1e6,
        "peak_mb": peak / 1e6,
        "mapped_mb": (after.mapped - before.mapped) / 1e6,
    }


def _batches(directory: Path, order: str, batch_size: int) -> Iterator[np.ndarray]:
    examples = np.load(directory / _FILE, mmap_mode="r")
    if order == "held":
        start, stop = tfddl.shard_range(len(examples), tfddl.rank(), tfddl.size())
        held = np.array(examples[start:stop])
        for first in range(0, len(held), batch_size):
            yield held[first : first + batch_size]
        return
    dataset: Any = tfddl.shard_dataset(examples, batch_size=batch_size, seed=1, order=order)
    for batch in dataset:
        yield batch.numpy()
