"""What `tfddl-bench` is asked to measure."""

import dataclasses
import enum
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tfddl._src.launcher.hosts import MAX_WORKERS
from tfddl.bench.codec import to_json
from tfddl.bench.workloads import WORKLOADS, Workload
from tfddl.errors import DataError

SIZES = tuple(2**bits for bits in range(12, 27, 2))
"""In bytes: 4 KiB to 64 MiB."""

EXAMPLE_BYTES = 96 * 96 * 3
"""Of an example in the file of `Part.READING`: uint8, shape (96, 96, 3)."""

_FLOAT_BYTES = 4


class Part(enum.StrEnum):
    """What can be measured by itself."""

    COLLECTIVES = "collectives"
    TRAINING = "training"
    START = "start"
    READING = "reading"


class Operation(enum.StrEnum):
    """A collective."""

    ALLREDUCE = "allreduce"
    ALLGATHER = "allgather"
    BROADCAST = "broadcast"


class Mode(enum.StrEnum):
    """Where a collective is called: inside `tf.function`, or eagerly."""

    GRAPH = "graph"
    EAGER = "eager"


class Style(enum.StrEnum):
    """How a model is trained."""

    PLAIN = "plain"
    """Keras' `fit` without tfddl: the baseline."""

    OPTIMIZER = "optimizer"
    """`fit` with `tfddl.DistributedOptimizer`."""

    SCOPE = "scope"
    """`fit` with a plain optimizer, all made under `tfddl.strategy().scope()`."""

    STRATEGY = "strategy"
    """TensorFlow's MultiWorkerMirroredStrategy, in a loop by hand."""


class Order(enum.StrEnum):
    """How a worker reads its shard of a file."""

    GLOBAL = "global"
    BLOCK = "block"
    HELD = "held"
    """The worker's block as an array in memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitOptions:
    """Arguments of `tfddl.init`."""

    collective: str = "auto"
    between_hosts: str = "auto"
    pieces: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The flags of `tfddl-bench`; their help texts say what they mean.

    Raises:
        DataError: A value is out of its range, or what is to be written can't be.
    """

    workers: tuple[int, ...]
    only: tuple[Part, ...] = (Part.COLLECTIVES, Part.TRAINING, Part.START)
    operations: tuple[Operation, ...] = (Operation.ALLREDUCE,)
    sizes: tuple[int, ...] = SIZES
    models: tuple[Workload, ...] = (WORKLOADS["unet"], WORKLOADS["resnet50"])
    styles: tuple[Style, ...] = (Style.OPTIMIZER,)
    compare: bool = False
    transports: tuple[str, ...] = ()
    """Empty: "auto", and all that differ from it."""

    between_hosts: str = "auto"
    pieces: tuple[int, ...] = ()
    rounds: int = 5
    round_seconds: float = 2.5
    starts: int = 3
    orders: tuple[Order, ...] = tuple(Order)
    file_size: int = 2 * 10**9
    file_dir: Path = Path(tempfile.gettempdir())
    file_batch_size: int = 32
    json: Path | None = None
    plots: Path | None = None
    logdir: Path | None = None

    def __post_init__(self) -> None:
        for flag in ("workers", "only", "operations", "sizes", "models", "styles", "orders"):
            _require_distinct(flag, getattr(self, flag))
        if min(self.workers) < 1 or max(self.workers) > MAX_WORKERS:
            raise DataError(f"--workers is {self.workers}; each must be 1..{MAX_WORKERS}.")
        for size in self.sizes:
            if size < _FLOAT_BYTES or size % _FLOAT_BYTES:
                raise DataError(f"--sizes has {size} bytes; a float32 tensor has a multiple of 4.")
        for flag, number in (("rounds", self.rounds), ("starts", self.starts)):
            if number < 1:
                raise DataError(f"--{flag} is {number}; it must be at least 1.")
        if not self.round_seconds > 0:
            raise DataError(f"--round-seconds is {self.round_seconds}; it must be more than 0.")
        if Part.READING in self.only:
            self._check_file()
        self._check_outputs()

    def _check_outputs(self) -> None:
        if self.json is not None:
            _require_writable("json", self.json.resolve().parent)
        for flag in ("plots", "logdir"):
            if getattr(self, flag) is not None:
                _make_directory(flag, getattr(self, flag))

    @property
    def num_examples(self) -> int:
        """In the file of `Part.READING`."""
        return self.file_size // EXAMPLE_BYTES

    def init_options(self) -> tuple[InitOptions, ...]:
        """What was asked for: with every transport, "auto" if none, every number of pieces."""
        return tuple(
            InitOptions(collective=name, between_hosts=self.between_hosts, pieces=pieces)
            for name in self.transports or ("auto",)
            for pieces in self.pieces or (None,)
        )

    def as_json(self) -> dict[str, Any]:
        """For the record, in plain values."""
        plain: dict[str, Any] = json.loads(to_json(self))
        return plain

    def _check_file(self) -> None:
        _require_writable("file-dir", self.file_dir)
        if self.num_examples < max(self.workers):
            raise DataError(
                f"--file-size is {self.file_size} bytes: less than an example of {EXAMPLE_BYTES} "
                f"bytes for each of {max(self.workers)} workers."
            )
        free = shutil.disk_usage(self.file_dir).free
        if free < self.file_size:
            raise DataError(
                f"--file-dir {self.file_dir} has {free / 1e6:.0f} MB left, too little for a file "
                f"of {self.file_size / 1e6:.0f} MB. HINT: a smaller --file-size, or another "
                "directory."
            )


def parse_size(text: str) -> int:
    """Reads a number of bytes such as "4096", "64K" or "16M" (of 2 ** 10 and 2 ** 20).

    Raises:
        DataError: It is none.
    """
    units = {"": 0, "K": 10, "M": 20, "G": 30}
    number = text.strip().upper().removesuffix("IB").strip()
    unit = number[-1:] if number[-1:] in ("K", "M", "G") else ""
    digits = number.removesuffix(unit).strip()
    if not digits.isdecimal():
        raise DataError(f"{text!r} is no size; sizes are like 4096, 64K or 16M.")
    return int(digits) * 2 ** units[unit]


def format_size(num_bytes: int) -> str:
    """Writes a number of bytes.

    >>> [format_size(n) for n in (100, 4096, 64 * 2**20)]
    ['100 B', '4 KiB', '64 MiB']
    """
    for bits, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if num_bytes >= 2**bits and num_bytes % 2**bits == 0:
            return f"{num_bytes >> bits} {unit}"
    return f"{num_bytes} B"


def _require_distinct(flag: str, values: tuple[Any, ...]) -> None:
    if not values:
        raise DataError(f"--{flag} is empty; give it values, separated by commas.")
    if len(set(values)) < len(values):
        raise DataError(f"--{flag} has something twice: {', '.join(map(str, values))}.")


def _make_directory(flag: str, path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--{flag} {path} can't be made: {error.strerror}.") from error
    _require_writable(flag, path)


def _require_writable(flag: str, directory: Path) -> None:
    if not os.access(directory, os.W_OK | os.X_OK):
        raise DataError(f"--{flag}: {directory} isn't a directory that can be written to.")
