"""Learning rates for several workers: scaled, warmed up, scheduled.

All ranks compute the same from the epoch and the batch alone, also after a resume within an epoch.
`fit` stops ranks whose learning rates differ.
"""

import math
import sys
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfddl._src.keras_hooks import FitState, JobCallback
from tfddl._src.keras_hooks.optimizer import innermost, planned_size
from tfddl._src.runtime import current
from tfddl.errors import UnsupportedError

_RULES: dict[str, Callable[[int], float]] = {
    "linear": float,
    "sqrt": math.sqrt,
    "none": lambda _: 1.0,
}


class LearningRateSchedule(keras.callbacks.Callback):
    """Sets the learning rate to ``initial_lr * multiplier(epoch)``, from one epoch to another.

    Several of them, for consecutive epochs, make a schedule; `LearningRateWarmup` may come first.

    Where the learning rate changes, the velocity of SGD with momentum is multiplied by the ratio of
    the rates (``momentum_correction``), because Keras' velocity has the learning rate in it: the
    momentum correction of section 3 of the reference.

    References:
        "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017,
        https://arxiv.org/abs/1706.02677
    """

    def __init__(  # noqa: PLR0913 - as Horovod's users know it
        self,
        initial_lr: float,
        multiplier: float | Callable[[float], float],
        *,
        start_epoch: int = 0,
        end_epoch: int | None = None,
        staircase: bool = True,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
    ) -> None:
        """Checks the schedule.

        Args:
            initial_lr: The learning rate that is multiplied, > 0.
            multiplier: A constant, or a function of the epoch: a whole number with ``staircase``,
                and otherwise a fraction that grows with every batch.
            start_epoch: The first epoch that it acts in, from 0.
            end_epoch: The first epoch that it no longer acts in; None: it acts until the end.
            staircase: Whether the learning rate changes at the beginning of epochs only.
            momentum_correction: Whether SGD's velocity is multiplied, too.
            steps_per_epoch: The number of steps; needed without ``staircase`` where `fit` doesn't
                know it.

        Raises:
            UnsupportedError: ``initial_lr`` isn't positive.
        """
        super().__init__()
        if not initial_lr > 0:
            raise UnsupportedError(f"initial_lr is {initial_lr}; expected a positive number.")
        self.initial_lr = initial_lr
        self._multiplier: Callable[[float], float] = (
            multiplier if callable(multiplier) else lambda _: multiplier
        )
        self._staircase = staircase or not callable(multiplier)
        self._epochs = range(start_epoch, sys.maxsize if end_epoch is None else end_epoch)
        self._momentum_correction = momentum_correction
        self._steps = steps_per_epoch
        self._epoch = 0
        self._is_first = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Checks the optimizer and the number of steps.

        Raises:
            UnsupportedError: The optimizer has a schedule of its own, or the number of steps is
                needed and unknown.
        """
        _refuse_other_schedules(self.model.optimizer, type(self).__name__)
        if not self._staircase and self._steps_per_epoch() is None:
            raise UnsupportedError(
                f"{type(self).__name__} changes the learning rate with every batch, and fit "
                "doesn't know how many an epoch has. HINT: give it steps_per_epoch."
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes which epoch begins."""
        self._epoch = epoch
        self._is_first = True

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Sets the learning rate: in every batch, or with ``staircase`` in an epoch's first."""
        # Not in on_epoch_begin: after a resume the epoch's first batch needn't be number 0, and the
        # checkpoint's learning rate is restored after on_train_begin.
        if self._epoch in self._epochs and (self._is_first or not self._staircase):
            at = float(self._epoch)
            if not self._staircase:
                at += self._epochs_of(batch)
            self._set(self.initial_lr * self._multiplier(at))
        self._is_first = False

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Adds the learning rate to the logs."""
        if logs is not None:
            logs["learning_rate"] = _rate(self.model.optimizer)

    def _steps_per_epoch(self) -> int | None:
        steps: int | None = self._steps or self.params.get("steps")
        return steps

    def _epochs_of(self, steps: int) -> float:
        in_epoch = self._steps_per_epoch()
        assert in_epoch is not None  # `on_train_begin` has checked it.
        return steps / in_epoch

    def _set(self, rate: float) -> None:
        optimizer = innermost(self.model.optimizer)
        before = _rate(optimizer)
        optimizer.learning_rate = rate
        if self._momentum_correction and isinstance(optimizer, keras.optimizers.SGD):
            # SGD.update_step: v = momentum * v - learning_rate * gradient (keras/src/optimizers/
            # sgd.py). Those of Adam, RMSprop and others have no learning rate in them.
            if optimizer.momentum and before > 0 and optimizer.built:
                for velocity in optimizer.momentums:
                    velocity.assign(tf.convert_to_tensor(velocity) * (rate / before))


class LearningRateWarmup(LearningRateSchedule):
    """Lets the learning rate grow from ``initial_lr / size`` to ``initial_lr``, batch by batch.

    A learning rate that suits a large global batch makes the first steps diverge.

    References:
        "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017,
        https://arxiv.org/abs/1706.02677
    """

    def __init__(
        self,
        initial_lr: float,
        *,
        warmup_epochs: int = 5,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
        verbose: int = 0,
    ) -> None:
        """Checks the schedule.

        Args:
            initial_lr: The learning rate at the end, such as ``1e-3 * tfddl.size()``, > 0.
            warmup_epochs: The number of epochs until then, at least 1.
            momentum_correction: As for `LearningRateSchedule`.
            steps_per_epoch: As for `LearningRateSchedule`.
            verbose: Above 0, rank 0 prints a line at the end.

        Raises:
            UnsupportedError: ``initial_lr`` isn't positive, ``warmup_epochs`` is less than 1.
        """
        if warmup_epochs < 1:
            raise UnsupportedError(f"warmup_epochs is {warmup_epochs}; expected at least 1.")
        self._warmup_epochs = warmup_epochs
        self._verbose = verbose
        super().__init__(
            initial_lr,
            self._ramp,
            end_epoch=warmup_epochs,
            staircase=False,
            momentum_correction=momentum_correction,
            steps_per_epoch=steps_per_epoch,
        )

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Adds the learning rate to the logs; prints a line at the end of the warm-up."""
        super().on_epoch_end(epoch, logs)
        if self._verbose and epoch == self._warmup_epochs - 1 and current().cluster.rank == 0:
            sys.stdout.write(
                f"\nEpoch {epoch + 1}: the learning rate is warmed up to "
                f"{_rate(self.model.optimizer):.6g}\n"
            )

    def _ramp(self, epoch: float) -> float:
        size = planned_size(self.model.optimizer)
        # The last batch of the last epoch is the first with the whole learning rate. With
        # steps_per_execution, Keras calls on_train_batch_begin for the first of several batches.
        stride = self.model.steps_per_execution
        done = (epoch + self._epochs_of(stride)) / self._warmup_epochs
        return (1 + (size - 1) * min(done, 1.0)) / size


class LearningRateScaling(JobCallback):
    """Sets the learning rate to that of one worker times a function of their number.

    At the start it is the same as ``learning_rate=base_lr * tfddl.size()``. Besides, where training
    is resumed with another number of workers, the learning rate of the checkpoint is scaled by the
    change.

    References:
        The linear rule: "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017,
        https://arxiv.org/abs/1706.02677. The square root: "One weird trick for parallelizing
        convolutional neural networks", 2014, https://arxiv.org/abs/1404.5997
    """

    def __init__(self, base_lr: float, *, rule: str = "linear") -> None:
        """Checks the rule.

        Args:
            base_lr: The learning rate of one worker, > 0.
            rule: "linear" (times the workers), "sqrt" (times their square root), or "none".

        Raises:
            UnsupportedError: ``base_lr`` isn't positive, or there is no such rule.
        """
        super().__init__()
        if not base_lr > 0:
            raise UnsupportedError(f"base_lr is {base_lr}; expected a positive number.")
        if rule not in _RULES:
            raise UnsupportedError(f"rule is {rule!r}; expected one of {', '.join(_RULES)}.")
        self._base_lr = base_lr
        self._factor = _RULES[rule]
        self._pending = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Sets the learning rate.

        Raises:
            UnsupportedError: The optimizer has a schedule of its own.
        """
        _refuse_other_schedules(self.model.optimizer, "LearningRateScaling")
        rate = self._base_lr * self._factor(planned_size(self.model.optimizer))
        innermost(self.model.optimizer).learning_rate = rate
        self._pending = True

    def after_epoch_begin(self, fit: FitState) -> None:
        """After a resume, scales the learning rate of the checkpoint."""
        if self._pending and fit.restored_size is not None:
            optimizer = innermost(fit.model.optimizer)
            change = self._factor(planned_size(optimizer)) / self._factor(fit.restored_size)
            optimizer.learning_rate = _rate(optimizer) * change
        self._pending = False


def _rate(optimizer: Any) -> float:
    return float(tf.convert_to_tensor(innermost(optimizer).learning_rate))


def _refuse_other_schedules(optimizer: Any, name: str) -> None:
    # Asked of the config: `optimizer.learning_rate` is the schedule's present value.
    given = innermost(optimizer).get_config()["learning_rate"]
    if isinstance(given, dict):
        raise UnsupportedError(
            f"{name} can't set the learning rate of an optimizer that was given a schedule "
            f"({given.get('class_name')}). HINT: give the optimizer a number, or leave the "
            "callback out."
        )
