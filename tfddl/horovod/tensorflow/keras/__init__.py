"""`horovod.tensorflow.keras`: the same as `tfddl.horovod.keras`, where everything lives."""

from typing import Any

from tfddl.horovod import keras as _home
from tfddl.horovod.tensorflow.keras import callbacks as callbacks
from tfddl.horovod.tensorflow.keras import elastic as elastic


def __getattr__(name: str) -> Any:
    return getattr(_home, name)


def __dir__() -> list[str]:
    return dir(_home)
