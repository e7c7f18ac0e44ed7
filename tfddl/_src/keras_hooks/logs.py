"""What `fit` and `evaluate` log is the job's: of all ranks' examples, the same on every rank."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfddl._src.collectives import DisplayName, ReduceOp, grouped_allreduce
from tfddl._src.keras_hooks import resume, scope, virtual_fit
from tfddl._src.keras_hooks.data_errors import raise_on_all_ranks
from tfddl._src.keras_hooks.fit_state import FitState, running_fit
from tfddl._src.keras_hooks.patching import wrap_method
from tfddl._src.keras_hooks.step_state import last_examples
from tfddl._src.keras_hooks.stopping import agree_on_early_end


def install() -> None:
    """Hooks into the logs of `fit` and `evaluate`."""
    # Keras calls it once at the end of each epoch's training and of each evaluation, outside of the
    # steps, and logs what it returns (TensorFlowTrainer.fit and .evaluate,
    # keras/src/backend/tensorflow/trainer.py, Keras 3.11 to 3.15). Not by a callback: those get
    # logs that are final, and can't change what Keras prints and what `evaluate` returns.
    wrap_method(keras.Model, "_get_metrics_result_or_logs", ("logs",), _get_results)


def _get_results(original: Callable[..., Any], self: Any, logs: Any) -> Any:
    fit = running_fit(self)
    if fit is None or not (fit.training or fit.validating):
        return original(self, logs)
    was_training, fit.training = fit.training, False
    if was_training:
        _end_epoch(fit)
    if not fit.together:
        return original(self, logs)
    raise_on_all_ranks(fit)
    if virtual_fit.virtual_workers_of(self) is None:
        _sum_metrics(self)
    else:
        virtual_fit.sum_metrics(self, training=was_training)
    results = original(self, logs)
    # Keras returns what it got where a user's own step returns other names than the metrics'.
    return _average_own_logs(self, results, training=was_training) if results is logs else results


def _end_epoch(fit: FitState) -> None:
    resume.end_resumed_epoch(fit)
    if fit.together:
        agree_on_early_end(fit)
    # Without a stop, an epoch of fewer steps than were wanted has no more data.
    is_at_end = fit.steps is not None and fit.done >= fit.steps
    fit.is_complete = is_at_end or not fit.model.stop_training


def _sum_metrics(model: Any) -> None:
    """Adds up the ranks' metric states: totals and counts add up, results don't average."""
    variables = [
        variable
        for metric in model.metrics
        for variable in metric.variables
        if not scope.is_summed_on_read(variable)
    ]
    totals = grouped_allreduce(
        [tf.convert_to_tensor(v) for v in variables], ReduceOp.SUM, name=DisplayName("metrics")
    )
    for variable, total in zip(variables, totals, strict=True):
        variable.assign(total)


def _average_own_logs(model: Any, logs: Any, *, training: bool) -> Any:
    """The job's logs where a user's own `train_step` returned others than Keras would.

    A name that is also that of a metric which has been updated stands for the metric's result,
    which may be a dictionary of several. Any other value is of the last step alone: it becomes the
    mean over the ranks, by their examples in that step.
    """
    if not isinstance(logs, dict) or not logs:
        return logs
    metered = {
        metric.name: metric.result()
        for metric in model.metrics
        if metric.name in logs and any(np.any(np.asarray(v)) for v in metric.variables)
    }
    names = sorted(set(logs) - set(metered))
    if not names:
        return metered
    if virtual_fit.virtual_workers_of(model) is not None:
        *sums, total = virtual_fit.sum_logs(model, names, training=training)
    else:
        *sums, total = _sum_own_logs(model, logs, names, training=training)
    means = [tf.math.divide_no_nan(part, total) for part in sums]
    return {**dict(zip(names, means, strict=True)), **metered}


def _sum_own_logs(
    model: Any, logs: dict[str, Any], names: Sequence[str], *, training: bool
) -> list[tf.Tensor]:
    """The sums over the ranks of values times examples, then that of the examples."""
    examples = last_examples(model, training=training)
    values = [tf.reduce_mean(tf.cast(logs[name], tf.float32)) for name in names]
    # Not value * 0 for a padding example: its value may be NaN.
    parts = [examples * value if examples else tf.zeros_like(value) for value in values]
    return grouped_allreduce(
        [*parts, tf.constant(float(examples))],
        ReduceOp.SUM,
        name=DisplayName(f"logs {', '.join(names)}"),
    )
