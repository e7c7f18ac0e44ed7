"""Trains a U-Net on images and masks, on any number of workers.

Writes model.keras (after the last epoch), best.keras (lowest validation loss), predictions.png,
checkpoints, and charts for TensorBoard. The same command resumes a training that was interrupted.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from tfddl.segmentation import command, job_flags
from tfddl.segmentation.augmentation import TRANSFORMS
from tfddl.segmentation.config import (
    DECAYS,
    LOSSES,
    PROGRESS,
    TrainConfig,
    parse_filters,
    parse_image_size,
    parse_names,
)
from tfddl.segmentation.presets import PRESETS, describe

flags.adopt_module_key_flags(job_flags)  # --help lists them as this command's.
flags.DEFINE_enum(
    "preset",
    "default",
    list(PRESETS),
    "[preset] Defaults for other flags. source is the network and the training of the system that "
    f"tfddl replaced: {describe('source')}",
)
flags.DEFINE_string(
    "data_dir",
    None,
    "[data] A directory with images/X.png and masks/X_mask.png, or train/X.jpg and "
    "train_masks/X_mask.gif, or X.jpg and X_mask.gif side by side, or images.npy and masks.npy "
    "from tfddl-prepare. Without it, a synthetic data set (drawings of cars) is made.",
)
flags.DEFINE_string(
    "image_size",
    "96",
    "[data] What images are scaled to, in pixels: 96, or height x width as in 96x128. A multiple "
    "of 2 ** (levels - 1). Arrays (.npy) must have it already.",
)
flags.DEFINE_float(
    "validation_split",
    0.1,
    "[data] The fraction of the examples that is kept for validation, drawn at random by --seed.",
)
flags.DEFINE_integer(
    "num_examples", 600, "[data] The size of the synthetic data set, where there is no --data_dir."
)
flags.DEFINE_bool(
    "skip_bad",
    False,
    "[data] Leave out pairs that are incomplete or unreadable, instead of stopping; to find them, "
    "all files are read once before training.",
)
flags.DEFINE_list(
    "augment",
    "",
    "[data] Random transforms of each example, drawn anew in every epoch: some of "
    f"{','.join(TRANSFORMS)}.",
)
flags.DEFINE_integer(
    "seed", 0, "[data] Of the synthetic data, the split, the order and the initial weights."
)
flags.DEFINE_list(
    "filters",
    "8,16,32,64,64",
    "[model] How many filters the convolutions of each level have; as many levels as numbers.",
)
flags.DEFINE_integer(
    "in_channels", 3, "[model] Channels of the images: 1 (grey), 3 (RGB) or 4 (RGBA)."
)
flags.DEFINE_float(
    "batchnorm_momentum",
    0.9,
    "[model] Of BatchNormalization's moving statistics; 0.99 suits runs of thousands of steps.",
)
flags.DEFINE_enum(
    "loss",
    "dice_crossentropy",
    LOSSES,
    "[training] dice_crossentropy (per image: the same on any number of workers), dice (minus the "
    "Dice over a worker's whole batch), or exact_dice (minus the Dice over the global batch, as "
    "one process computes it; in validation, over each worker's batch).",
)
flags.DEFINE_integer("epochs", 9, "[training] Passes over the training data.")
flags.DEFINE_integer("batch_size", 4, "[training] Examples of one worker in one step.")
flags.DEFINE_integer(
    "virtual_workers",
    None,
    "[training] Trains in the same bits on any number of workers up to this: each runs its virtual "
    "workers, of which batch_size and learning_rate then are, one after the other. Sets "
    "--intra_op_threads to 1 where it isn't given. [default: none]",
    lower_bound=1,
)
flags.DEFINE_float(
    "learning_rate",
    0.002,
    "[training] Of Adam, for one worker; multiplied by the number of workers.",
)
flags.DEFINE_enum(
    "learning_rate_decay",
    "cosine",
    DECAYS,
    "[training] cosine: the learning rate falls along a cosine, to zero at the last step.",
)
flags.DEFINE_string(
    "checkpoint_dir",
    None,
    "[checkpoints] Where they are written to, and resumed from; may be a URL (gs://). [default: "
    "checkpoints in --output_dir]",
)
flags.DEFINE_bool(
    "resume",
    True,
    "[checkpoints] Resume from the newest one; --noresume removes those that are there.",
)
flags.DEFINE_integer(
    "save_every_steps",
    None,
    "[checkpoints] Save also within an epoch, every so many steps. [default: after each epoch]",
)
flags.DEFINE_integer("keep", 3, "[checkpoints] How many of the newest are kept, beside the best.")
flags.DEFINE_string(
    "output_dir",
    "runs/segmentation",
    "[output] Where models, picture and synthetic data are written, over those of an earlier run.",
)
flags.DEFINE_string(
    "tensorboard_dir",
    None,
    "[output] Where event files for TensorBoard are written; may be a URL; empty for none. "
    "[default: tensorboard in --output_dir]",
)
flags.DEFINE_enum(
    "progress",
    None,
    PROGRESS,
    "[output] What rank 0 prints of the training: a bar, one line per epoch, or nothing. [default: "
    "a bar on a terminal and under tfddlrun, else lines]",
)


def config_from_flags() -> TrainConfig:
    """The parsed flags, checked; the preset fills in those that aren't given.

    Raises:
        UnsupportedError: A value is out of its range.
    """
    output_dir = command.local_path(flags.FLAGS.output_dir)
    config = command.config_from_flags(
        TrainConfig,
        data_dir=lambda text: None if text is None else command.local_path(text),
        image_size=parse_image_size,
        augment=parse_names,
        filters=parse_filters,
        progress=command.progress_kind,
        checkpoint_dir=lambda text: (
            command.path_or_url(text) if text else output_dir / "checkpoints"
        ),
        output_dir=command.local_path,
        tensorboard_dir=lambda text: _tensorboard_dir(text, output_dir),
    )
    not_given = {
        name: value
        for name, value in PRESETS[config.preset].items()
        if flags.FLAGS[name].using_default_value
    }
    return dataclasses.replace(config, **not_given)


def _tensorboard_dir(text: str | None, output_dir: Path) -> Path | str | None:
    """An empty text turns TensorBoard off; without the flag, it has its place in the output."""
    if text is None:
        return output_dir / "tensorboard"
    return command.path_or_url(text) if text else None


def main(argv: Sequence[str]) -> None:
    """Trains as the flags say; one of tfddl's errors ends the process with its message."""
    command.execute("tfddl-train", argv, _train)


def run() -> None:
    """The command `tfddl-train`."""
    command.run("tfddl-train", main, module=__name__)


def _train() -> None:
    job_flags.run_job(config_from_flags(), _load)


def _load() -> Callable[[TrainConfig], object]:
    # Imported here: TensorFlow takes seconds, which --help and wrong flags needn't wait for.
    from tfddl.segmentation.training_run import train

    return train


if __name__ == "__main__":
    run()
