"""What a step adds to the logged losses, so that they come to means over the job's examples.

Keras logs a loss as the mean of the batches' means, each by its number of examples. Three things
make that differ from a mean over examples, and are corrected here: losses divided by sums of sample
weights, which differ between ranks; numbers that a step gives to a `Mean`, which Keras counts once
per batch; padding examples, which count as one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from tfddl._src.keras_hooks.batch_count import WEIGHTED_MEAN, num_examples, reduction
from tfddl._src.keras_hooks.patching import private, wrap_method
from tfddl._src.runtime import is_started
from tfddl._src.step_context import StepContext, current_step


def install() -> None:
    """Hooks into `keras.metrics.Mean`."""
    wrap_method(keras.metrics.Mean, "update_state", ("values", "sample_weight"), _update_mean)


def _update_mean(
    original: Callable[..., Any], self: Any, values: Any, sample_weight: Any = None
) -> Any:
    # A number has no length: Mean counts it once (keras/src/metrics/reduction_metrics.py), a batch
    # of one example as much as a full one. That hits the losses of single outputs wherever the
    # batch's size isn't static (CompileLoss, keras/src/trainers/compile_utils.py), metrics that
    # return one number, and what a user's own train_step gives to a Mean.
    examples = current_step().examples if is_started() else None
    if examples is not None and sample_weight is None and _is_number(values):
        sample_weight = examples
    return original(self, values, sample_weight)


def _is_number(values: Any) -> bool:
    shape = getattr(values, "shape", None)
    return isinstance(values, int | float) if shape is None else len(shape) == 0


@contextmanager
def logged_by_weight(model: Any, step: StepContext, totals: tf.Variable) -> Iterator[None]:
    """Makes the ranks' contributions to the logged loss add up to the global batch's.

    A loss that is divided by the sum of the weights is logged, in one process too, as a mean over
    the batches by their numbers of *examples*. So what a rank adds is the whole batch's number of
    examples, times the loss of its own, by the rank's part of the batch's *weights*.

    Args:
        model: Whose step is made within.
        step: The step's own count and examples.
        totals: Float64, (2,): set to 0; the step makes it all ranks' count and examples.
    """
    totals.assign([0.0, 0.0])

    def scale() -> tf.Tensor:
        count, examples = tf.unstack(tf.convert_to_tensor(totals))
        own = tf.math.divide_no_nan(step.count, count) * examples
        # Where all weights are 0, every loss is 0 (but for regularizers), and counts as it is.
        return tf.where(count > 0, own / tf.cast(tf.maximum(step.examples, 1), own.dtype), 1.0)

    with _losses_scaled(model, scale):
        yield


@contextmanager
def evaluated_by_weight(model: Any, weight: Any) -> Iterator[None]:
    """Logs a loss that is divided by the sum of the weights as the mean by these.

    Keras would log the mean over the batches by their numbers of examples, which depends on how
    the examples are cut into batches, and so on the number of workers.
    """
    leaves = [leaf for leaf in tf.nest.flatten(weight) if leaf is not None]
    reductions = {reduction(loss) for loss in tf.nest.flatten(getattr(model, "loss", None))}
    if reductions != {WEIGHTED_MEAN} or len(leaves) != 1:
        yield
        return
    weights = tf.cast(leaves[0], tf.float64)
    mean = tf.reduce_sum(weights) / tf.cast(num_examples(weights), tf.float64)
    with _losses_scaled(model, lambda: mean):
        yield


@contextmanager
def unchanged_unless(
    counts: tf.Tensor | None, variables: Callable[[], Sequence[Any]]
) -> Iterator[None]:
    """Undoes what a step does to variables, unless its batch counts.

    Args:
        counts: Boolean scalar; None counts.
        variables: Those that exist when it is called, before and after the step.
    """
    if counts is None:
        yield
        return
    before = _values(variables())
    yield
    for variable in variables():
        now = tf.convert_to_tensor(variable)
        old = before.get(id(variable), tf.zeros_like(now))
        variable.assign(tf.where(counts, now, old))


def metric_variables(model: Any) -> list[Any]:
    """The state of a model's metrics."""
    return [variable for metric in model.metrics for variable in metric.variables]


@contextmanager
def _losses_scaled(model: Any, scale: Callable[[], tf.Tensor]) -> Iterator[None]:
    """Multiplies what a step adds to the state of the logged losses."""
    before = _values(_loss_variables(model))
    yield
    factor = scale()
    for variable in _loss_variables(model):
        now = tf.convert_to_tensor(variable)
        old = before.get(id(variable), tf.zeros_like(now))
        variable.assign(old + tf.cast(factor, old.dtype) * (now - old))


def _loss_variables(model: Any) -> list[Any]:
    # Trainer.compile (keras/src/trainers/trainer.py) makes both: the Mean of the whole loss, and
    # the losses of single outputs.
    trackers = [private(model, "_loss_tracker"), *private(model, "_compile_loss").metrics]
    return [variable for tracker in trackers for variable in tracker.variables]


def _values(variables: Sequence[Any]) -> dict[int, tf.Tensor]:
    """What variables hold now, by their ids.

    Metrics make theirs in the first step: what isn't here began with zeros.
    """
    return {id(v): tf.identity(tf.convert_to_tensor(v)) for v in variables}
