"""`train_step` and `test_step` with what the job needs: counts, the request to stop, padding.

In a job of one worker, steps only know their number of examples, so that it logs what several do.

The wrapped step is put on the model itself, since users override `train_step` in classes of their
own. It stays there: Keras keeps the compiled function from one `fit` to the next.
"""

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import keras
import tensorflow as tf

from tfddl._src.gradients import ReductionOptions
from tfddl._src.keras_hooks import batch_count, compiled_step, scope, virtual_fit
from tfddl._src.keras_hooks.compile import refuse_virtual_xla, trains_together
from tfddl._src.keras_hooks.fit_state import current_fit
from tfddl._src.keras_hooks.loss_metrics import (
    evaluated_by_weight,
    logged_by_weight,
    metric_variables,
    unchanged_unless,
)
from tfddl._src.keras_hooks.moving_statistics import MovingStatistics, synchronized
from tfddl._src.keras_hooks.optimizer import innermost, loss_divisor
from tfddl._src.keras_hooks.patching import wrap_method
from tfddl._src.keras_hooks.step_state import StepState, new_last_examples
from tfddl._src.runtime import current, is_started
from tfddl._src.step_context import StepContext, in_step


def install() -> None:
    """Hooks into the making of training and test functions."""
    # fit, evaluate and the *_on_batch methods call them before each first step; where a function is
    # there already, Keras returns it unless `force` (keras/src/backend/tensorflow/trainer.py).
    wrap_method(keras.Model, "make_train_function", ("force",), _make_train_function)
    wrap_method(keras.Model, "make_test_function", ("force",), _make_test_function)


def _make_train_function(original: Callable[..., Any], self: Any, force: bool = False) -> Any:
    refuse_virtual_xla(self.optimizer, self.jit_compile)
    if virtual_fit.virtual_workers_of(self) is not None:
        virtual_fit.make_train_function(self, force=force)
        return None
    if trains_together(self.optimizer):
        if scope.contains(self):
            scope.write_in_place(self)
        # Compiled before, perhaps, with virtual workers or another optimizer.
        is_virtual = hasattr(self.train_step, "tfddl_virtual")
        if is_virtual or not hasattr(self.train_step, "tfddl_state"):
            self.train_step = _training_step(self, virtual_fit.unwrapped(self.train_step))
            force = True  # A function traced before knows nothing of counts.
    elif _is_alone() and not hasattr(self.train_step, "tfddl_counts"):
        self.train_step = _counting_step(self, self.train_step, testing=False)
        force = True
    if not compiled_step.is_compiled(self):
        return original(self, force)
    with compiled_step.left_to_parts(self):
        return original(self, force)


def _make_test_function(original: Callable[..., Any], self: Any, force: bool = False) -> Any:
    if trains_together(self.optimizer):
        if not hasattr(self.test_step, "tfddl_last_examples"):
            self.test_step = _testing_step(self, virtual_fit.unwrapped(self.test_step))
            force = True
        if virtual_fit.virtual_workers_of(self) is not None:
            virtual_fit.make_test_function(self, force=force)
            return None
    elif _is_alone() and not hasattr(self.test_step, "tfddl_counts"):
        self.test_step = _counting_step(self, self.test_step, testing=True)
        force = True
    return original(self, force)


def _is_alone() -> bool:
    return is_started() and current().cluster.size == 1


def _training_step(model: Any, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    state = StepState.new()

    def train_step(data: Any) -> Any:
        if not trains_together(model.optimizer):  # Compiled again, with another optimizer.
            return original(data)
        compiled_step.make_variables(model, lambda: original(data))
        x, _, weight = keras.utils.unpack_x_y_sample_weight(data)
        counts = batch_count.counts(weight)
        averaging: ReductionOptions = innermost(model.optimizer).tfddl_options
        step = _new_step(model, x, weight, counts, state)
        pooled = MovingStatistics(model, averaging.local)
        is_plain = getattr(original, "__func__", None) is keras.Model.train_step
        # Keras' own step has one loss, from which all gradients come.
        divisor = loss_divisor(model.optimizer) if is_plain else 1
        is_weighted = averaging.by_count and batch_count.is_weighted(model, weight)
        # In a small step, what nobody reads costs as much as what somebody does: each operation
        # takes some microseconds.
        step = dataclasses.replace(
            step,
            statistics=pooled if pooled.variables else None,
            totals=state.totals if is_weighted or not averaging.by_count else None,
            loss_divisor=divisor,
            compiles=compiled_step.is_compiled(model) and compiled_step.updates_alike(model),
        )
        logged = logged_by_weight(model, step, state.totals) if is_weighted else nullcontext()
        with (
            in_step(step),
            logged,
            unchanged_unless(counts, lambda: _own_state(model, pooled)),
        ):
            outputs = original(data)
        if compiled_step.is_compiled(model) and not is_plain:
            compiled_step.warn_of_own_step(model)
        # Tied to the outputs, because a step that finds no data would be counted as well.
        with tf.control_dependencies(tf.nest.flatten(outputs)):
            _note_done(state, step.examples, by_count=averaging.by_count)
        return outputs

    train_step.tfddl_state = state  # type: ignore[attr-defined]
    train_step.tfddl_original = original  # type: ignore[attr-defined]
    return train_step


def _new_step(
    model: Any, x: Any, weight: Any, counts: tf.Tensor | None, state: StepState
) -> StepContext:
    by_count = innermost(model.optimizer).tfddl_options.by_count
    count = batch_count.loss_count(model, x, weight) if by_count else tf.constant(1.0)
    num_examples = batch_count.num_examples(x)
    if counts is not None:
        count = tf.where(counts, count, tf.zeros_like(count))
        num_examples = tf.where(counts, num_examples, 0)
    return StepContext(
        count=count,
        averages=batch_count.averages(model),
        stop=state.stop,
        stop_agreed=state.stop_agreed,
        examples=num_examples,
        reports_progress=current_fit() is not None,
    )


def _note_done(state: StepState, num_examples: tf.Tensor | None, *, by_count: bool) -> None:
    state.steps.assign_add(1)
    state.examples.assign_add(num_examples)
    state.last_examples.assign(num_examples)
    if not by_count:
        mine = tf.cast(num_examples, tf.float64) * current().cluster.size
        is_uneven = tf.logical_and(state.totals[1] > 0, mine != state.totals[1])
        state.uneven.assign(tf.logical_or(state.uneven, is_uneven))


def _testing_step(model: Any, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    with tf.init_scope(), tf.device(current().process_group.device):
        last = new_last_examples()

    def test_step(data: Any) -> Any:
        if not trains_together(model.optimizer):  # Compiled again, with another optimizer.
            return original(data)
        _, _, weight = keras.utils.unpack_x_y_sample_weight(data)
        counts = batch_count.counts(weight)
        num_examples = batch_count.batch_size(data)
        with (
            in_step(StepContext(examples=num_examples)),
            evaluated_by_weight(model, weight),
            unchanged_unless(counts, lambda: metric_variables(model)),
        ):
            outputs = original(data)
        with tf.control_dependencies([t for t in tf.nest.flatten(outputs) if tf.is_tensor(t)]):
            # What has no batch counts as one example.
            taken = tf.constant(1, tf.int64) if num_examples is None else num_examples
            last.assign(taken if counts is None else tf.where(counts, taken, 0))
        return outputs

    test_step.tfddl_last_examples = last  # type: ignore[attr-defined]
    test_step.tfddl_original = original  # type: ignore[attr-defined]
    return test_step


def _counting_step(
    model: Any, original: Callable[[Any], Any], *, testing: bool
) -> Callable[[Any], Any]:
    """A step of the only worker, which logs as it would among several."""

    def step(data: Any) -> Any:
        # Replicas are traced in threads that take turns, and would see each other's steps
        # (tensorflow/python/distribute/mirrored_run.py).
        if not is_started() or tf.distribute.get_strategy().num_replicas_in_sync > 1:
            return original(data)
        # A user's own step may get anything.
        weight = data[2] if testing and isinstance(data, tuple) and len(data) == 3 else None
        with in_step(StepContext(examples=batch_count.batch_size(data))):
            with evaluated_by_weight(model, weight):
                return original(data)

    step.tfddl_counts = True  # type: ignore[attr-defined]
    step.tfddl_original = original  # type: ignore[attr-defined]
    return step


def _own_state(model: Any, pooled: MovingStatistics) -> list[Any]:
    """What a step changes without asking the other ranks."""
    shared = {id(v) for v in [*pooled.variables, *synchronized(model)]}
    own = [v for v in model.non_trainable_weights if id(v) not in shared]
    return [*metric_variables(model), *own]
