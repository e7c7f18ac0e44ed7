"""Decodes and scales images and masks once, into arrays (.npy) that training maps into memory.

Writes images.npy, masks.npy and names.json to a directory that `tfddl-train --data_dir` takes.
"""

import sys
from collections.abc import Sequence

from absl import flags

from tfddl._src.cpu import num_usable_cores
from tfddl.segmentation import command
from tfddl.segmentation.config import PROGRESS, PrepareConfig, parse_image_size
from tfddl.segmentation.preprocessing import prepare

flags.DEFINE_string(
    "input_dir",
    None,
    "[data] A directory with images/X.png and masks/X_mask.png, or train/X.jpg and "
    "train_masks/X_mask.gif, or X.jpg and X_mask.gif side by side.",
    required=True,
)
flags.DEFINE_string("output_dir", None, "[data] Where the arrays are written.", required=True)
flags.DEFINE_string(
    "image_size",
    "96",
    "[data] What images are scaled to, in pixels: 96, or height x width as in 96x128. "
    "tfddl-train must be given the same.",
)
flags.DEFINE_integer(
    "in_channels", 3, "[data] Channels of the images: 1 (grey), 3 (RGB) or 4 (RGBA)."
)
flags.DEFINE_bool(
    "skip_bad", False, "[data] Leave out pairs that are missing or unreadable, instead of stopping."
)
flags.DEFINE_bool("overwrite", False, "[data] Replace arrays that are in --output_dir already.")
flags.DEFINE_integer(
    "threads", num_usable_cores(), "[runtime] How many images are decoded at a time."
)
flags.DEFINE_enum(
    "progress",
    None,
    PROGRESS,
    "[runtime] What is printed of the progress. [default: a bar on a terminal, else lines]",
)


def config_from_flags() -> PrepareConfig:
    """The parsed flags, checked.

    Raises:
        UnsupportedError: A value is out of its range.
    """
    return command.config_from_flags(
        PrepareConfig,
        input_dir=command.local_path,
        output_dir=command.local_path,
        image_size=parse_image_size,
        progress=command.progress_kind,
    )


def main(argv: Sequence[str]) -> None:
    """Prepares as the flags say; one of tfddl's errors ends the process with its message."""
    command.execute("tfddl-prepare", argv, _prepare)


def run() -> None:
    """The command `tfddl-prepare`."""
    command.run("tfddl-prepare", main, module=__name__)


def _prepare() -> None:
    config = config_from_flags()
    prepared = prepare(config)
    for problem in prepared.left_out:
        sys.stderr.write(f"tfddl-prepare: left out {problem}\n")
    height, width = config.image_size
    sys.stdout.write(
        f"tfddl: {prepared.num_examples} examples of {height} x {width} x {config.in_channels} "
        f"({prepared.num_bytes / 1e6:.0f} MB) in {prepared.directory}\n"
        f"tfddl: train on them with --data_dir={prepared.directory} --image_size={height}x{width} "
        f"--in_channels={config.in_channels}\n"
    )


if __name__ == "__main__":
    run()
