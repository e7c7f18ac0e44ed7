"""A file of examples, and what it costs a worker to read its share of them."""

import dataclasses
import enum
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import tfddl
from tfddl.bench.usage import Usage
from tfddl.errors import DataError

EXAMPLE_BYTES = 96 * 96 * 3
"""Of one example, uint8 of shape (96, 96, 3)."""

_SHAPE = (96, 96, 3)
_FILE = "examples.npy"
_ID_BYTES = 8
_CHUNK = 2048


class Way(enum.StrEnum):
    """How a worker comes by its examples."""

    GLOBAL = "global"
    """`shard_dataset` of a memory map, one permutation of all examples."""

    BLOCK = "block"
    """`shard_dataset` of a memory map, each worker within its contiguous part."""

    HELD = "held"
    """The worker's contiguous part as an array in memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What one worker read in an epoch, and what it kept, in bytes above what it began with."""

    examples: int
    ids: int
    """The sum of the examples' numbers."""

    kept: int
    """When the epoch had ended."""

    peak: int
    """The most after any step."""

    mapped: int
    """Pages of files, when the epoch had ended."""


def write_examples(directory: Path, num_examples: int) -> None:
    """Writes a file of random examples, of which each begins with its number.

    Raises:
        OSError: The disk is full, or the folder can't be written to.
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


def read_share(directory: Path, way: Way, *, batch_size: int) -> Reading:
    """Reads an epoch of this worker's share.

    Args:
        directory: Where `write_examples` wrote.
        way: How.
        batch_size: Examples per step.
    """
    before = Usage.now()
    peak = examples = ids = 0
    data = _held(directory) if way is Way.HELD else _shared_out(directory, way, batch_size)
    for batch in _steps(data, batch_size):
        numbers = np.ascontiguousarray(batch.reshape(len(batch), -1)[:, :_ID_BYTES]).view("<i8")
        examples += len(numbers)
        ids += int(numbers.sum())
        peak = max(peak, Usage.now().kept - before.kept)
    after = Usage.now()
    del data  # Until here, it is kept.
    return Reading(
        examples=examples,
        ids=ids,
        kept=after.kept - before.kept,
        peak=peak,
        mapped=after.mapped - before.mapped,
    )


def check_all_were_read(readings: list[Reading], num_examples: int) -> None:
    """Makes sure that the workers read each example once.

    Raises:
        DataError: They didn't.
    """
    found = sum(r.examples for r in readings), sum(r.ids for r in readings)
    if found != (num_examples, num_examples * (num_examples - 1) // 2):
        raise DataError(f"The workers read {found[0]} examples instead of {num_examples}.")


def _held(directory: Path) -> np.ndarray:
    examples = np.load(directory / _FILE, mmap_mode="r")
    start, stop = tfddl.shard_range(len(examples), tfddl.rank(), tfddl.size())
    return np.array(examples[start:stop])


def _shared_out(directory: Path, order: str, batch_size: int) -> Any:
    examples = np.load(directory / _FILE, mmap_mode="r")
    return tfddl.shard_dataset(examples, batch_size=batch_size, seed=1, order=order)


def _steps(data: Any, batch_size: int) -> Iterator[np.ndarray]:
    if isinstance(data, np.ndarray):
        for start in range(0, len(data), batch_size):
            yield data[start : start + batch_size]
    else:
        for batch in data:
            yield batch.numpy()
