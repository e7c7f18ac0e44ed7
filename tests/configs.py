"""The configuration of the application, for tests."""

from absl import flags

from tfddl.segmentation import train
from tfddl.segmentation.config import TrainConfig


def default_config() -> TrainConfig:
    """What `tfddl-train` does without flags."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["tfddl-train"])
    return train.config_from_flags()
