"""What `tfddl-bench` is asked to do, checked at birth."""

import dataclasses
import enum
import os
from pathlib import Path
from typing import Any

from tfddl._src.launcher.hosts import MAX_WORKERS
from tfddl.bench.ground import Ground, ThisMachine
from tfddl.bench.orders import Operation
from tfddl.bench.workloads import WORKLOADS, Workload
from tfddl.errors import DataError

SIZES = tuple(2**bits for bits in range(12, 27, 2))
"""In bytes: 4 KiB to 64 MiB."""

_FLOAT_BYTES = 4


class Part(enum.StrEnum):
    """What can be measured by itself."""

    COLLECTIVES = "collectives"
    TRAINING = "training"
    START = "start"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The flags of `tfddl-bench`; their help texts say what they mean.

    Raises:
        DataError: A value is out of its range.
        LaunchError: There is no room for so many workers.
    """

    workers: tuple[int, ...]
    ground: Ground = ThisMachine()
    only: tuple[Part, ...] = tuple(Part)
    operations: tuple[Operation, ...] = (Operation.ALLREDUCE,)
    sizes: tuple[int, ...] = SIZES
    models: tuple[Workload, ...] = (WORKLOADS["unet"], WORKLOADS["resnet50"])
    rounds: int = 5
    round_seconds: float = 2.5
    starts: int = 3
    compare: bool = False
    transports: tuple[str, ...] = ()
    """Ways of training with tfddl; empty is all that make a difference."""

    json: Path | None = None
    plots: Path | None = None
    logdir: Path | None = None

    def __post_init__(self) -> None:
        """Checks each value, and that what is asked for can be written in the end."""
        self._check_workers()
        _require(self.only, "only", "parts")
        _require(self.operations, "operations", "collectives")
        _require(self.sizes, "sizes", "sizes")
        for size in self.sizes:
            if size < _FLOAT_BYTES or size % _FLOAT_BYTES:
                raise DataError(f"--sizes has {size} bytes; a float32 tensor has a multiple of 4.")
        _require(self.models, "models", "models")
        for name in ("rounds", "starts"):
            if getattr(self, name) < 1:
                raise DataError(f"--{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.round_seconds > 0:
            raise DataError(f"--round-seconds is {self.round_seconds}; it must be more than 0.")
        if self.json is not None:
            _require_folder("json", self.json.resolve().parent)
        for name in ("plots", "logdir"):
            path = getattr(self, name)
            if path is not None:
                _make_folder(name, path)

    def _check_workers(self) -> None:
        _require(self.workers, "workers", "numbers of workers")
        if min(self.workers) < 1 or max(self.workers) > MAX_WORKERS:
            raise DataError(f"--workers is {self.workers}; each must be 1..{MAX_WORKERS}.")
        for number in self.workers:
            self.ground.team(number)

    def as_json(self) -> dict[str, Any]:
        """For the record."""
        plain = dataclasses.asdict(self)
        return {key: str(v) if isinstance(v, Path) else v for key, v in plain.items()}


def usual_settings(ground: Ground, num_cores: int) -> Settings:
    """What is measured where the user says nothing.

    Args:
        ground: Where.
        num_cores: How many this process may use.
    """
    return Settings(workers=ground.usual_workers(num_cores), ground=ground)


def quick_settings(ground: Ground) -> Settings:
    """What ``--quick`` measures: enough to see whether all is well."""
    return Settings(
        workers=(ground.fewest_workers,),
        ground=ground,
        sizes=(SIZES[0], 2**20, SIZES[-1]),
        models=(WORKLOADS["unet"],),
        rounds=2,
        round_seconds=1.5,
        starts=1,
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
    """Bytes as people write them.

    >>> [format_size(n) for n in (100, 4096, 64 * 2**20)]
    ['100 B', '4 KiB', '64 MiB']
    """
    for bits, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if num_bytes >= 2**bits and num_bytes % 2**bits == 0:
            return f"{num_bytes >> bits} {unit}"
    return f"{num_bytes} B"


def _require(values: tuple[Any, ...], flag: str, what: str) -> None:
    if not values:
        raise DataError(f"--{flag} is empty; give it {what} between commas.")
    if len(set(values)) < len(values):
        raise DataError(f"--{flag} has something twice: {', '.join(map(str, values))}.")


def _make_folder(flag: str, path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--{flag} {path} can't be made: {error.strerror}.") from error
    _require_folder(flag, path)


def _require_folder(flag: str, folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(
            f"--{flag}: {folder} isn't a folder that can be written to. Choose another one."
        )
