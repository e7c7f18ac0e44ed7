"""Trains a U-Net on images and masks, on as many workers as there are.

Writes the model (model.keras) and a picture of what it predicts (predictions.png).
"""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np
from absl import app, flags
from numpy.typing import NDArray

import tfddl
from tfddl.errors import DataError, DisagreementError, TfddlError
from tfddl.models import unet
from tfddl.segmentation.config import (
    COLLECTIVES,
    DECAYS,
    PROGRESS,
    TrainConfig,
    parse_filters,
    parse_image_size,
)
from tfddl.segmentation.dice import dice, dice_crossentropy
from tfddl.segmentation.folder import Examples, find_pairs, load_pairs, split_examples
from tfddl.segmentation.picture import draw_predictions
from tfddl.segmentation.synthetic import write_dataset

# How many validation examples the picture shows.
_NUM_PICTURED = 6
_MODEL, _PICTURE = "model.keras", "predictions.png"

_T = TypeVar("_T")

_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "[data] A folder with images/X.png and masks/X_mask.png (or masks/X.png; also .jpg, .bmp, "
    ".gif, .tif). Without it, pictures of cars are made and trained on.",
)
_IMAGE_SIZE = flags.DEFINE_string(
    "image_size",
    "96",
    "[data] What images are scaled to, in pixels: 96, or height x width as in 96x128. A multiple "
    "of 2 ** (levels - 1).",
)
_VALIDATION_SPLIT = flags.DEFINE_float(
    "validation_split",
    0.1,
    "[data] The share of the examples that is kept for validation, drawn at random by --seed.",
)
_NUM_EXAMPLES = flags.DEFINE_integer(
    "num_examples", 600, "[data] How many pictures are made where there is no --data_dir."
)
_SKIP_BAD = flags.DEFINE_bool(
    "skip_bad", False, "[data] Leave out pairs that are missing or unreadable, instead of stopping."
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "[data] Of the made pictures, the split, the order and the initial weights."
)
_FILTERS = flags.DEFINE_list(
    "filters",
    "8,16,32,64,64",
    "[model] How many filters the convolutions of each level have; as many levels as numbers.",
)
_IN_CHANNELS = flags.DEFINE_integer(
    "in_channels", 3, "[model] Channels of the images: 1 (grey), 3 (RGB) or 4 (RGBA)."
)
_BATCHNORM_MOMENTUM = flags.DEFINE_float(
    "batchnorm_momentum",
    0.9,
    "[model] Of BatchNormalization's moving statistics; 0.99 suits runs of thousands of steps.",
)
_EPOCHS = flags.DEFINE_integer("epochs", 9, "[training] How often each example is seen.")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 4, "[training] Examples of one worker in one step."
)
_LEARNING_RATE = flags.DEFINE_float(
    "learning_rate", 0.002, "[training] Adam's, for one worker; it is multiplied by their number."
)
_LEARNING_RATE_DECAY = flags.DEFINE_enum(
    "learning_rate_decay",
    "cosine",
    DECAYS,
    "[training] How the learning rate falls: along a cosine to zero at the last step, or not.",
)
_COLLECTIVE = flags.DEFINE_enum(
    "collective",
    "auto",
    COLLECTIVES,
    "[runtime] What carries the gradients: ring (CPUs), nccl (GPUs), or auto.",
)
_INTRA_OP_THREADS = flags.DEFINE_integer(
    "intra_op_threads",
    None,
    "[runtime] Threads within an operation. [default: this worker's share of the cores]",
    lower_bound=1,
)
_INTER_OP_THREADS = flags.DEFINE_integer(
    "inter_op_threads",
    None,
    "[runtime] Operations at the same time. [default: TensorFlow's]",
    lower_bound=1,
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir",
    "runs/segmentation",
    "[output] Where model and picture are written, over those of an earlier run, and made data.",
)
_PROGRESS = flags.DEFINE_enum(
    "progress",
    "bar",
    PROGRESS,
    "[output] What rank 0 shows of the training: a bar, one line per epoch, or nothing.",
)


def config_from_flags() -> TrainConfig:
    """The parsed flags, checked.

    Raises:
        UnsupportedError: A value is out of its range.
    """
    return TrainConfig(
        data_dir=Path(_DATA_DIR.value) if _DATA_DIR.value is not None else None,
        image_size=parse_image_size(_IMAGE_SIZE.value),
        validation_split=_VALIDATION_SPLIT.value,
        num_examples=_NUM_EXAMPLES.value,
        skip_bad=_SKIP_BAD.value,
        seed=_SEED.value,
        filters=parse_filters(_FILTERS.value),
        in_channels=_IN_CHANNELS.value,
        batchnorm_momentum=_BATCHNORM_MOMENTUM.value,
        epochs=_EPOCHS.value,
        batch_size=_BATCH_SIZE.value,
        learning_rate=_LEARNING_RATE.value,
        learning_rate_decay=_LEARNING_RATE_DECAY.value,
        collective=_COLLECTIVE.value,
        intra_op_threads=_INTRA_OP_THREADS.value,
        inter_op_threads=_INTER_OP_THREADS.value,
        output_dir=Path(_OUTPUT_DIR.value),
        progress=_PROGRESS.value,
    )


def train(config: TrainConfig) -> None:
    """Trains as the configuration says, and writes and tells what came of it.

    All ranks must call it together, after `tfddl.init()`.

    Args:
        config: The same on every rank.

    Raises:
        PlanError: The image size doesn't suit the network, or there are fewer examples to train
            on, or to validate with, than workers.
        DataError: The data can't be read, on this rank or on another one.
        DisagreementError: The ranks read different examples.
    """
    keras.utils.set_random_seed(config.seed)
    model = unet(
        (*config.image_size, config.in_channels),
        filters=config.filters,
        scale=1 / 255,
        momentum=config.batchnorm_momentum,
    )
    # Now, and not after the training, is the time to find out that it can't be written.
    _on_all_ranks(lambda: config.output_dir.mkdir(parents=True, exist_ok=True))
    examples = _examples(config)
    training, validation = split_examples(
        len(examples.names), validation_split=config.validation_split, seed=config.seed
    )
    _say(
        f"tfddl: {len(training)} examples to train on, {len(validation)} to validate with, "
        f"{config.image_size[0]} x {config.image_size[1]} pixels; "
        f"{tfddl.size()} worker{'s' if tfddl.size() > 1 else ''}, {config.batch_size} examples "
        "each in a step"
    )
    started_s = time.monotonic()
    history = _fit(model, examples, training=training, validation=validation, config=config)
    took_s = time.monotonic() - started_s
    _on_all_ranks(lambda: _write_results(model, examples, shown=validation, config=config))
    _say(
        f"tfddl: validation Dice {history['val_dice'][-1]:.4f} after {took_s:.0f} s of training\n"
        f"tfddl: model    {config.output_dir / _MODEL}\n"
        f"tfddl: picture  {config.output_dir / _PICTURE}"
    )


def _fit(
    model: keras.Model,
    examples: Examples,
    *,
    training: NDArray[np.int64],
    validation: NDArray[np.int64],
    config: TrainConfig,
) -> dict[str, list[float]]:
    dataset = tfddl.shard_dataset(
        examples.images[training],
        examples.masks[training],
        batch_size=config.batch_size,
        seed=config.seed,
    )
    validation_dataset = tfddl.shard_dataset(
        examples.images[validation], examples.masks[validation], batch_size=config.batch_size
    )
    rate = _learning_rate(config, num_steps=config.epochs * int(dataset.cardinality()))
    model.compile(
        optimizer=tfddl.DistributedOptimizer(keras.optimizers.Adam(rate)),
        loss=dice_crossentropy,
        metrics=[dice],
    )
    history = model.fit(
        dataset,
        validation_data=validation_dataset,
        epochs=config.epochs,
        verbose={"none": 0, "bar": 1, "lines": 2}[config.progress] if tfddl.rank() == 0 else 0,
    )
    return dict(history.history)


def _learning_rate(config: TrainConfig, *, num_steps: int) -> Any:
    rate = config.learning_rate * tfddl.size()
    if config.learning_rate_decay == "none":
        return rate
    return keras.optimizers.schedules.CosineDecay(rate, num_steps)


def _examples(config: TrainConfig) -> Examples:
    """The same examples on every rank, or an error on every rank."""
    directory = config.data_dir
    if directory is None:
        height, width = config.image_size
        kind = f"cars_{height}x{width}_{config.num_examples}_seed{config.seed}"
        directory = config.output_dir / "data" / kind
        _say(f"tfddl: no --data_dir; making {config.num_examples} pictures in {directory}")
        _on_all_ranks(lambda: _make_share(directory, config))
    examples = _on_all_ranks(lambda: _read(directory, config))
    _compare_names(examples.names)
    return examples


def _make_share(directory: Path, config: TrainConfig) -> None:
    """Writes this worker's share of the pictures; every host makes its own set."""
    write_dataset(
        directory,
        num_examples=config.num_examples,
        image_size=config.image_size,
        seed=config.seed,
        only=range(*tfddl.shard_range(config.num_examples, tfddl.local_rank(), tfddl.local_size())),
    )


def _read(directory: Path, config: TrainConfig) -> Examples:
    return load_pairs(
        find_pairs(directory, skip_bad=config.skip_bad),
        image_size=config.image_size,
        channels=config.in_channels,
        skip_bad=config.skip_bad,
    )


def _on_all_ranks(action: Callable[[], _T]) -> _T:
    """Does something on every rank; where it fails on one of them, all raise."""
    outcome: _T | Exception
    try:
        outcome = action()
    except (DataError, OSError) as error:
        outcome = error
    problem = str(outcome) if isinstance(outcome, Exception) else None
    problems = tfddl.allgather_object(problem)
    if isinstance(outcome, Exception):
        raise DataError(problem) from outcome
    for rank, text in enumerate(problems):
        if text is not None:
            raise DataError(f"Rank {rank} has stopped: {text}")
    return outcome


def _compare_names(names: tuple[str, ...]) -> None:
    """Checks that all ranks read the same examples: they take shares of one whole."""
    of_ranks = tfddl.allgather_object(names)
    for rank, others in enumerate(of_ranks):
        if others != of_ranks[0]:
            different = sorted(set(others) ^ set(of_ranks[0]))
            raise DisagreementError(
                f"Rank 0 reads {len(of_ranks[0])} examples and rank {rank} {len(others)}; only one "
                f"of them has {', '.join(different[:10])}. All hosts need the same --data_dir."
            )


def _write_results(
    model: keras.Model, examples: Examples, *, shown: NDArray[np.int64], config: TrainConfig
) -> None:
    """Rank 0 saves the model, and a picture of what it predicts."""
    if tfddl.rank() != 0:
        return
    # A model around the same layers that was never compiled: to load the file needs Keras, and
    # neither tfddl nor the loss.
    keras.Model(model.inputs, model.outputs, name=model.name).save(config.output_dir / _MODEL)

    chosen = shown[:_NUM_PICTURED]
    images, masks = examples.images[chosen], examples.masks[chosen]
    # Called: `predict` is for all ranks together.
    probabilities = keras.ops.convert_to_numpy(model(images, training=False))
    draw_predictions(
        images,
        masks=masks[..., 0] > 0,
        predictions=probabilities[..., 0] >= 0.5,
        scores=keras.ops.convert_to_numpy(dice(masks, probabilities)).tolist(),
    ).save(config.output_dir / _PICTURE)


def _say(text: str) -> None:
    """Rank 0 speaks."""
    if tfddl.rank() == 0:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def main(argv: Sequence[str]) -> None:
    """Starts tfddl and trains, as the flags say; an error of ours ends it with its message."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}; all values are flags.")
    # What TensorFlow tells of its start; absl would print it a second time.
    logging.getLogger("tensorflow").setLevel(logging.WARNING)
    try:
        config = config_from_flags()
        tfddl.init(
            collective=config.collective,
            intra_op_threads=config.intra_op_threads,
            inter_op_threads=config.inter_op_threads,
        )
        train(config)
    except TfddlError as error:
        sys.exit(f"tfddl-train: {type(error).__name__}: {error}")
    tfddl.shutdown()


def run() -> None:
    """The command `tfddl-train`."""
    # absl shows with --help the flags of the module that is run as a script, which for an installed
    # command is a file without flags.
    for flag in flags.FLAGS.get_flags_for_module(__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(main)


if __name__ == "__main__":
    run()
