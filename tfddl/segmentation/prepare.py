"""Turns folders of images and masks into arrays (.npy), once: training then decodes nothing.

Writes images.npy, masks.npy and names.json, a folder that `tfddl-train --data_dir` takes.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from tfddl._src.cpu import num_usable_cores
from tfddl.segmentation import command
from tfddl.segmentation.config import PROGRESS, PrepareConfig, parse_image_size
from tfddl.segmentation.preprocessing import prepare

_INPUT_DIR = flags.DEFINE_string(
    "input_dir",
    None,
    "[data] A folder with images/X.png and masks/X_mask.png, or train/X.jpg and "
    "train_masks/X_mask.gif, or X.jpg and X_mask.gif side by side.",
    required=True,
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "[data] Where the arrays are written.", required=True
)
_IMAGE_SIZE = flags.DEFINE_string(
    "image_size",
    "96",
    "[data] What images are scaled to, in pixels: 96, or height x width as in 96x128. "
    "tfddl-train must be given the same.",
)
_IN_CHANNELS = flags.DEFINE_integer(
    "in_channels", 3, "[data] Channels of the images: 1 (grey), 3 (RGB) or 4 (RGBA)."
)
_SKIP_BAD = flags.DEFINE_bool(
    "skip_bad", False, "[data] Leave out pairs that are missing or unreadable, instead of stopping."
)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "[data] Replace arrays that are in --output_dir already."
)
_THREADS = flags.DEFINE_integer(
    "threads", num_usable_cores(), "[runtime] How many images are decoded at a time."
)
_PROGRESS = flags.DEFINE_enum(
    "progress",
    None,
    PROGRESS,
    "[runtime] What is shown of the work. [default: a bar on a terminal, else lines]",
)


def config_from_flags() -> PrepareConfig:
    """The parsed flags, checked.

    Raises:
        UnsupportedError: A value is out of its range.
    """
    return PrepareConfig(
        input_dir=Path(_INPUT_DIR.value),
        output_dir=Path(_OUTPUT_DIR.value),
        image_size=parse_image_size(_IMAGE_SIZE.value),
        in_channels=_IN_CHANNELS.value,
        skip_bad=_SKIP_BAD.value,
        overwrite=_OVERWRITE.value,
        threads=_THREADS.value,
        progress=_PROGRESS.value or ("bar" if sys.stdout.isatty() else "lines"),
    )


def main(argv: Sequence[str]) -> None:
    """Prepares what the flags say; an error of ours ends it with its message."""
    command.execute("tfddl-prepare", argv, _prepare)


def run() -> None:
    """The command `tfddl-prepare`."""
    command.run(main, module=__name__)


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
