"""`horovod.tensorflow.keras`: the same as `tfddl.horovod.keras`, where everything lives."""

import importlib
from typing import Any

from tfddl.horovod import keras as _home
from tfddl.horovod.tensorflow.keras import callbacks as callbacks
from tfddl.horovod.tensorflow.keras import elastic as elastic


def __getattr__(name: str) -> Any:
    if name == "mpi_ops":  # By name: what it is in imports this package.
        return importlib.import_module("tfddl.horovod.tensorflow.mpi_ops")
    return getattr(_home, name)


def __dir__() -> list[str]:
    return dir(_home)
