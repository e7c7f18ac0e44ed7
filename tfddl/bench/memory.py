"""Measures what a worker keeps in memory when it reads its share of a large file.

Writes a ``.npy`` of random examples, lets jobs of several sizes read an epoch of it from a memory
map, in global and in block order, and prints what a worker kept of anonymous memory, and of its
part of what is shared, above what it had after `tfddl.init()`: the page cache, which belongs to
nobody, doesn't count. To compare with, each worker also holds its block as an array. The file is
removed at the end.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

import tfddl
from tfddl.bench.jobs import MemoryConfig, measure, write_reading
from tfddl.bench.reading import Way, read_share
from tfddl.errors import DataError, TfddlError

_SIZE = flags.DEFINE_float("size", 2.0, "How large a file to read, in GB (10 ** 9 bytes).")
_WORKERS = flags.DEFINE_list("workers", ["1", "2", "4"], "Jobs of how many workers.")
_WAYS = flags.DEFINE_multi_enum_class(
    "way",
    list(Way),
    Way,
    "How to read: in global order, in block order, or holding the block; can be repeated.",
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Examples per worker and step.")
_DIRECTORY = flags.DEFINE_string(
    "directory", None, "Where the file is written for a while. None is the system's for such."
)
_READ = flags.DEFINE_string(
    "read", None, "For the workers: the folder with the file to read, and for what they measured."
)


def _config() -> MemoryConfig:
    try:
        workers = tuple(int(number) for number in _WORKERS.value)
    except ValueError:
        raise DataError(f"--workers is {_WORKERS.value}; it must be like 1,2,4.") from None
    return MemoryConfig(
        size_gb=_SIZE.value,
        workers=workers,
        ways=tuple(_WAYS.value),
        batch_size=_BATCH_SIZE.value,
        directory=Path(_DIRECTORY.value or tempfile.gettempdir()),
    )


def _read(directory: Path) -> None:
    """What a worker does."""
    logging.getLogger("tensorflow").setLevel(logging.WARNING)
    tfddl.init()
    reading = read_share(directory, _WAYS.value[0], batch_size=_BATCH_SIZE.value)
    write_reading(directory, tfddl.rank(), reading)
    tfddl.shutdown()


def main(argv: Sequence[str]) -> None:
    """Measures, or, in a worker, reads, as the flags say."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}; all values are flags.")
    try:
        if _READ.value is not None:
            _read(Path(_READ.value))
        else:
            sys.stdout.write(measure(_config(), environment=os.environ) + "\n")
    except (TfddlError, OSError) as error:
        sys.exit(f"tfddl.bench.memory: {type(error).__name__}: {error}")


if __name__ == "__main__":
    app.run(main)
