"""The data of a training: the same on every rank, checked before the first step."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tfddl
from tfddl._src.collectives import on_all_ranks
from tfddl.errors import DataError, ShardingError
from tfddl.segmentation.config import TrainConfig
from tfddl.segmentation.coordination import compare_names, print_on_chief
from tfddl.segmentation.examples import (
    Example,
    Examples,
    FileExamples,
    open_examples,
    require_usable,
    split_examples,
)
from tfddl.segmentation.synthetic import write_dataset

# Reading that takes longer than this, per epoch and worker, gets a hint.
_SLOW_READING_S = 30.0
_NUM_TIMED = 3


@dataclass(frozen=True)
class TrainingData:
    """The examples and their split.

    Attributes:
        examples: All usable ones.
        training: Indices of those to train on.
        validation: Indices of those to validate with.
    """

    examples: Examples
    training: NDArray[np.int64]
    validation: NDArray[np.int64]

    def shard(self, indices: NDArray[np.int64], **options: Any) -> Any:
        """This worker's shard of some of the examples, as a dataset that reads them one by one.

        All ranks must call it together.

        Args:
            indices: Of the examples.
            **options: Of `tfddl.shard_dataset`.

        Raises:
            DataError: The first example of this rank, or of another one, can't be read.
        """
        return on_all_ranks(
            lambda: tfddl.shard_dataset(indices, load=self._load, **options), error=DataError
        )

    def load(self, indices: Sequence[int] | NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """Images (n, height, width, channels) and masks (n, height, width, 1), both uint8."""
        loaded = [self.examples.load(int(i)) for i in indices]
        return [np.stack(part) for part in zip(*loaded, strict=True)]

    def _load(self, index: NDArray[np.int64]) -> Example:
        try:
            return self.examples.load(int(index))
        except DataError as error:
            raise DataError(f"{error}. HINT: --skip_bad leaves out what can't be read.") from error


def open_data(config: TrainConfig) -> TrainingData:
    """Opens the data set (or makes a synthetic one), leaves out bad examples, splits the rest.

    All ranks must call it together.

    Args:
        config: The same on every rank.

    Raises:
        DataError: On all ranks: one of them can't read the data, or there are fewer than 2
            examples.
        DisagreementError: The ranks see different examples.
        ShardingError: There are fewer examples to train on, or to validate with, than workers.
    """
    examples = _open(config.data_dir or _make_synthetic(config), config)
    training, validation = split_examples(
        len(examples), validation_split=config.validation_split, seed=config.seed
    )
    for indices, what in ((training, "train on"), (validation, "validate with")):
        if len(indices) < tfddl.size():
            raise ShardingError(
                f"Of {len(examples)} examples {len(indices)} are to {what}, for {tfddl.size()} "
                "workers; every worker needs at least one. HINT: use fewer workers, more data, or "
                f"another --validation_split than {config.validation_split}."
            )
    data = TrainingData(examples, training, validation)
    _hint_at_slow_reading(data)
    return data


def _open(directory: Path, config: TrainConfig) -> Examples:
    """The same usable examples on every rank, or an error on every rank."""
    examples, problems = on_all_ranks(
        lambda: open_examples(directory, image_size=config.image_size, channels=config.in_channels),
        error=DataError,
    )
    compare_names(examples.names, flag="data_dir")
    bad = _find_bad(examples, thorough=config.skip_bad)
    problems = (*problems, *bad.values())
    examples = examples.without(bad)
    on_all_ranks(
        lambda: require_usable(examples, problems, skip_bad=config.skip_bad), error=DataError
    )
    for problem in problems:
        print_on_chief(f"tfddl: left out {problem}")
    return examples


def _find_bad(examples: Examples, *, thorough: bool) -> dict[int, str]:
    """What is wrong with which example: the workers of each host divide its files."""
    shard = tfddl.shard_range(len(examples), tfddl.local_rank(), tfddl.local_size())
    mine = {i: examples.find_problem(i, thorough=thorough) for i in range(*shard)}
    found = {i: problem for i, problem in mine.items() if problem is not None}
    # Hosts may have different copies: what is bad on one is left out on all.
    merged = {i: problem for bad in tfddl.allgather_object(found) for i, problem in bad.items()}
    return dict(sorted(merged.items()))


def _make_synthetic(config: TrainConfig) -> Path:
    """Writes a synthetic data set unless it is there; the workers of each host divide the work."""
    height, width = config.image_size
    name = f"synthetic_{height}x{width}_{config.num_examples}_seed{config.seed}"
    directory = config.output_dir / "data" / name
    shard = tfddl.shard_range(config.num_examples, tfddl.local_rank(), tfddl.local_size())
    on_all_ranks(
        lambda: write_dataset(
            directory,
            num_examples=config.num_examples,
            image_size=config.image_size,
            seed=config.seed,
            only=range(*shard),
        ),
        error=DataError,
    )
    print_on_chief(
        f"tfddl: no --data_dir; {config.num_examples} synthetic examples are in {directory}"
    )
    return directory


def _hint_at_slow_reading(data: TrainingData) -> None:
    timed = data.training[:_NUM_TIMED]
    started_s = time.monotonic()
    on_all_ranks(lambda: data.load(timed), error=DataError)
    one_s = (time.monotonic() - started_s) / len(timed)
    epoch_s = one_s * len(data.training) / tfddl.size()
    if epoch_s > _SLOW_READING_S and isinstance(data.examples, FileExamples):
        print_on_chief(
            f"tfddl: reading the files will take each worker {epoch_s:.0f} s in every epoch. "
            f"HINT: tfddl-prepare --input_dir={data.examples.directory} --output_dir=… decodes "
            "them once."
        )
