"""A Keras optimizer whose gradients are averaged over the workers: `DistributedOptimizer`."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfddl._src.collectives import ReduceOp
from tfddl._src.gradients import (
    Compression,
    Gradient,
    ReductionOptions,
    make_options,
    reduce_gradients,
    sum_gradients,
    unexchanged,
    weight_gradients,
)
from tfddl._src.keras_hooks.patching import private
from tfddl._src.keras_hooks.update_order import UpdateOrder
from tfddl._src.keras_hooks.virtual_strategy import VirtualStrategy
from tfddl._src.keras_hooks.xla import compiled
from tfddl._src.runtime import current
from tfddl._src.step_context import current_step
from tfddl.errors import UnsupportedError

_DEFAULT_STRATEGY = tf.distribute.get_strategy()
"""TensorFlow's, outside of any scope. (Nobody imports this module under one: `init` does.)"""

_OVERRIDDEN = ("_clip_gradients", "_all_reduce_sum_gradients")
"""Private methods of Keras' optimizers: where accumulated gradients are clipped
(`_backend_apply_gradients`, keras/src/optimizers/base_optimizer.py), and where TensorFlow's
strategy adds gradients up (keras/src/backend/tensorflow/optimizer.py); Keras 3.11 to 3.15."""


def DistributedOptimizer(
    optimizer: keras.optimizers.Optimizer,
    *,
    op: ReduceOp | str = ReduceOp.AVERAGE,
    compression: Compression | str = Compression.NONE,
    sparse_as_dense: bool = False,
    virtual_workers: int | None = None,
) -> keras.optimizers.Optimizer:
    """Makes a Keras optimizer average its gradients over all workers before it applies them.

    The optimizer itself is changed and returned: its class becomes a subclass of its own, its
    settings, slots and step count stay. Clipping comes after the averaging. With
    ``gradient_accumulation_steps`` the gradients travel once per update; the steps between
    exchange only their counts (a few bytes), which exact weights need. A
    `keras.optimizers.LossScaleOptimizer` may be inside or outside: a gradient that isn't finite on
    one rank makes all ranks skip the step.

    What `model.save` writes names the original class, and loads where tfddl isn't installed; what
    is loaded isn't distributed, wrap it again. In a loop written by hand, `apply_gradients`
    averages too; there `tfddl.loss_count` says what the rank's mean loss was divided by.

    All ranks must apply gradients together, for the same variables in the same order. Where a
    gradient is None on some ranks, as with a head for each rank's own task, it counts as zero
    there, with the rank's count; where it is None on all, it stays None, and the variable and its
    slots stay as they are. Eagerly this may change from step to step. In a `tf.function`, also that
    of `fit`, it is agreed when the function is first traced; once ranks had different gradients
    then, what any of them has of these may change, and a missing one is zero.

    Args:
        optimizer: Any Keras 3 optimizer.
        op: "average"; "sum" for losses that are sums; "adasum" for 2, 4, 8, … ranks, see
            `allreduce`.
        compression: "none", "fp16" or "bf16": in which precision gradients travel.
        sparse_as_dense: Makes sparse gradients (of embeddings) dense before they travel. Sparse
            ones are gathered, not added up.
        virtual_workers: With it `fit` trains in the same bits on any number of workers, up to this
            number: each worker runs its virtual workers one after the other, each with its own
            batch, dropout, metrics and BatchNormalization, and all that is added up is added up in
            an order that depends on this number only. Takes data of ``tfddl.shard_dataset(…,
            virtual_workers=…)``, and `tfddl.init(intra_op_threads=…)`.

    Returns:
        The same optimizer.

    Raises:
        UnsupportedError: Not a Keras 3 optimizer; wrapped before; under ``strategy.scope()``; an
            op or compression that there isn't; fewer virtual workers than workers, threads that
            depend on the number of workers, or others than `tfddl.init` was asked for.
        NotInitializedError: `tfddl.init()` has not been called.

    Gradients that are then applied raise a `DisagreementOpError` (a `DisagreementError`), or in a
    graph a `tf.errors.InvalidArgumentError`, on all ranks where the variables differ, or where a
    function that is traced again on some ranks alone has gradients that were None on all.

    References:
        "Horovod: fast and easy distributed deep learning in TensorFlow", 2018,
        https://arxiv.org/abs/1802.05799
    """
    options = make_options(op, compression, sparse_as_dense)
    if virtual_workers is not None:
        options = options.for_virtual_workers(virtual_workers)
    return distribute(optimizer, options)


def distribute(
    optimizer: keras.optimizers.Optimizer, options: ReductionOptions
) -> keras.optimizers.Optimizer:
    """`DistributedOptimizer`, with all the options there are.

    Raises:
        UnsupportedError: As `DistributedOptimizer`.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    current()
    refuse_strategy_scope()
    _distribute(optimizer, options)
    return optimizer


def distribute_under_scope(optimizer: keras.optimizers.Optimizer, *, op: ReduceOp) -> None:
    """Makes an optimizer of a model under ``strategy.scope()`` average by count.

    It is changed as `DistributedOptimizer` changes one; TensorFlow's own sum of the workers'
    gradients is left out.

    Args:
        optimizer: A Keras optimizer that was made under the scope.
        op: AVERAGE of losses that are means, which Keras has divided by the number of workers; or
            SUM of losses that are sums.

    Raises:
        UnsupportedError: Not a Keras 3 optimizer, or a Keras that we don't know.
    """
    _distribute(optimizer, ReductionOptions(op=op, scale=float(current().cluster.size)))
    innermost(optimizer).tfddl_under_scope = True


def distribute_for_virtual_workers(
    optimizer: keras.optimizers.Optimizer, *, op: ReduceOp, virtual_workers: int
) -> None:
    """Makes an optimizer that was made under the scope of virtual workers one for them.

    Args:
        optimizer: A Keras optimizer.
        op: AVERAGE of losses that are means; or SUM.
        virtual_workers: Their number.

    Raises:
        UnsupportedError: As `DistributedOptimizer`.
    """
    _distribute(optimizer, ReductionOptions(op=op).for_virtual_workers(virtual_workers))
    # Its updates are then those of any optimizer: see VirtualStrategy.
    outer = optimizer
    while True:
        private(outer, "_distribution_strategy")
        outer._distribution_strategy = _DEFAULT_STRATEGY
        if outer is innermost(optimizer):
            return
        outer = outer.inner_optimizer


def is_under_scope(optimizer: Any) -> bool:
    """Whether an optimizer went through `distribute_under_scope`."""
    return is_distributed(optimizer) and innermost(optimizer).tfddl_under_scope


def _distribute(optimizer: keras.optimizers.Optimizer, options: ReductionOptions) -> None:
    _check_optimizer(optimizer)
    inner = innermost(optimizer)
    base: Any = type(inner)
    inner.__class__ = _distributed_class(base)
    inner.tfddl_options = options


def loss_divisor(optimizer: Any) -> int:
    """By what a loss may be divided before gradients are computed, so that a mean is only a sum.

    Args:
        optimizer: That of a model. A loss-scale optimizer around ours doesn't ask ours to scale the
            loss.

    Returns:
        What belongs into `StepContext.loss_divisor` of a step in which `scale_loss` is called once,
        and all gradients come from what it returns.
    """
    if not isinstance(optimizer, _Distributed) or not optimizer.tfddl_options.divides_losses:
        return 1
    return optimizer.tfddl_options.size


def is_distributed(optimizer: Any) -> bool:
    """Whether an optimizer, or the one inside a loss-scale optimizer, averages over workers."""
    return isinstance(innermost(optimizer), _Distributed)


def innermost(optimizer: Any) -> Any:
    """The optimizer inside loss-scale optimizers."""
    while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer


class _Distributed:
    """The base class that is put before a Keras optimizer's own.

    The optimizer stays the same object, with its settings, slots and step count. Names that begin
    with ``tfddl_`` are ours.
    """

    tfddl_options: ReductionOptions
    tfddl_reduced: bool = False
    """Set while gradients arrive that have been reduced before, by loss scaling."""

    tfddl_applied: Sequence[Any] = ()
    """The variables of the gradients that are being applied."""

    tfddl_order: UpdateOrder | None = None
    """Of the updates of the gradients that are being applied; None where they arrive one by one."""

    tfddl_under_scope: bool = False
    """Whether the model is one of ``strategy.scope()``."""

    def scale_loss(self, loss: Any) -> Any:
        """Divides what Keras' own `train_step` then differentiates, as the step says."""
        divisor = current_step().loss_divisor
        return super().scale_loss(loss if divisor == 1 else loss / divisor)  # type: ignore[misc]

    def apply(self, grads: Sequence[Gradient], trainable_variables: Any = None) -> None:
        """Averages the gradients over the workers, then applies them."""
        if not self.tfddl_under_scope:
            refuse_strategy_scope()
        grads = list(grads)
        variables = _variables(self, trainable_variables)
        if captured(self, grads, variables):
            return
        if not self.tfddl_reduced:
            grads = reduce_or_weight(self, grads, variables)
        applied = [v for g, v in zip(grads, variables, strict=True) if g is not None]
        # Past KerasAutoTrackable.__setattr__, which would take a list of the model's variables for
        # the optimizer's own, and save them with it.
        object.__setattr__(self, "tfddl_applied", applied)
        object.__setattr__(self, "tfddl_order", self._tfddl_new_order(grads))
        apply = super().apply  # type: ignore[misc]
        with tf.control_dependencies(self._tfddl_first_of(grads)):
            if self.tfddl_reduced:
                apply(grads, trainable_variables)
            else:
                update(self, apply, grads, trainable_variables)

    def _tfddl_new_order(self, grads: Sequence[Gradient]) -> UpdateOrder | None:
        # With a core to compute while gradients travel, they arrive one after the other, last
        # layers first; XLA has an order of its own.
        arrive_at_once = self.tfddl_options.size > 1 and not current().process_group.overlaps
        if not arrive_at_once or self.tfddl_under_scope or current_step().compiles:
            return None
        return UpdateOrder.of(grads)

    def _tfddl_first_of(self, grads: Sequence[Gradient]) -> list[tf.Tensor]:
        """What Keras' count of steps has to wait for: one of the gradients."""
        # By itself, `self._iterations.assign_add(1)` at the end of Optimizer.apply waits for
        # nothing. Where data ends without notice, the step that finds none would count, on some
        # ranks and not on others.
        if not self.tfddl_options.exchanges:
            return []
        parts = tf.nest.flatten(list(grads), expand_composites=True)
        return [part for part in parts if isinstance(part, tf.Tensor)][:1]

    def _clip_gradients(self, grads: Sequence[Gradient]) -> Any:
        """With accumulation: what was accumulated, already weighted, is added up just once."""
        # Keras calls it with the mean over the accumulated steps, only in the step that applies it.
        if accumulates(self):
            if self.tfddl_options.exchanges and self.tfddl_options.virtual_workers is None:
                grads = sum_gradients(grads, self.tfddl_options, self.tfddl_applied)
            if self.tfddl_options.sum_passes:  # Keras has made a mean of them.
                passes = self.gradient_accumulation_steps  # type: ignore[attr-defined]
                grads = [g * tf.cast(passes, g.dtype) for g in grads]
        return super()._clip_gradients(grads)  # type: ignore[misc]

    def update_step(self, gradient: Any, *variable_and_rate: Any) -> None:
        """Updates a variable; in a graph after others, where all gradients arrive at once."""
        update_step = super().update_step  # type: ignore[misc]
        if self.tfddl_order is None or tf.executing_eagerly():
            update_step(gradient, *variable_and_rate)
            return
        with self.tfddl_order.next_update(gradient):
            update_step(gradient, *variable_and_rate)

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        """Under ``strategy.scope()``: TensorFlow would add up what has been averaged already."""
        return list(grads_and_vars)


def captured(optimizer: Any, gradients: Sequence[Gradient], variables: Any) -> bool:
    """Whether gradients are kept, instead of being applied, by the step that is under way.

    A virtual worker's are, for the sum of all of them; and those of a forward and backward pass
    that XLA compiles, which are exchanged after it.

    Args:
        optimizer: That was to apply them, loss-scale optimizers included.
        gradients: In the order of the variables.
        variables: None is those that the optimizer was built with.

    Raises:
        UnsupportedError: The optimizer is one for virtual workers, and no step of theirs is under
            way.
    """
    inner = innermost(optimizer)
    options: ReductionOptions = inner.tfddl_options
    capture = current_step().capture
    if inner.tfddl_reduced or (options.virtual_workers is None and capture is None):
        return False
    if capture is None:
        raise UnsupportedError(
            f"An optimizer with virtual_workers={options.virtual_workers} was called outside of "
            "fit; expected fit, which runs the virtual workers of this rank one after the other. "
            "HINT: model.fit(…); in a loop written by hand, tfddl.VirtualTrainStep(…)."
        )
    capture.take(optimizer, gradients, _variables(inner, variables))
    return True


def update(
    optimizer: Any,
    apply: Callable[..., Any],
    gradients: Sequence[Gradient],
    variables: Sequence[Any] | None,
) -> None:
    """Applies gradients that have been exchanged; XLA compiles that where the step asks for it.

    Args:
        optimizer: That of `apply`, loss-scale optimizers included.
        apply: Keras' own, of an optimizer.
        gradients: In the order of the variables.
        variables: What they are the gradients of; None is those that it was built with.
    """
    inner = innermost(optimizer)
    # Accumulated gradients are exchanged within `apply`, in a branch. Under a strategy's scope,
    # loss scaling asks for the cross-replica context, which there isn't in a function.
    is_whole = not accumulates(inner) and (optimizer is inner or not inner.tfddl_under_scope)
    if not current_step().compiles or tf.executing_eagerly() or not is_whole:
        apply(gradients, variables)
        return
    if not optimizer.built:
        with tf.init_scope():
            optimizer.build(variables)
            optimizer.built = True

    def run() -> None:
        apply(gradients, variables)

    compiled(run)


def planned_size(optimizer: Any) -> int:
    """For how many workers training is planned: virtual ones, where there are any."""
    options = innermost(optimizer).tfddl_options if is_distributed(optimizer) else None
    number = None if options is None else options.virtual_workers
    return current().cluster.size if number is None else number


def reduce_or_weight(
    optimizer: Any,
    gradients: Sequence[Gradient],
    variables: Any,
    *,
    check_finite: Callable[..., Any] | None = None,
) -> list[Gradient]:
    """What an optimizer does with a step's gradients before anything else.

    Without accumulation they are reduced. With it they are only weighted, by all ranks' counts;
    where they aren't finite on any rank, they become NaN on all.

    Args:
        optimizer: Distributed, without loss-scale optimizers around it.
        gradients: The rank's own.
        variables: Of the gradients; None is those that the optimizer was built with.
        check_finite: That of the loss-scale optimizer around it, if there is one.
    """
    gradients = list(gradients)
    options = optimizer.tfddl_options
    if options.size == 1:
        return gradients
    variables = _variables(optimizer, variables)
    if not options.exchanges:
        return unexchanged(gradients, options, variables)
    if accumulates(optimizer):
        return weight_gradients(
            gradients, options, variables, current_step(), check_finite=check_finite
        )
    return reduce_gradients(gradients, options, variables, current_step())


def _variables(optimizer: Any, given: Any) -> list[Any]:
    """The variables of the gradients that `apply` has got; Keras lets them be left out."""
    return list(private(optimizer, "_trainable_variables") if given is None else given)


@contextlib.contextmanager
def reduced_before(optimizer: Any) -> Iterator[None]:
    """Lets an optimizer apply gradients that went through `reduce_or_weight`."""
    optimizer.tfddl_reduced = True
    try:
        yield
    finally:
        optimizer.tfddl_reduced = False


def accumulates(optimizer: Any) -> bool:
    """Whether the optimizer applies the gradients of several steps at once."""
    return bool(optimizer.gradient_accumulation_steps)


def refuse_strategy_scope() -> None:
    """Raises where TensorFlow's strategy would average as well.

    Raises:
        UnsupportedError: Under ``strategy.scope()``.
    """
    is_virtual = isinstance(tf.distribute.get_strategy(), VirtualStrategy)
    if tf.distribute.has_strategy() and not is_virtual:
        raise UnsupportedError(
            "DistributedOptimizer is used under strategy.scope(), where TensorFlow adds up the "
            "gradients of the workers by itself: they would be averaged twice. HINT: leave the "
            "scope, or compile with the plain Keras optimizer there."
        )


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise UnsupportedError(
            f"optimizer is {optimizer!r}; expected a Keras 3 optimizer such as "
            "keras.optimizers.Adam(1e-3)."
        )
    if is_distributed(optimizer):
        raise UnsupportedError("This optimizer is distributed already. HINT: wrap it once.")
    for name in _OVERRIDDEN:
        private(keras.optimizers.Optimizer, name)


@functools.cache
def _distributed_class(base: type) -> type:
    """One subclass per optimizer class."""
    # Saving writes __module__ and __name__ of the class (serialize_keras_object,
    # keras/src/saving/serialization_lib.py): the base's, so that a file loads without tfddl.
    return type(
        base.__name__,
        (_Distributed, base),
        {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__},
    )
