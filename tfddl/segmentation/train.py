"""Trains a U-Net on images and masks, on as many workers as there are.

Writes the models (model.keras as training ended, best.keras with the lowest validation loss), a
picture of what is predicted (predictions.png), checkpoints and charts. The same command again goes
on where a run was broken off.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from absl import flags

import tfddl
from tfddl.segmentation import command
from tfddl.segmentation.augment import TRANSFORMS
from tfddl.segmentation.config import (
    BETWEEN_HOSTS,
    COLLECTIVES,
    DECAYS,
    LOSSES,
    PROGRESS,
    TrainConfig,
    parse_filters,
    parse_image_size,
    parse_names,
)
from tfddl.segmentation.presets import PRESETS, describe

_PRESET = flags.DEFINE_enum(
    "preset",
    "default",
    list(PRESETS),
    "[preset] Sets other flags, but none that is given. source is the network and the training of "
    f"the system that tfddl took over from: {describe('source')}",
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "[data] A folder with images/X.png and masks/X_mask.png, or train/X.jpg and "
    "train_masks/X_mask.gif, or X.jpg and X_mask.gif side by side, or images.npy and masks.npy "
    "from tfddl-prepare. Without it, pictures of cars are made and trained on.",
)
_IMAGE_SIZE = flags.DEFINE_string(
    "image_size",
    "96",
    "[data] What images are scaled to, in pixels: 96, or height x width as in 96x128. A multiple "
    "of 2 ** (levels - 1). Arrays (.npy) must have it already.",
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
    "skip_bad",
    False,
    "[data] Leave out pairs that are missing or unreadable, instead of stopping; to find them, all "
    "files are read once before training.",
)
_AUGMENT = flags.DEFINE_list(
    "augment",
    "",
    f"[data] How examples are changed at random, anew in every epoch: some of {','.join(TRANSFORMS)}.",
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
_LOSS = flags.DEFINE_enum(
    "loss",
    "dice_crossentropy",
    LOSSES,
    "[training] dice_crossentropy (of each image: the same on any number of workers), dice "
    "(minus the Dice over the whole batch of a worker), or exact_dice (minus the Dice over the "
    "batches of all workers, as one process computes it; in validation, of each worker's).",
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
_CHECKPOINT_DIR = flags.DEFINE_string(
    "checkpoint_dir",
    None,
    "[checkpoints] Where they are written, and taken up from. [default: checkpoints in "
    "--output_dir]",
)
_RESUME = flags.DEFINE_bool(
    "resume",
    True,
    "[checkpoints] Go on from the newest one; --noresume removes those that are there.",
)
_SAVE_EVERY_STEPS = flags.DEFINE_integer(
    "save_every_steps",
    None,
    "[checkpoints] Also save within an epoch, after so many steps each. [default: after each "
    "epoch]",
)
_KEEP = flags.DEFINE_integer(
    "keep", 3, "[checkpoints] How many of the newest are kept, beside the best."
)
_COLLECTIVE = flags.DEFINE_enum(
    "collective",
    "auto",
    COLLECTIVES,
    "[runtime] What carries the gradients: ring (CPUs), nccl (GPUs), or auto.",
)
_BETWEEN_HOSTS = flags.DEFINE_enum(
    "between_hosts",
    "auto",
    BETWEEN_HOSTS,
    "[runtime] What CPU hosts speak to each other by: tcp (streams on ports of their own), ring "
    "(TensorFlow's, on the ports of TF_CONFIG), or auto: TCP where it can be had.",
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
    "[output] Where models and picture are written, over those of an earlier run, and made data.",
)
_TENSORBOARD_DIR = flags.DEFINE_string(
    "tensorboard_dir",
    None,
    "[output] Where what TensorBoard shows is written; empty for none. [default: tensorboard in "
    "--output_dir]",
)
_PROGRESS = flags.DEFINE_enum(
    "progress",
    "bar",
    PROGRESS,
    "[output] What rank 0 shows of the training: a bar, one line per epoch, or nothing.",
)


def config_from_flags() -> TrainConfig:
    """The parsed flags, checked; the preset fills in what isn't given.

    Raises:
        UnsupportedError: A value is out of its range.
    """
    output_dir = Path(_OUTPUT_DIR.value)
    tensorboard_dir = _TENSORBOARD_DIR.value
    if tensorboard_dir is None:
        tensorboard_dir = str(output_dir / "tensorboard")
    config = TrainConfig(
        preset=_PRESET.value,
        data_dir=Path(_DATA_DIR.value) if _DATA_DIR.value is not None else None,
        image_size=parse_image_size(_IMAGE_SIZE.value),
        validation_split=_VALIDATION_SPLIT.value,
        num_examples=_NUM_EXAMPLES.value,
        skip_bad=_SKIP_BAD.value,
        augment=parse_names(_AUGMENT.value),
        seed=_SEED.value,
        filters=parse_filters(_FILTERS.value),
        in_channels=_IN_CHANNELS.value,
        batchnorm_momentum=_BATCHNORM_MOMENTUM.value,
        loss=_LOSS.value,
        epochs=_EPOCHS.value,
        batch_size=_BATCH_SIZE.value,
        learning_rate=_LEARNING_RATE.value,
        learning_rate_decay=_LEARNING_RATE_DECAY.value,
        checkpoint_dir=Path(_CHECKPOINT_DIR.value or output_dir / "checkpoints"),
        resume=_RESUME.value,
        save_every_steps=_SAVE_EVERY_STEPS.value,
        keep=_KEEP.value,
        collective=_COLLECTIVE.value,
        between_hosts=_BETWEEN_HOSTS.value,
        intra_op_threads=_INTRA_OP_THREADS.value,
        inter_op_threads=_INTER_OP_THREADS.value,
        output_dir=output_dir,
        tensorboard_dir=Path(tensorboard_dir) if tensorboard_dir else None,
        progress=_PROGRESS.value,
    )
    not_given = {
        name: value
        for name, value in PRESETS[config.preset].items()
        if flags.FLAGS[name].using_default_value
    }
    return dataclasses.replace(config, **not_given)


def main(argv: Sequence[str]) -> None:
    """Starts tfddl and trains, as the flags say; an error of ours ends it with its message."""
    command.execute("tfddl-train", argv, _train)


def run() -> None:
    """The command `tfddl-train`."""
    command.run(main, module=__name__)


def _train() -> None:
    config = config_from_flags()
    # TensorFlow takes seconds to load, which --help and a mistake in the flags needn't wait for.
    from tfddl.segmentation.training import train

    tfddl.init(
        collective=config.collective,
        between_hosts=config.between_hosts,
        intra_op_threads=config.intra_op_threads,
        inter_op_threads=config.inter_op_threads,
    )
    train(config)
    tfddl.shutdown()


if __name__ == "__main__":
    run()
