"""`train_step` and `test_step`: the count of the batch, the stop flag, stand-ins.

In a job of one worker, steps only know their number of examples, so that it logs what several do.

The wrapped step is put on the model itself, since users override `train_step` in classes of their
own. It stays there: Keras keeps the compiled function from one `fit` to the next.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import keras
import tensorflow as tf

from tfddl._src.collectives import ReduceOp
from tfddl._src.gradients import ReductionOptions
from tfddl._src.keras_hooks import scope
from tfddl._src.keras_hooks.compile import NO_XLA, exchanges_gradients, trains_together
from tfddl._src.keras_hooks.fit_state import current_fit
from tfddl._src.keras_hooks.moving_statistics import MovingStatistics, synchronized
from tfddl._src.keras_hooks.optimizer import innermost, loss_divisor
from tfddl._src.keras_hooks.patching import wrap_method
from tfddl._src.moments import NEGLIGIBLE_COUNT
from tfddl._src.runtime import current, is_started
from tfddl._src.step_context import StepContext, current_step, in_step
from tfddl.errors import UnsupportedError

_WEIGHTED = "mean_with_sample_weight"


def install() -> None:
    """Puts the hooks in place."""
    wrap_method(keras.Model, "make_train_function", ("force",), _make_train_function)
    wrap_method(keras.Model, "make_test_function", ("force",), _make_test_function)
    wrap_method(keras.metrics.Mean, "update_state", ("values", "sample_weight"), _update_mean)


@dataclasses.dataclass(frozen=True)
class StepState:
    """What a model's training steps and the loop around them tell each other."""

    stop: tf.Variable
    """Above 0 where this rank wants training to end; sent with every step."""

    stop_agreed: tf.Variable
    """Above 0 once the step has heard that from any rank."""

    steps: tf.Variable
    """Steps run since it was last set to 0."""

    totals: tf.Variable
    """All ranks' count and number of examples in the step, once it has heard of them."""

    uneven: tf.Variable
    """Whether ranks had different numbers of examples in a step that didn't weigh them by these."""

    examples: tf.Variable
    """Examples that this rank has trained on since the state was made; stand-ins don't count."""

    last_examples: tf.Variable
    """Examples of the last step; 0 for a stand-in."""

    @classmethod
    def new(cls) -> "StepState":
        """State for a model, where the gradients stay: on the CPU, or on the GPU with NCCL."""
        with tf.init_scope(), tf.device(current().process_group.device):
            return cls(
                stop=tf.Variable(0.0, trainable=False, name="tfddl_stop"),
                stop_agreed=tf.Variable(0.0, trainable=False, name="tfddl_stop_agreed"),
                totals=tf.Variable(
                    [0.0, 0.0], trainable=False, dtype=tf.float64, name="tfddl_totals"
                ),
                steps=tf.Variable(0, trainable=False, dtype=tf.int64, name="tfddl_steps"),
                uneven=tf.Variable(False, trainable=False, name="tfddl_uneven"),
                examples=tf.Variable(0, trainable=False, dtype=tf.int64, name="tfddl_examples"),
                last_examples=_new_last_examples(),
            )

    def clear_stop(self) -> None:
        """Nobody wants training to end, as far as is known."""
        self.stop.assign(0.0)
        self.stop_agreed.assign(0.0)


def _new_last_examples() -> tf.Variable:
    return tf.Variable(0, trainable=False, dtype=tf.int64, name="tfddl_last_examples")


def step_state(model: Any) -> StepState:
    """The state of a model whose train function has been made."""
    return model.train_step.tfddl_state


def last_examples(model: Any, *, training: bool) -> int:
    """How many examples this rank's last training or testing step had; 0 for a stand-in."""
    variable = step_state(model).last_examples if training else model.test_step.tfddl_last_examples
    return int(variable.numpy())


def _make_train_function(original: Callable[..., Any], self: Any, force: bool = False) -> Any:
    if exchanges_gradients(self.optimizer) and self.jit_compile:
        raise UnsupportedError(NO_XLA)
    if trains_together(self.optimizer):
        if scope.contains(self):
            scope.write_in_place(self)
        if not hasattr(self.train_step, "tfddl_state"):
            self.train_step = _training_step(self, self.train_step)
            force = True  # A function traced before knows nothing of counts.
    elif _is_alone() and not hasattr(self.train_step, "tfddl_counts"):
        self.train_step = _counting_step(self, self.train_step, testing=False)
        force = True
    return original(self, force)


def _make_test_function(original: Callable[..., Any], self: Any, force: bool = False) -> Any:
    if trains_together(self.optimizer):
        if not hasattr(self.test_step, "tfddl_last_examples"):
            self.test_step = _testing_step(self, self.test_step)
            force = True
    elif _is_alone() and not hasattr(self.test_step, "tfddl_counts"):
        self.test_step = _counting_step(self, self.test_step, testing=True)
        force = True
    return original(self, force)


def _is_alone() -> bool:
    return is_started() and current().cluster.size == 1


def _training_step(model: Any, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    state = StepState.new()

    def train_step(data: Any) -> Any:
        if not trains_together(model.optimizer):  # Compiled anew, with another optimizer.
            return original(data)
        x, _, weight = keras.utils.unpack_x_y_sample_weight(data)
        counts = _stand_in(weight)
        averaging: ReductionOptions = innermost(model.optimizer).tfddl_options
        by_count = averaging.by_count
        count = _count(model, x, weight) if by_count else tf.constant(1.0)
        num_examples = _num_examples(x)
        if counts is not None:
            count = tf.where(counts, count, tf.zeros_like(count))
            num_examples = tf.where(counts, num_examples, 0)
        pooled = MovingStatistics(model, averaging.local)
        is_plain = getattr(original, "__func__", None) is keras.Model.train_step
        step = StepContext(
            count=count,
            averages=_averages(model),
            stop=state.stop,
            stop_agreed=state.stop_agreed,
            totals=state.totals,
            statistics=pooled,
            examples=num_examples,
            # Keras' own step has one loss, from which all gradients come.
            loss_divisor=loss_divisor(model.optimizer) if is_plain else 1,
            reports_progress=current_fit() is not None,
        )
        is_weighted = by_count and _is_weighted(model, weight)
        logged = _logged_by_weight(model, step, state.totals) if is_weighted else nullcontext()
        with (
            in_step(step),
            logged,
            _unchanged_unless(counts, lambda: _own_state(model, pooled)),
        ):
            outputs = original(data)
        # Tied to the outputs, because a step without data would count as well.
        with tf.control_dependencies(tf.nest.flatten(outputs)):
            state.steps.assign_add(1)
            state.examples.assign_add(num_examples)
            state.last_examples.assign(num_examples)
            if not by_count:
                mine = tf.cast(num_examples, tf.float64) * current().cluster.size
                is_uneven = tf.logical_and(state.totals[1] > 0, mine != state.totals[1])
                state.uneven.assign(tf.logical_or(state.uneven, is_uneven))
        return outputs

    train_step.tfddl_state = state  # type: ignore[attr-defined]
    return train_step


@contextmanager
def _logged_by_weight(model: Any, step: StepContext, totals: tf.Variable) -> Iterator[None]:
    """Makes the ranks' contributions to the logged loss add up to the global batch's.

    A loss that is divided by the sum of the weights is logged, in one process too, as a mean over
    the batches by their numbers of *examples*. So what a rank adds is the whole batch's number of
    examples, times the loss of its own, by the rank's part of the batch's *weights*.
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
def _losses_scaled(model: Any, scale: Callable[[], tf.Tensor]) -> Iterator[None]:
    """Lets a step add so many times what it would to what is logged of the losses."""
    before = _values(_loss_variables(model))
    yield
    factor = scale()
    for variable in _loss_variables(model):
        now = tf.convert_to_tensor(variable)
        old = before.get(id(variable), tf.zeros_like(now))
        variable.assign(old + tf.cast(factor, old.dtype) * (now - old))


def _loss_variables(model: Any) -> list[Any]:
    """The state of what is logged of the loss, and of those that it is the sum of."""
    trackers = [model._loss_tracker, *model._compile_loss.metrics]
    return [variable for tracker in trackers for variable in tracker.variables]


def _values(variables: Sequence[Any]) -> dict[int, tf.Tensor]:
    """What variables hold now, by their ids.

    Metrics make theirs in the first step: what isn't here began with zeros.
    """
    return {id(v): tf.identity(tf.convert_to_tensor(v)) for v in variables}


def _testing_step(model: Any, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    with tf.init_scope(), tf.device(current().process_group.device):
        last = _new_last_examples()

    def test_step(data: Any) -> Any:
        if not trains_together(model.optimizer):  # Compiled anew, with another optimizer.
            return original(data)
        _, _, weight = keras.utils.unpack_x_y_sample_weight(data)
        counts = _stand_in(weight)
        num_examples = _batch_size(data)
        with (
            in_step(StepContext(examples=num_examples)),
            _evaluated_by_weight(model, weight),
            _unchanged_unless(counts, lambda: _metric_variables(model)),
        ):
            outputs = original(data)
        with tf.control_dependencies([t for t in tf.nest.flatten(outputs) if tf.is_tensor(t)]):
            # What has no batch counts as one example.
            taken = tf.constant(1, tf.int64) if num_examples is None else num_examples
            last.assign(taken if counts is None else tf.where(counts, taken, 0))
        return outputs

    test_step.tfddl_last_examples = last  # type: ignore[attr-defined]
    return test_step


def _counting_step(
    model: Any, original: Callable[[Any], Any], *, testing: bool
) -> Callable[[Any], Any]:
    """A step of the only worker, which logs as it would among several."""

    def step(data: Any) -> Any:
        # Replicas are traced in threads that take turns, and would see each other's steps.
        if not is_started() or tf.distribute.get_strategy().num_replicas_in_sync > 1:
            return original(data)
        # A step of the user's own may get anything.
        weight = data[2] if testing and isinstance(data, tuple) and len(data) == 3 else None
        with in_step(StepContext(examples=_batch_size(data))):
            with _evaluated_by_weight(model, weight):
                return original(data)

    step.tfddl_counts = True  # type: ignore[attr-defined]
    return step


@contextmanager
def _evaluated_by_weight(model: Any, weight: Any) -> Iterator[None]:
    """Logs a loss that is divided by the sum of the weights as the mean by these.

    Keras would log the mean over the batches by their numbers of examples, which depends on how
    the examples are cut into batches, and so on the number of workers.
    """
    leaves = [leaf for leaf in tf.nest.flatten(weight) if leaf is not None]
    reductions = {_reduction(loss) for loss in tf.nest.flatten(getattr(model, "loss", None))}
    if reductions != {_WEIGHTED} or len(leaves) != 1:
        yield
        return
    weights = tf.cast(leaves[0], tf.float64)
    mean = tf.reduce_sum(weights) / tf.cast(_num_examples(weights), tf.float64)
    with _losses_scaled(model, lambda: mean):
        yield


def _count(model: Any, x: Any, weight: Any) -> tf.Tensor:
    """What the rank's mean loss is divided by: examples, or the sum of their weights."""
    reductions = {_reduction(loss) for loss in tf.nest.flatten(model.loss)}
    if _averages(model) and not reductions.isdisjoint({"sum", "none", None}):
        raise UnsupportedError(
            f"A loss with reduction {sorted(map(str, reductions))} isn't a mean over the batch, "
            "so that the workers' gradients can't be averaged exactly. Use a loss with "
            'reduction="sum_over_batch_size" (the default), or DistributedOptimizer(…, op="sum"), '
            "which adds the gradients up."
        )
    if not _is_weighted(model, weight):
        return tf.cast(_num_examples(x), tf.float64)
    if len(reductions) > 1 or len(tf.nest.flatten(weight)) > 1:
        raise UnsupportedError(
            f"Several losses of which one has reduction={_WEIGHTED!r} divide by different numbers "
            "on every worker, and can't be averaged exactly. Use the same reduction for all, with "
            "one sample weight per example."
        )
    total = tf.reduce_sum(tf.cast(tf.nest.flatten(weight)[0], tf.float64))
    return tf.where(total == 0, tf.constant(NEGLIGIBLE_COUNT, tf.float64), total)


def _averages(model: Any) -> bool:
    """Whether gradients are averaged by the counts, not just added up."""
    averaging: ReductionOptions = innermost(model.optimizer).tfddl_options
    return averaging.op is ReduceOp.AVERAGE


def _is_weighted(model: Any, weight: Any) -> bool:
    """Whether a loss is divided by the sum of the sample weights."""
    return weight is not None and _WEIGHTED in map(_reduction, tf.nest.flatten(model.loss))


def _num_examples(x: Any) -> tf.Tensor:
    leaf = next(leaf for leaf in tf.nest.flatten(x) if leaf is not None)
    if not current().process_group.stays_on_device:
        return tf.shape(leaf, tf.int64)[0]
    if leaf.shape[0] is not None:
        return tf.constant(leaf.shape[0], tf.int64)
    # Shapes are in host memory. To be copied, the number would wait for all that the GPU was given
    # before, and the header with it: so it is counted on the GPU.
    ones = tf.fill(tf.shape(leaf)[:1], tf.constant(1, tf.int64))
    return tf.reduce_sum(ones)


def _batch_size(data: Any) -> tf.Tensor | None:
    """How many examples a batch has; None where a step of the user's own gets something else."""
    leaf = next((leaf for leaf in tf.nest.flatten(data) if leaf is not None), None)
    if leaf is None or not hasattr(leaf, "shape") or tf.TensorShape(leaf.shape).rank == 0:
        return None
    return _num_examples(leaf)


def _update_mean(
    original: Callable[..., Any], self: Any, values: Any, sample_weight: Any = None
) -> Any:
    """A number that a step gives to a Mean is that of its batch: it counts for each example.

    Keras would count it once, a batch of one example as much as a full one: in the losses of single
    outputs (but where a batch's size is static), in metrics that return one number, in what a
    `train_step` of one's own gives to `keras.metrics.Mean`.
    """
    examples = current_step().examples if is_started() else None
    if examples is not None and sample_weight is None and _is_number(values):
        sample_weight = examples
    return original(self, values, sample_weight)


def _is_number(values: Any) -> bool:
    shape = getattr(values, "shape", None)
    return isinstance(values, int | float) if shape is None else len(shape) == 0


def _reduction(loss: Any) -> str | None:
    """Of a loss given to `compile`: names and functions are means over the batch."""
    return getattr(loss, "reduction", "sum_over_batch_size")


def _stand_in(weight: Any) -> tf.Tensor | None:
    """Whether the batch counts: a scalar, or None where it surely does.

    See `tfddl._src.data.PADDING_WEIGHT`: a single example with the weight -0.0 doesn't.
    """
    leaves = [leaf for leaf in tf.nest.flatten(weight) if leaf is not None]
    if not leaves or leaves[0].shape.rank == 0 or not leaves[0].dtype.is_floating:
        return None
    first = tf.cast(tf.reshape(leaves[0], [-1])[0], tf.float32)
    is_negative_zero = tf.bitcast(first, tf.int32) == tf.int32.min
    return tf.logical_not(tf.logical_and(tf.shape(leaves[0])[0] == 1, is_negative_zero))


@contextmanager
def _unchanged_unless(
    counts: tf.Tensor | None, variables: Callable[[], Sequence[Any]]
) -> Iterator[None]:
    """Undoes what is done to the variables, unless the batch counts."""
    if counts is None:
        yield
        return
    before = _values(variables())
    yield
    for variable in variables():
        now = tf.convert_to_tensor(variable)
        old = before.get(id(variable), tf.zeros_like(now))
        variable.assign(tf.where(counts, now, old))


def _own_state(model: Any, pooled: MovingStatistics) -> list[Any]:
    """What a step changes without asking the other ranks."""
    shared = {id(v) for v in [*pooled.variables, *synchronized(model)]}
    own = [v for v in model.non_trainable_weights if id(v) not in shared]
    return [*_metric_variables(model), *own]


def _metric_variables(model: Any) -> list[Any]:
    return [variable for metric in model.metrics for variable in metric.variables]
