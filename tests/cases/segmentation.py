"""Cases of the application, run by every worker."""

import contextlib
import dataclasses
import io
from pathlib import Path
from typing import Any

import tfddl
from tfddl.errors import TfddlError
from tfddl.segmentation import train
from tfddl.segmentation.config import TrainConfig


def run(config: TrainConfig, data_dirs: tuple[Path | None, ...] = (None,)) -> dict[str, Any]:
    """Trains, each rank on its own of the folders; what it wrote, or the error it raised."""
    directory = data_dirs[tfddl.rank() % len(data_dirs)]
    output = io.StringIO()
    error = ""
    with contextlib.redirect_stdout(output):
        try:
            train.train(dataclasses.replace(config, data_dir=directory))
        except TfddlError as caught:
            error = f"{type(caught).__name__}: {caught}"
    return {"output": output.getvalue(), "error": error}
