"""`hvd.DistributedOptimizer` of TensorFlow 1's optimizers, those of `tf.compat.v1.train`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfddl._src.comm.session_graph import is_for_session
from tfddl._src.gradients import ReductionOptions, reduce_gradients
from tfddl._src.step_context import current_step
from tfddl.errors import UnsupportedError

_Pairs = list[tuple[Any, Any]]
"""Gradients, each with its variable."""


class Tf1Optimizer(tf.compat.v1.train.Optimizer):
    """Averages the gradients that another optimizer computes, and has that one apply them.

    In a `tf.Graph` for a session all ranks build the same graph, and each run of the training
    operation is one step, which all ranks must run together. Slots are the other optimizer's.
    """

    def __init__(
        self,
        optimizer: tf.compat.v1.train.Optimizer,
        options: ReductionOptions,
        *,
        name: str | None = None,
        backward_passes_per_step: int = 1,
        average_aggregated_gradients: bool = False,
    ) -> None:
        """Wraps an optimizer.

        Args:
            optimizer: The one that applies gradients.
            options: How gradients are averaged.
            name: Of this one.
            backward_passes_per_step: Over how many runs gradients are accumulated, in local
                variables (`tf.compat.v1.local_variables_initializer`), before they are averaged and
                applied.
            average_aggregated_gradients: Whether these are averaged rather than summed.

        Raises:
            UnsupportedError: Gradients are to be accumulated without a session.
        """
        super().__init__(False, name or f"Distributed{type(optimizer).__name__}")
        if backward_passes_per_step > 1 and not is_for_session():
            raise UnsupportedError(
                f"backward_passes_per_step={backward_passes_per_step} was given for "
                f"{type(optimizer).__name__} outside of a tf.Graph for a session; there it must be "
                "1. HINT: use an optimizer of keras.optimizers."
            )
        self._optimizer = optimizer
        self._options = options
        self._passes = backward_passes_per_step
        self._divisor = backward_passes_per_step if average_aggregated_gradients else 1
        self._accumulator: _Accumulator | None = None

    def register_local_var(self, var: Any) -> None:
        """Excludes a variable: its gradient stays this rank's own."""
        local = (*self._options.local, var)
        self._options = dataclasses.replace(self._options, local=local)

    def compute_gradients(self, *args: Any, **kwargs: Any) -> _Pairs:
        """The other optimizer's gradients, averaged over the ranks.

        In passes that only accumulate, they are this rank's own.

        Args:
            *args: As for any optimizer of TensorFlow 1.
            **kwargs: As for any optimizer of TensorFlow 1.

        Returns:
            Each gradient, or None, with its variable.
        """
        pairs = self._optimizer.compute_gradients(*args, **kwargs)
        gradients, variables = [g for g, _ in pairs], [v for _, v in pairs]
        options = self._options

        def reduced(own: Sequence[Any]) -> list[Any]:
            return reduce_gradients(own, options, variables, current_step())

        if self._passes == 1:
            return list(zip(reduced(gradients), variables, strict=True))
        if not options.sparse_as_dense and any(isinstance(g, tf.IndexedSlices) for g in gradients):
            raise UnsupportedError(
                f"backward_passes_per_step={self._passes} was given, and a gradient is an "
                "IndexedSlices; gradients that are accumulated must be dense. HINT: "
                "sparse_as_dense=True."
            )
        self._accumulator = _Accumulator(gradients, variables, self._passes)
        means = self._accumulator.add(gradients, reduced, self._divisor)
        return list(zip(means, variables, strict=True))

    def apply_gradients(
        self, grads_and_vars: Any, global_step: Any = None, name: str | None = None
    ) -> Any:
        """Has the other optimizer apply gradients, where a pass does so; counts every pass.

        Args:
            grads_and_vars: What `compute_gradients` has returned, clipped or not.
            global_step: What counts passes.
            name: Of the operation.

        Returns:
            The operation.
        """
        pairs = list(grads_and_vars)
        if self._accumulator is None:
            return self._optimizer.apply_gradients(pairs, global_step, name)
        return self._accumulator.apply(
            [gradient for gradient, _ in pairs],
            lambda: self._optimizer.apply_gradients(pairs, global_step, name),
            global_step,
        )

    def get_slot(self, *args: Any, **kwargs: Any) -> Any:
        """The other optimizer's."""
        return self._optimizer.get_slot(*args, **kwargs)

    def get_slot_names(self, *args: Any, **kwargs: Any) -> Any:
        """The other optimizer's."""
        return self._optimizer.get_slot_names(*args, **kwargs)

    def variables(self, *args: Any, **kwargs: Any) -> Any:
        """The other optimizer's."""
        return self._optimizer.variables(*args, **kwargs)


class _Accumulator:
    """Adds up a rank's gradients over several runs of a session."""

    def __init__(self, gradients: Sequence[Any], variables: Sequence[Any], passes: int) -> None:
        self._passes = passes
        self._present = [i for i, gradient in enumerate(gradients) if gradient is not None]
        self._count = _local_variable([], tf.int32, "accumulated_passes")
        self._sums = [
            _local_variable(variables[i].shape, gradients[i].dtype, "accumulated_gradient")
            for i in self._present
        ]

    def add(
        self,
        gradients: Sequence[Any],
        reduced: Callable[[Sequence[Any]], list[Any]],
        divisor: int,
    ) -> list[Any]:
        """Adds a pass's gradients; where it is a step's last one, the step's are averaged.

        Args:
            gradients: This pass's.
            reduced: Averages gradients over the ranks.
            divisor: What the sum over the passes is divided by.
        """
        own = [tf.convert_to_tensor(gradients[i]) for i in self._present]
        begins = tf.equal(self._count.read_value(), 0)
        sums = [
            tf.where(begins, gradient, total.read_value() + gradient)
            for gradient, total in zip(own, self._sums, strict=True)
        ]
        with tf.control_dependencies(sums):
            kept = [
                variable.assign(total, read_value=False)
                for variable, total in zip(self._sums, sums, strict=True)
            ]
            following = tf.math.floormod(self._count.read_value() + 1, self._passes)
            kept.append(self._count.assign(following, read_value=False))

        def averaged() -> list[tf.Tensor]:
            with_gaps: list[Any] = [None] * len(gradients)
            for i, total in zip(self._present, sums, strict=True):
                with_gaps[i] = total / tf.cast(divisor, total.dtype)
            means = reduced(with_gaps)
            return [means[i] for i in self._present]

        with tf.control_dependencies(kept):
            self._applies = tf.equal(following, 0)
            means = tf.nest.flatten(tf.cond(self._applies, averaged, lambda: own))
        result: list[Any] = [None] * len(gradients)
        for i, mean in zip(self._present, means, strict=True):
            result[i] = mean
        return result

    def apply(
        self, gradients: Sequence[Any], applied: Callable[[], Any], global_step: Any
    ) -> tf.Operation:
        """Applies gradients in a step's last pass, and only counts in the others.

        Args:
            gradients: What is applied.
            applied: Applies it, and counts.
            global_step: What counts; None for nothing.
        """

        def counted() -> tf.Operation:
            if global_step is None:
                return tf.no_op()
            return global_step.assign_add(1, read_value=False)

        there = [gradient for gradient in gradients if gradient is not None]
        with tf.control_dependencies(there):
            return tf.group(tf.cond(self._applies, _done(applied), _done(counted)))


def _done(function: Callable[[], Any]) -> Callable[[], tf.Tensor]:
    """A branch of a `tf.cond`, which must return the same kind of thing as the other one."""

    def branch() -> tf.Tensor:
        with tf.control_dependencies([function()]):
            return tf.constant(True)

    return branch


def _local_variable(shape: Any, dtype: tf.DType, name: str) -> tf.Variable:
    collections = [tf.compat.v1.GraphKeys.LOCAL_VARIABLES]
    zeros = tf.zeros(shape, dtype)
    return tf.compat.v1.Variable(
        zeros, trainable=False, collections=collections, name=name, use_resource=True
    )
