"""Callbacks for `fit`. They go on every rank; files are written by rank 0.

Usage::

    model.fit(data, callbacks=[tfddl.callbacks.Checkpoint("checkpoints")])
"""

from tfddl._src.callbacks import BroadcastGlobalVariables as BroadcastGlobalVariables
from tfddl._src.callbacks import Checkpoint as Checkpoint
from tfddl._src.callbacks import LearningRateScaling as LearningRateScaling
from tfddl._src.callbacks import LearningRateSchedule as LearningRateSchedule
from tfddl._src.callbacks import LearningRateWarmup as LearningRateWarmup
from tfddl._src.callbacks import MetricAverage as MetricAverage
from tfddl._src.callbacks import Monitor as Monitor
from tfddl._src.callbacks import OnRankZero as OnRankZero
from tfddl._src.callbacks import load_checkpoint as load_checkpoint

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
