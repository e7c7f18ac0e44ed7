"""Named sets of defaults for the flags of `tfddl-train`."""

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The flags' own defaults: minutes on a small machine.
    "default": {},
    # The network and the training of the system that tfddl replaced.
    "source": {
        "image_size": (512, 512),
        "in_channels": 3,
        "filters": (8, 16, 32, 64, 128, 256, 512, 1024),
        "batchnorm_momentum": 0.99,
        "loss": "dice",
        "epochs": 50,
        "batch_size": 12,
        "learning_rate": 0.00013,
        "learning_rate_decay": "none",
        "augment": (),
    },
}
"""By name of the preset, by name of the flag (a field of `TrainConfig`), its value."""


def describe(preset: str) -> str:
    """What a preset sets, as flags on the command line."""
    return " ".join(f"--{name}={as_text(name, value)}" for name, value in PRESETS[preset].items())


def as_text(name: str, value: Any) -> str:
    """The value of a flag as text: 8,16,32 or, of image_size, 96x128."""
    if isinstance(value, tuple):
        return ("x" if name == "image_size" else ",").join(map(str, value))
    return "" if value is None else str(value)
