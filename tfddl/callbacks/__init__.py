"""Callbacks for `fit`. They go on every rank; files are written by rank 0.

Usage::

    model.fit(data, callbacks=[tfddl.callbacks.Checkpoint("checkpoints")])
"""

from tfddl.callbacks.checkpoint import Checkpoint as Checkpoint
from tfddl.callbacks.learning_rate import LearningRateScaling as LearningRateScaling
from tfddl.callbacks.learning_rate import LearningRateSchedule as LearningRateSchedule
from tfddl.callbacks.learning_rate import LearningRateWarmup as LearningRateWarmup
from tfddl.callbacks.loading import load_checkpoint as load_checkpoint
from tfddl.callbacks.monitor import Monitor as Monitor
from tfddl.callbacks.state import BroadcastGlobalVariables as BroadcastGlobalVariables
from tfddl.callbacks.state import MetricAverage as MetricAverage

__all__ = [
    "BroadcastGlobalVariables",
    "Checkpoint",
    "LearningRateScaling",
    "LearningRateSchedule",
    "LearningRateWarmup",
    "MetricAverage",
    "Monitor",
    "load_checkpoint",
]
