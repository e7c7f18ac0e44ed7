"""Horovod's callbacks: its signatures, tfddl's doing. They go on every rank."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from tfddl import callbacks
from tfddl._src.horovod.reductions import warn_no_effect

_NO_DEVICE = "variables and metrics travel from the worker's device."


class BroadcastGlobalVariablesCallback(callbacks.BroadcastGlobalVariables):
    """See `tfddl.callbacks.BroadcastGlobalVariables`: acts before the first step."""

    def __init__(
        self, root_rank: int, device: str = "", local_variables: Sequence[Any] | None = None
    ) -> None:
        """Takes the rank whose state all take over, and what stays each rank's own."""
        warn_no_effect("device", device, _NO_DEVICE)
        super().__init__(root_rank, local_variables=local_variables or ())


class MetricAverageCallback(callbacks.MetricAverage):
    """See `tfddl.callbacks.MetricAverage`: what `fit` logs is the job's anyway."""

    def __init__(self, device: str = "") -> None:
        """Takes a device that has no effect."""
        warn_no_effect("device", device, _NO_DEVICE)
        super().__init__()


class LearningRateScheduleCallback(callbacks.LearningRateSchedule):
    """See `tfddl.callbacks.LearningRateSchedule`."""

    def __init__(  # noqa: PLR0913 - Horovod's signature
        self,
        initial_lr: float,
        multiplier: float | Callable[[float], float],
        start_epoch: int = 0,
        end_epoch: int | None = None,
        staircase: bool = True,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
    ) -> None:
        """Takes the schedule."""
        super().__init__(
            initial_lr,
            multiplier,
            start_epoch=start_epoch,
            end_epoch=end_epoch,
            staircase=staircase,
            momentum_correction=momentum_correction,
            steps_per_epoch=steps_per_epoch,
        )


class LearningRateWarmupCallback(callbacks.LearningRateWarmup):
    """See `tfddl.callbacks.LearningRateWarmup`."""

    def __init__(
        self,
        initial_lr: float,
        warmup_epochs: int = 5,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
        verbose: int = 0,
    ) -> None:
        """Takes the goal."""
        super().__init__(
            initial_lr,
            warmup_epochs=warmup_epochs,
            momentum_correction=momentum_correction,
            steps_per_epoch=steps_per_epoch,
            verbose=verbose,
        )


class BestModelCheckpoint(keras.callbacks.ModelCheckpoint):
    """Keras' `ModelCheckpoint` with ``save_best_only``; set its ``filepath`` before `fit`."""

    def __init__(
        self,
        monitor: str = "val_loss",
        verbose: int = 0,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
    ) -> None:
        """Takes what `ModelCheckpoint` does, but for the file."""
        super().__init__(
            "best.weights.h5" if save_weights_only else "best.keras",
            monitor=monitor,
            verbose=verbose,
            save_best_only=True,
            save_weights_only=save_weights_only,
            mode=mode,
            save_freq=save_freq,
        )
