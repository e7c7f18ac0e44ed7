"""Predicts masks: one PNG for each image of a folder, each worker those of its share.

A run that was broken off is continued with --skip_existing.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

import tfddl
from tfddl.segmentation import command
from tfddl.segmentation.config import BETWEEN_HOSTS, COLLECTIVES, PROGRESS, SIZES, PredictConfig

_MODEL = flags.DEFINE_string(
    "model", None, "[data] The model: a file that Keras saved (model.keras).", required=True
)
_INPUT_DIR = flags.DEFINE_string(
    "input_dir",
    None,
    "[data] A folder of images X.png (.jpg, .bmp, .gif, .tif); an X_mask beside X is passed over.",
    required=True,
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir",
    None,
    "[data] Where the masks X_mask.png are written, 0 and 255, over earlier ones.",
    required=True,
)
_SIZE = flags.DEFINE_enum(
    "size", "original", SIZES, "[data] How large masks are: as the images, or as the model's."
)
_THRESHOLD = flags.DEFINE_float(
    "threshold", 0.5, "[data] A pixel belongs to the mask from this probability on."
)
_PROBABILITIES = flags.DEFINE_bool(
    "probabilities", False, "[data] Also write X_probability.png, 0 to 255 for 0 to 1."
)
_SKIP_EXISTING = flags.DEFINE_bool(
    "skip_existing", False, "[data] Pass over images whose mask is there: goes on after a break."
)
_SKIP_BAD = flags.DEFINE_bool(
    "skip_bad", False, "[data] Leave out images that can't be read, instead of stopping."
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 8, "[runtime] How many images one worker predicts at a time."
)
_COLLECTIVE = flags.DEFINE_enum(
    "collective",
    "auto",
    COLLECTIVES,
    "[runtime] What the workers talk over: ring (CPUs), nccl (GPUs), or auto.",
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
_PROGRESS = flags.DEFINE_enum(
    "progress", "bar", PROGRESS, "[runtime] What rank 0 shows of the whole job's work."
)


def config_from_flags() -> PredictConfig:
    """The parsed flags, checked.

    Raises:
        UnsupportedError: A value is out of its range.
    """
    return PredictConfig(
        model=Path(_MODEL.value),
        input_dir=Path(_INPUT_DIR.value),
        output_dir=Path(_OUTPUT_DIR.value),
        size=_SIZE.value,
        threshold=_THRESHOLD.value,
        probabilities=_PROBABILITIES.value,
        skip_existing=_SKIP_EXISTING.value,
        skip_bad=_SKIP_BAD.value,
        batch_size=_BATCH_SIZE.value,
        collective=_COLLECTIVE.value,
        between_hosts=_BETWEEN_HOSTS.value,
        intra_op_threads=_INTRA_OP_THREADS.value,
        inter_op_threads=_INTER_OP_THREADS.value,
        progress=_PROGRESS.value,
    )


def main(argv: Sequence[str]) -> None:
    """Starts tfddl and predicts, as the flags say; an error of ours ends it with its message."""
    command.execute("tfddl-predict", argv, _predict)


def run() -> None:
    """The command `tfddl-predict`."""
    command.run(main, module=__name__)


def _predict() -> None:
    config = config_from_flags()
    # TensorFlow takes seconds to load, which --help and a mistake in the flags needn't wait for.
    from tfddl.segmentation.inference import predict

    tfddl.init(
        collective=config.collective,
        between_hosts=config.between_hosts,
        intra_op_threads=config.intra_op_threads,
        inter_op_threads=config.inter_op_threads,
    )
    predict(config)
    tfddl.shutdown()


if __name__ == "__main__":
    run()
