"""What `tfddl-bench` is asked to measure; each field of `Config` is a flag."""

import argparse
import dataclasses
import enum
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from tfddl._src.launcher.hosts import MAX_LAUNCHED_WORKERS
from tfddl.bench.codec import to_json
from tfddl.bench.workloads import WORKLOADS, Workload
from tfddl.errors import DataError

SIZES = tuple(2**bits for bits in range(12, 27, 2))
"""In bytes: 4 KiB to 64 MiB."""

EXAMPLE_BYTES = 96 * 96 * 3
"""Of an example in the file of `Part.READING`: uint8, shape (96, 96, 3)."""

_FLOAT_BYTES = 4

T = TypeVar("T")


class Part(enum.StrEnum):
    """What can be measured by itself."""

    COLLECTIVES = "collectives"
    TRAINING = "training"
    START = "start"
    READING = "reading"


class Operation(enum.StrEnum):
    """Which collective is measured."""

    ALLREDUCE = "allreduce"
    ALLGATHER = "allgather"
    BROADCAST = "broadcast"


class Mode(enum.StrEnum):
    """Where a collective is called: inside `tf.function`, or eagerly."""

    GRAPH = "graph"
    EAGER = "eager"


class Style(enum.StrEnum):
    """How a model is trained: the baseline, in the two ways of tfddl, by TensorFlow's strategy."""

    PLAIN = "plain"
    OPTIMIZER = "optimizer"
    SCOPE = "scope"
    STRATEGY = "strategy"


class Order(enum.StrEnum):
    """How a worker reads its shard of a file: in an order of `shard_dataset`, or as an array."""

    GLOBAL = "global"
    BLOCK = "block"
    HELD = "held"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitOptions:
    """Arguments of `tfddl.init`."""

    collective: str = "auto"
    between_hosts: str = "auto"


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


def _known_model(name: str) -> str:
    return WORKLOADS[name].model


def _list_of(kind: Callable[[str], T], expected: Iterable[str]) -> Callable[[str], tuple[T, ...]]:
    """What reads words between commas; `expected` is what there can be, for messages."""

    def read(text: str) -> tuple[T, ...]:
        words = [word.strip() for word in text.split(",") if word.strip()]
        try:
            return tuple(kind(word) for word in words)
        except (ValueError, KeyError):
            raise argparse.ArgumentTypeError(
                f"{text!r}; expected, with commas between: {', '.join(expected)}"
            ) from None

    return read


def _flag(default: Any, read: Callable[[str], Any]) -> Any:
    """A field whose flag takes a value; `read` reads it."""
    return dataclasses.field(default=default, metadata={"type": read})


_SIZES = _list_of(parse_size, ["sizes such as 4096, 64K or 16M"])
_NUMBERS, _NAMES = _list_of(int, ["whole numbers"]), _list_of(str, ["names"])
_STYLES = {style.value: style for style in (Style.OPTIMIZER, Style.SCOPE)}
_PARTS = Part.COLLECTIVES, Part.TRAINING, Part.START


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure. Each field is a flag, and what is said of it here is its help.

    Attributes:
        workers: jobs of how many workers; more than cores share them. On hosts they are dealt out
            round-robin, one to each host with a free slot (default: 1,2,4, as far as there are
            cores, and 2 in any case; on hosts one per host, and one for each slot)
        only: some of collectives, training, start, reading (default: all but reading; start
            measures memory, too)
        models: what is trained: unet (filters 8..128, 128 x 128), resnet50 (96 x 96), mlp (four
            dense layers, 32 x 32), batches of 8 (default: unet,resnet50)
        image_size: pixels, of all models
        batch_size: examples per worker and step
        styles: how it is trained with tfddl: optimizer (fit with DistributedOptimizer), scope (fit
            under tfddl.strategy().scope()) (default: optimizer)
        compare: measure TensorFlow's plain strategy, in a loop by hand, as well
        operations: some of allreduce, allgather, broadcast (default: allreduce)
        sizes: bytes of a rank's tensor (default: 4K,16K,64K,256K,1M,4M,16M,64M)
        transports: what tfddl.init(collective=…) takes (default: auto, and all that differ from it)
        between_hosts: what tfddl.init(between_hosts=…) takes
        file_size: of the .npy of examples of 27648 bytes that --only reading reads, removed at the
            end (default: 2 GB)
        file_dir: where it is (default: the system's directory for temporary files)
        orders: how it is read: by shard_dataset in global or block order, or the worker's block
            held as an array (default: global,block,held)
        rounds: turns of each (default: 5)
        round_seconds: how long a turn of training takes about; one of a kind of collective takes a
            tenth (default: 2.5)
        starts: of one plain process, and of the job that tfddl chooses; with more than one, other
            transports are started once, too (default: 3)
        json: a file for all numbers
        plots: a directory for charts (PNG): bandwidth over size, efficiency over workers; needs
            matplotlib: pip install 'tfddl[plots]'
        logdir: a directory with curves and tables for TensorBoard; the charts, too, where there is
            matplotlib

    Raises:
        DataError: A value is out of its range, or what is to be written can't be.
    """

    workers: tuple[int, ...] = _flag((2,), _NUMBERS)
    only: tuple[Part, ...] = _flag(_PARTS, _list_of(Part, Part))
    models: tuple[str, ...] = _flag(("unet", "resnet50"), _list_of(_known_model, WORKLOADS))
    image_size: int | None = _flag(None, int)
    batch_size: int | None = _flag(None, int)
    styles: tuple[Style, ...] = _flag((Style.OPTIMIZER,), _list_of(_STYLES.__getitem__, _STYLES))
    compare: bool = dataclasses.field(default=False, metadata={"action": "store_true"})
    operations: tuple[Operation, ...] = _flag(
        (Operation.ALLREDUCE,), _list_of(Operation, Operation)
    )
    sizes: tuple[int, ...] = _flag(SIZES, _SIZES)
    transports: tuple[str, ...] = _flag((), _NAMES)
    between_hosts: str = _flag("auto", str)
    file_size: int = _flag(2 * 10**9, parse_size)
    file_dir: Path = _flag(Path(tempfile.gettempdir()), Path)
    orders: tuple[Order, ...] = _flag(tuple(Order), _list_of(Order, Order))
    rounds: int = _flag(5, int)
    round_seconds: float = _flag(2.5, float)
    starts: int = _flag(3, int)
    json: Path | None = _flag(None, Path)
    plots: Path | None = _flag(None, Path)
    logdir: Path | None = _flag(None, Path)

    def __post_init__(self) -> None:
        for flag in ("workers", "only", "operations", "sizes", "models", "styles", "orders"):
            values = getattr(self, flag)
            if not values:
                raise DataError(f"--{flag} is empty; give it values, separated by commas.")
            if len(set(values)) < len(values):
                raise DataError(f"--{flag} has something twice: {', '.join(map(str, values))}.")
        if min(self.workers) < 1 or max(self.workers) > MAX_LAUNCHED_WORKERS:
            raise DataError(f"--workers is {self.workers}; each must be 1..{MAX_LAUNCHED_WORKERS}.")
        for size in self.sizes:
            if size < _FLOAT_BYTES or size % _FLOAT_BYTES:
                raise DataError(f"--sizes has {size} bytes; a float32 tensor has a multiple of 4.")
        for flag in ("rounds", "starts"):
            if getattr(self, flag) < 1:
                raise DataError(f"--{flag} is {getattr(self, flag)}; it must be at least 1.")
        if not self.round_seconds > 0:
            raise DataError(f"--round-seconds is {self.round_seconds}; it must be more than 0.")
        assert self.workloads  # They check themselves.
        self._check_files()

    @property
    def workloads(self) -> tuple[Workload, ...]:
        """The models, with the shape that was asked for."""
        given = {"image_size": self.image_size, "batch_size": self.batch_size}
        shape: dict[str, Any] = {name: n for name, n in given.items() if n is not None}
        return tuple(dataclasses.replace(WORKLOADS[name], **shape) for name in self.models)

    @property
    def num_examples(self) -> int:
        """In the file of `Part.READING`."""
        return self.file_size // EXAMPLE_BYTES

    def init_options(self) -> tuple[InitOptions, ...]:
        """One for each of `transports`; "auto" if none is given."""
        return tuple(
            InitOptions(collective=name, between_hosts=self.between_hosts)
            for name in self.transports or ("auto",)
        )

    def as_json(self) -> dict[str, Any]:
        """For the record, in plain values."""
        plain: dict[str, Any] = json.loads(to_json(self))
        return plain

    def _check_files(self) -> None:
        for flag in ("plots", "logdir"):
            path: Path | None = getattr(self, flag)
            try:
                if path is not None:
                    path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(f"--{flag} {path} can't be made: {error.strerror}.") from error
        reads = Part.READING in self.only
        for flag, directory in (
            ("json", self.json and self.json.resolve().parent),
            ("plots", self.plots),
            ("logdir", self.logdir),
            ("file-dir", self.file_dir if reads else None),
        ):
            if directory is not None and not os.access(directory, os.W_OK | os.X_OK):
                raise DataError(f"--{flag}: {directory} isn't a directory that can be written to.")
        if reads and self.num_examples < max(self.workers):
            raise DataError(
                f"--file-size is {self.file_size} bytes: less than an example of {EXAMPLE_BYTES} "
                f"bytes for each of {max(self.workers)} workers."
            )
        if reads and shutil.disk_usage(self.file_dir).free < self.file_size:
            raise DataError(
                f"--file-dir {self.file_dir} has less than {self.file_size / 1e6:.0f} MB left, the "
                "size of the file. HINT: a smaller --file-size, or another directory."
            )
