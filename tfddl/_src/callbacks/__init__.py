"""Callbacks for `fit`. They go on every rank; files are written by rank 0.

Usage::

    model.fit(data, callbacks=[tfddl.callbacks.Checkpoint("checkpoints")])
"""

from tfddl._src.callbacks.checkpoint import Checkpoint as Checkpoint
from tfddl._src.callbacks.learning_rate import LearningRateScaling as LearningRateScaling
from tfddl._src.callbacks.learning_rate import LearningRateSchedule as LearningRateSchedule
from tfddl._src.callbacks.learning_rate import LearningRateWarmup as LearningRateWarmup
from tfddl._src.callbacks.load_checkpoint import load_checkpoint as load_checkpoint
from tfddl._src.callbacks.monitor import Monitor as Monitor
from tfddl._src.callbacks.synchronization import (
    BroadcastGlobalVariables as BroadcastGlobalVariables,
)
from tfddl._src.callbacks.synchronization import MetricAverage as MetricAverage
from tfddl._src.keras_hooks import OnRankZero as OnRankZero

__all__ = [
    "BroadcastGlobalVariables",
    "Checkpoint",
    "LearningRateScaling",
    "LearningRateSchedule",
    "LearningRateWarmup",
    "MetricAverage",
    "Monitor",
    "OnRankZero",
    "load_checkpoint",
]
