"""A file of examples, and what a worker keeps in memory that reads its shard of them."""

import dataclasses
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import tfddl
from tfddl.bench.config import EXAMPLE_BYTES, Config, Order
from tfddl.bench.results import Reading
from tfddl.bench.rss import Rss
from tfddl.errors import DataError

_SHAPE = (96, 96, 3)
_FILE = "examples.npy"
_ID_BYTES = 8
_CHUNK = 2048
_BATCH_SIZE = 32
_WARM_UP_STEPS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Read:
    """What one worker read in an epoch, and what it kept; see `tfddl.bench.results.Reading`."""

    examples: int
    ids: int  # the sum of their numbers
    kept: int
    peak: int
    mapped: int


def write_examples(directory: Path, num_examples: int) -> None:
    """Writes a file of random examples, of which each begins with its number.

    Raises:
        OSError: The disk is full, or the directory can't be written to.
    """
    rng = np.random.default_rng(0)
    with (directory / _FILE).open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (num_examples, *_SHAPE)}
        )
        for start in range(0, num_examples, _CHUNK):
            ids = np.arange(start, min(start + _CHUNK, num_examples), dtype="<i8")
            rows = rng.integers(0, 256, (len(ids), EXAMPLE_BYTES), np.uint8)
            rows[:, :_ID_BYTES] = ids.view(np.uint8).reshape(-1, _ID_BYTES)
            file.write(rows.data)
        file.flush()
        os.fsync(file.fileno())


def measure_reading(directory: Path, config: Config) -> list[Reading]:
    """Reads an epoch of the file in each order. All ranks must call it together.

    Raises:
        DataError: They didn't read each example once.
    """
    batch_size = config.batch_size or _BATCH_SIZE
    # What TensorFlow allocates once for an input pipeline isn't what reading costs.
    for _ in itertools.islice(_batches(directory, Order.GLOBAL, batch_size), _WARM_UP_STEPS):
        pass
    found = []
    for order in config.orders:
        reads = tfddl.allgather_object(read_shard(directory, order, batch_size=batch_size))
        check_all_were_read(reads, config.num_examples)
        found.append(
            Reading(
                workers=tfddl.size(),
                order=order,
                shard_bytes=tuple(read.examples * EXAMPLE_BYTES for read in reads),
                kept_bytes=tuple(read.kept for read in reads),
                peak_bytes=tuple(read.peak for read in reads),
                mapped_bytes=tuple(read.mapped for read in reads),
            )
        )
    return found


def read_shard(directory: Path, order: Order, *, batch_size: int) -> Read:
    """Reads an epoch of this worker's shard."""
    before = Rss.now()
    peak = examples = ids = 0
    for batch in _batches(directory, order, batch_size):
        numbers = np.ascontiguousarray(batch.reshape(len(batch), -1)[:, :_ID_BYTES]).view("<i8")
        examples += len(numbers)
        ids += int(numbers.sum())
        after = Rss.now()  # While a block that is held still is.
        peak = max(peak, after.kept - before.kept)
    kept, mapped = after.kept - before.kept, after.mapped - before.mapped
    return Read(examples=examples, ids=ids, kept=kept, peak=peak, mapped=mapped)


def check_all_were_read(reads: list[Read], num_examples: int) -> None:
    """Checks that the workers read each example once.

    Raises:
        DataError: They didn't.
    """
    found = sum(r.examples for r in reads), sum(r.ids for r in reads)
    if found != (num_examples, num_examples * (num_examples - 1) // 2):
        raise DataError(f"The workers read {found[0]} examples instead of {num_examples}.")


def _batches(directory: Path, order: Order, batch_size: int) -> Iterator[np.ndarray]:
    examples = np.load(directory / _FILE, mmap_mode="r")
    if order is Order.HELD:
        start, stop = tfddl.shard_range(len(examples), tfddl.rank(), tfddl.size())
        held = np.array(examples[start:stop])
        for first in range(0, len(held), batch_size):
            yield held[first : first + batch_size]
        return
    dataset: Any = tfddl.shard_dataset(examples, batch_size=batch_size, seed=1, order=str(order))
    for batch in dataset:
        yield batch.numpy()
