"""What `tfddl-bench` is asked to measure; each field of `Config` is a flag."""

import argparse
import dataclasses
import enum
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from tfddl.bench.results import Labels
from tfddl.errors import DataError

SIZES = tuple(2**bits for bits in range(12, 27, 2))
"""In bytes: 4 KiB to 64 MiB."""

EXAMPLE_BYTES = 96 * 96 * 3
"""Of an example in the file of `Part.READING`: uint8, shape (96, 96, 3)."""

FLOAT_BYTES = 4
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30}

T = TypeVar("T")


class Part(enum.StrEnum):
    """What can be measured by itself."""

    COLLECTIVES = "collectives"
    TRAINING = "training"
    STEPS = "steps"
    VIRTUAL = "virtual"
    START = "start"
    READING = "reading"
    FEEDING = "feeding"
    SCALING = "scaling"


class Operation(enum.StrEnum):
    """Which collective is measured."""

    ALLREDUCE = "allreduce"
    ALLGATHER = "allgather"
    BROADCAST = "broadcast"


class Style(enum.StrEnum):
    """How a model is trained: `fit`, also compiled by XLA or under a scope; a loop by hand."""

    FIT = "fit"
    JIT = "jit"
    SCOPE = "scope"
    LOOP = "loop"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """A model, and the synthetic batch that a worker trains it on in every step.

    Attributes:
        model: its name.
        shape: of an example; (height, width, 3) of images.
        batch_size: examples per worker and step.
        vocabulary: examples are integers below it; 0: floats.
    """

    model: str
    shape: tuple[int, ...]
    batch_size: int = 8
    vocabulary: int = 0

    def describe(self) -> Labels:
        """Labels of its rows."""
        pixels: Labels = {"pixels": self.shape[0]} if len(self.shape) == 3 else {}
        return {"model": self.model, **pixels, "batch": self.batch_size}


_WORKLOADS = (
    Workload(model="unet", shape=(128, 128, 3)),
    Workload(model="resnet50", shape=(96, 96, 3)),
    # Computes little, and has large gradients: a hard case.
    Workload(model="mlp", shape=(32, 32, 3)),
    # Steps of a few milliseconds, where what isn't arithmetic shows.
    Workload(model="mlp100k", shape=(128,), batch_size=32),
    Workload(model="lstm", shape=(32, 32), batch_size=32),
    Workload(model="transformer", shape=(64,), batch_size=32, vocabulary=1000),
    Workload(model="embedding", shape=(64,), batch_size=32, vocabulary=100_000),
)
WORKLOADS = {workload.model: workload for workload in _WORKLOADS}


def parse_size(text: str) -> int:
    """Reads a number of bytes such as "4096", "64K" or "16M" (of 2 ** 10 and 2 ** 20).

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    number = text.strip().upper().removesuffix("IB").strip()
    unit = number[-1:] if number[-1:] in _UNITS else ""
    digits = number.removesuffix(unit).strip()
    if not digits.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no size; sizes are like 4096, 64K or 16M")
    return int(digits) * 2 ** _UNITS[unit]


def format_size(num_bytes: int) -> str:
    """Writes a number of bytes.

    >>> [format_size(n) for n in (100, 4096, 64 * 2**20)]
    ['100 B', '4 KiB', '64 MiB']
    """
    for unit, bits in reversed(_UNITS.items()):
        if unit and num_bytes >= 2**bits and num_bytes % 2**bits == 0:
            return f"{num_bytes >> bits} {unit}iB"
    return f"{num_bytes} B"


def _flag(default: Any, read: Callable[[str], Any]) -> Any:
    """A field whose flag takes a value."""
    return dataclasses.field(default=default, metadata={"type": read})


def _list(default: Any, read: Callable[[str], T], known: Iterable[str] = ()) -> Any:
    """A field whose flag takes words between commas; `known`: what there can be, if that is all."""
    names = list(map(str, known))

    def read_words(text: str) -> tuple[T, ...]:
        words = [word.strip() for word in text.split(",")]
        if names and (unknown := set(words) - set(names)):
            expected = ", ".join(names)
            raise argparse.ArgumentTypeError(f"{unknown.pop()!r}; it must be one of {expected}")
        if len(set(words)) < len(words):
            raise argparse.ArgumentTypeError(f"{text!r} has something twice")
        return tuple(map(read, words))

    read_words.__name__ = f"{read.__name__} list"  # As argparse's messages call it.
    return _flag(default, read_words)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure. Each field is a flag, and what is said of it here is its help.

    Attributes:
        workers: jobs of how many workers; more than cores share them. On hosts they are placed
            round-robin, one on each host with a free slot (default: 1,2,4, as far as there are
            cores, and 2 in any case; on hosts one per host, and one for each slot; with --only
            scaling 2,4,8,16,32,64)
        only: some of collectives, training, steps (by part), virtual (what virtual workers cost),
            start, reading, feeding (images beside tf.data by hand), scaling (default: collectives,
            training, start, which measures memory, too)
        models: what is trained, in batches of 8: unet (filters 8..128, 128 x 128), resnet50 (96 x
            96), mlp (25 MB of gradients, 32 x 32); with small steps, in batches of 32: mlp100k
            (0.1 million weights), lstm, transformer, embedding (sparse gradients) (default:
            unet,resnet50)
        image_size: pixels, of models of images; a multiple of 32
        batch_size: examples per worker and step
        styles: how it is trained: fit, jit (fit with jit_compile=True, as the plain Keras that it
            is compared with), scope (fit under tfddl.strategy().scope()), loop (by hand, with
            DistributedGradientTape) (default: fit)
        compare: measure TensorFlow's plain strategy, in a loop by hand, as well
        operations: some of allreduce, allgather, broadcast (default: allreduce)
        sizes: bytes of a rank's tensor (default: 4K,16K,64K,256K,1M,4M,16M,64M; with --only
            scaling 4K,16M)
        collective: what tfddl.init(collective=…) takes (default: auto, and all that differ from it)
        between_hosts: what tfddl.init(between_hosts=…) takes
        file_size: of the .npy of examples of 27648 bytes that --only reading reads (default: 2 GB)
        file_dir: where it is; removed at the end (default: the system's directory for temporary
            files)
        rounds: turns of each (default: 5)
        round_seconds: how long a turn of training takes about; one of a kind of collective takes a
            tenth (default: 2.5)
        starts: of each kind of job (default: 3)
        json: a file for all numbers; see --diff
        plots: a directory for charts (PNG): bandwidth over size, efficiency over workers; needs
            matplotlib: pip install 'tfddl[plots]'
        logdir: a directory with the tables for TensorBoard; the charts, too, where there is
            matplotlib
    """

    workers: tuple[int, ...] = _list((2,), int)
    only: tuple[Part, ...] = _list((Part.COLLECTIVES, Part.TRAINING, Part.START), Part, Part)
    models: tuple[str, ...] = _list(("unet", "resnet50"), str, WORKLOADS)
    image_size: int | None = _flag(None, int)
    batch_size: int | None = _flag(None, int)
    styles: tuple[Style, ...] = _list((Style.FIT,), Style, Style)
    compare: bool = dataclasses.field(
        default=False, metadata={"action": argparse.BooleanOptionalAction}
    )
    operations: tuple[Operation, ...] = _list((Operation.ALLREDUCE,), Operation, Operation)
    sizes: tuple[int, ...] = _list(SIZES, parse_size)
    collective: tuple[str, ...] = _list((), str)
    between_hosts: str = _flag("auto", str)
    file_size: int = _flag(2 * 10**9, parse_size)
    file_dir: Path = _flag(Path(tempfile.gettempdir()), Path)
    rounds: int = _flag(5, int)
    round_seconds: float = _flag(2.5, float)
    starts: int = _flag(3, int)
    json: Path | None = _flag(None, Path)
    plots: Path | None = _flag(None, Path)
    logdir: Path | None = _flag(None, Path)

    def __post_init__(self) -> None:
        steps = {"sizes": FLOAT_BYTES, "image_size": 32}
        for name, value in vars(self).items():
            step = steps.get(name, 0)
            for number in value if isinstance(value, tuple) else (value,):
                is_number = type(number) in (int, float)  # A bool is none.
                if is_number and not (number > 0 and (not step or number % step == 0)):
                    expected = f"a multiple of {step}, above 0" if step else "above 0"
                    flag = name.replace("_", "-")
                    raise DataError(f"--{flag} is {number}; it must be {expected}.")

    @property
    def workloads(self) -> tuple[Workload, ...]:
        """The models, with the shape that was asked for."""
        return tuple(self._shaped(WORKLOADS[name]) for name in self.models)

    @property
    def num_examples(self) -> int:
        """In the file of `Part.READING`."""
        return self.file_size // EXAMPLE_BYTES

    def prepare(self) -> None:
        """Makes the directories for output.

        Raises:
            DataError: One can't be written to, or the file of examples is too small.
            OSError: One can't be made.
        """
        for path in (self.plots, self.logdir):
            if path is not None:
                path.mkdir(parents=True, exist_ok=True)
        for directory in (self.json and self.json.resolve().parent, self.plots, self.logdir):
            if directory is not None and not os.access(directory, os.W_OK | os.X_OK):
                raise DataError(f"{directory} isn't a directory that can be written to.")
        if Part.READING in self.only and self.num_examples < max(self.workers):
            raise DataError(
                f"--file-size is {self.file_size} bytes: less than an example of {EXAMPLE_BYTES} "
                f"bytes for each of {max(self.workers)} workers."
            )

    def _shaped(self, workload: Workload) -> Workload:
        size, shape = self.image_size, workload.shape
        shape = (size, size, 3) if size is not None and len(shape) == 3 else shape
        batch_size = self.batch_size or workload.batch_size
        return dataclasses.replace(workload, shape=shape, batch_size=batch_size)
