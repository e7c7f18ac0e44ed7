"""The configurations of the application's commands, checked at construction."""

from dataclasses import dataclass
from pathlib import Path

from tfddl.errors import UnsupportedError
from tfddl.segmentation.augmentation import Augmentation
from tfddl.segmentation.presets import PRESETS

CHANNELS = (1, 3, 4)
COLLECTIVES = ("auto", "ring", "nccl")
BETWEEN_HOSTS = ("auto", "tcp", "ring")
DECAYS = ("cosine", "none")
LOSSES = ("dice_crossentropy", "dice", "exact_dice")
PROGRESS = ("bar", "lines", "none")
SIZES = ("original", "model")


@dataclass(frozen=True, kw_only=True)
class _CommandConfig:
    """The flags that all commands have."""

    skip_bad: bool
    progress: str

    def __post_init__(self) -> None:
        _require_one_of("progress", self.progress, PROGRESS)


@dataclass(frozen=True, kw_only=True)
class JobConfig(_CommandConfig):
    """The flags of a command that several workers run as one job."""

    batch_size: int
    collective: str
    between_hosts: str
    intra_op_threads: int | None
    inter_op_threads: int | None
    verbose: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive("batch_size", self.batch_size)
        _require_one_of("collective", self.collective, COLLECTIVES)
        _require_one_of("between_hosts", self.between_hosts, BETWEEN_HOSTS)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(JobConfig):
    """The flags of `tfddl-train`, under the same names; their help texts say what they mean.

    Raises:
        UnsupportedError: A value is out of its range.
    """

    preset: str
    data_dir: Path | None
    image_size: tuple[int, int]
    validation_split: float
    num_examples: int
    augment: tuple[str, ...]
    seed: int
    filters: tuple[int, ...]
    in_channels: int
    batchnorm_momentum: float
    loss: str
    epochs: int
    virtual_workers: int | None
    learning_rate: float
    learning_rate_decay: str
    checkpoint_dir: Path | str
    resume: bool
    save_every_steps: int | None
    keep: int
    output_dir: Path
    tensorboard_dir: Path | str | None

    def __post_init__(self) -> None:
        """Checks each value by itself; what depends on the data is checked where they are read."""
        super().__post_init__()
        _require_one_of("preset", self.preset, tuple(PRESETS))
        _require_image_size(self.image_size)
        _require(
            "validation_split", self.validation_split, 0 < self.validation_split < 1, "in (0, 1)"
        )
        _require("num_examples", self.num_examples, self.num_examples >= 2, "at least 2")
        _require("seed", self.seed, 0 <= self.seed < 2**31, "in 0..2147483647")
        _require(
            "filters",
            self.filters,
            len(self.filters) >= 1 and min(self.filters) >= 1,
            "one positive number for each level, such as 8,16,32,64",
        )
        Augmentation(self.augment)
        _require_one_of("in_channels", self.in_channels, CHANNELS)
        momentum = self.batchnorm_momentum
        _require("batchnorm_momentum", momentum, 0 <= momentum < 1, "in [0, 1)")
        _require_one_of("loss", self.loss, LOSSES)
        _require_positive("epochs", self.epochs)
        _require("learning_rate", self.learning_rate, self.learning_rate > 0, "positive")
        _require_one_of("learning_rate_decay", self.learning_rate_decay, DECAYS)
        if self.virtual_workers is not None:
            _require_positive("virtual_workers", self.virtual_workers)
            if self.intra_op_threads is None:
                # By default it is the cores of a worker, which depend on how many there are.
                object.__setattr__(self, "intra_op_threads", 1)
        if self.save_every_steps is not None:
            _require_positive("save_every_steps", self.save_every_steps)
        _require_positive("keep", self.keep)


@dataclass(frozen=True, kw_only=True)
class PredictConfig(JobConfig):
    """The flags of `tfddl-predict`, under the same names; their help texts say what they mean.

    Raises:
        UnsupportedError: A value is out of its range.
    """

    model: Path
    input_dir: Path
    output_dir: Path
    size: str
    threshold: float
    probabilities: bool
    skip_existing: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_one_of("size", self.size, SIZES)
        _require("threshold", self.threshold, 0 < self.threshold <= 1, "in (0, 1]")
        if self.input_dir.resolve() == self.output_dir.resolve():
            raise UnsupportedError(
                f"--output_dir is --input_dir, {self.input_dir}: masks would lie among the images "
                "and overwrite masks that are there. HINT: choose another directory."
            )


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(_CommandConfig):
    """The flags of `tfddl-prepare`, under the same names; their help texts say what they mean.

    Raises:
        UnsupportedError: A value is out of its range.
    """

    input_dir: Path
    output_dir: Path
    image_size: tuple[int, int]
    in_channels: int
    overwrite: bool
    threads: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_image_size(self.image_size)
        _require_one_of("in_channels", self.in_channels, CHANNELS)
        _require_positive("threads", self.threads)


def parse_image_size(text: str) -> tuple[int, int]:
    """(height, width) of "96" (square) or "96x128" (height x width).

    Raises:
        UnsupportedError: The text is neither.
    """
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.strip().isdecimal() for part in parts):
        raise UnsupportedError(
            f"--image_size is {text!r}; it must be one number (96) or height x width (96x128)."
        )
    return int(parts[0]), int(parts[-1])


def parse_filters(texts: list[str]) -> tuple[int, ...]:
    """The numbers of a comma-separated list.

    Raises:
        UnsupportedError: One of them isn't a number.
    """
    if not all(text.strip().isdecimal() for text in texts):
        raise UnsupportedError(
            f"--filters is {','.join(texts)!r}; it must be numbers between commas, such as "
            "8,16,32,64."
        )
    return tuple(int(text) for text in texts)


def parse_names(texts: list[str]) -> tuple[str, ...]:
    """The words of a comma-separated list; an empty text is an empty list."""
    return tuple(text.strip() for text in texts if text.strip())


def _require_image_size(image_size: tuple[int, int]) -> None:
    _require("image_size", image_size, min(image_size) >= 1, "positive")


def _require_positive(name: str, value: int) -> None:
    _require(name, value, value >= 1, "at least 1")


def _require(name: str, value: object, is_right: bool, expected: str) -> None:
    if not is_right:
        raise UnsupportedError(f"--{name} is {value}; it must be {expected}.")


def _require_one_of(name: str, value: object, choices: tuple[object, ...]) -> None:
    _require(name, value, value in choices, "one of " + ", ".join(map(str, choices)))
