"""Predicts masks: one PNG for each image of a directory; the workers divide the images.

--skip_existing continues a run that was interrupted.
"""

from collections.abc import Callable, Sequence

from absl import flags

from tfddl.segmentation import command, job_flags
from tfddl.segmentation.config import PROGRESS, SIZES, PredictConfig

flags.adopt_module_key_flags(job_flags)  # --help lists them as this command's.
flags.DEFINE_string(
    "model", None, "[data] The model: a file that Keras saved (model.keras).", required=True
)
flags.DEFINE_string(
    "input_dir",
    None,
    "[data] A directory of images X.png (.jpg, .bmp, .gif, .tif); an X_mask beside X is ignored.",
    required=True,
)
flags.DEFINE_string(
    "output_dir",
    None,
    "[data] Where the masks X_mask.png (0 and 255) are written; earlier ones are replaced.",
    required=True,
)
flags.DEFINE_enum(
    "size",
    "original",
    SIZES,
    "[data] The size of the masks: that of each image, or of the model's output.",
)
flags.DEFINE_float("threshold", 0.5, "[data] The least probability of a pixel of the mask.")
flags.DEFINE_bool(
    "probabilities", False, "[data] Also write X_probability.png: probabilities 0 to 1 as 0 to 255."
)
flags.DEFINE_bool(
    "skip_existing", False, "[data] Skip images whose mask is there, as after an interruption."
)
flags.DEFINE_bool(
    "skip_bad", False, "[data] Leave out images that can't be read, instead of stopping."
)
flags.DEFINE_integer("batch_size", 8, "[runtime] How many images one worker predicts at a time.")
flags.DEFINE_enum(
    "progress",
    None,
    PROGRESS,
    "[runtime] What rank 0 prints of the job's progress. [default: a bar on a terminal and under "
    "tfddlrun, else lines]",
)


def config_from_flags() -> PredictConfig:
    """The parsed flags, checked.

    Raises:
        UnsupportedError: A value is out of its range.
    """
    return command.config_from_flags(
        PredictConfig,
        progress=command.progress_kind,
        model=command.local_path,
        input_dir=command.local_path,
        output_dir=command.local_path,
    )


def main(argv: Sequence[str]) -> None:
    """Predicts as the flags say; one of tfddl's errors ends the process with its message."""
    command.execute("tfddl-predict", argv, _predict)


def run() -> None:
    """The command `tfddl-predict`."""
    command.run("tfddl-predict", main, module=__name__)


def _predict() -> None:
    job_flags.run_job(config_from_flags(), _load)


def _load() -> Callable[[PredictConfig], object]:
    # Imported here: TensorFlow takes seconds, which --help and wrong flags needn't wait for.
    from tfddl.segmentation.inference import predict

    return predict


if __name__ == "__main__":
    run()
