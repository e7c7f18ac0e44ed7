"""Horovod's callbacks (horovod/_keras/callbacks.py): its signatures for tfddl's callbacks."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras

from tfddl._src import callbacks
from tfddl._src.horovod.reductions import warn_no_effect

_INITIAL = 1.0
"""Stands for an `initial_lr` that isn't known yet."""


def _finding_initial_lr(init: Callable[..., None]) -> Callable[..., None]:
    """Lets a constructor do without ``initial_lr``, as before Horovod 0.21.

    It is then the optimizer's learning rate at the beginning of the training.
    """

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        self.finds_initial_lr = not args and "initial_lr" not in kwargs
        if self.finds_initial_lr:
            warnings.warn(
                f"{type(self).__name__}(…) without initial_lr is of Horovod before 0.21; write "
                "initial_lr=…, the learning rate of the optimizer.",
                DeprecationWarning,
                stacklevel=2,
            )
            kwargs["initial_lr"] = _INITIAL
        init(self, *args, **kwargs)

    return __init__


def _decay(multiplier: float, start_epoch: int, epoch: float) -> float:
    decayed: float = multiplier ** (epoch - start_epoch)
    return decayed


def _find_initial_lr(callback: Any) -> None:
    if callback.finds_initial_lr:
        callback.initial_lr = float(callback.model.optimizer.learning_rate)


_NO_DEVICE = "variables and metrics are sent from the worker's device."


class BroadcastGlobalVariablesCallback(callbacks.BroadcastGlobalVariables):
    """`tfddl.callbacks.BroadcastGlobalVariables`: acts before the first step."""

    def __init__(
        self, root_rank: int, device: str = "", local_variables: Sequence[Any] | None = None
    ) -> None:
        """Broadcasts the state of ``root_rank``, but for ``local_variables``."""
        warn_no_effect("device", device, _NO_DEVICE)
        super().__init__(root_rank, local_variables=local_variables or ())


class MetricAverageCallback(callbacks.MetricAverage):
    """`tfddl.callbacks.MetricAverage`, which `fit` doesn't need: its logs are the job's."""

    def __init__(self, device: str = "") -> None:
        warn_no_effect("device", device, _NO_DEVICE)
        super().__init__()


class LearningRateScheduleCallback(callbacks.LearningRateSchedule):
    """`tfddl.callbacks.LearningRateSchedule`, with Horovod's positional arguments.

    A ``multiplier`` that is a number multiplies once per epoch, from ``start_epoch`` on, as in
    Horovod since 0.23: ``initial_lr * multiplier ** (epoch - start_epoch)``. Without ``initial_lr``
    it is one factor for all epochs, as it was when that could be left out.
    """

    @_finding_initial_lr
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
        if not callable(multiplier) and not self.finds_initial_lr:
            multiplier = functools.partial(_decay, multiplier, start_epoch)
        super().__init__(
            initial_lr,
            multiplier,
            start_epoch=start_epoch,
            end_epoch=end_epoch,
            staircase=staircase,
            momentum_correction=momentum_correction,
            steps_per_epoch=steps_per_epoch,
        )

    def on_train_begin(self, logs: Any = None) -> None:
        """Takes the optimizer's learning rate for ``initial_lr``, where none was given."""
        super().on_train_begin(logs)
        _find_initial_lr(self)


class LearningRateWarmupCallback(callbacks.LearningRateWarmup):
    """`tfddl.callbacks.LearningRateWarmup`, with Horovod's positional arguments."""

    @_finding_initial_lr
    def __init__(
        self,
        initial_lr: float,
        warmup_epochs: int = 5,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            initial_lr,
            warmup_epochs=warmup_epochs,
            momentum_correction=momentum_correction,
            steps_per_epoch=steps_per_epoch,
            verbose=verbose,
        )

    def on_train_begin(self, logs: Any = None) -> None:
        """Takes the optimizer's learning rate for ``initial_lr``, where none was given."""
        super().on_train_begin(logs)
        _find_initial_lr(self)


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
        super().__init__(
            "best.weights.h5" if save_weights_only else "best.keras",
            monitor=monitor,
            verbose=verbose,
            save_best_only=True,
            save_weights_only=save_weights_only,
            mode=mode,
            save_freq=save_freq,
        )
