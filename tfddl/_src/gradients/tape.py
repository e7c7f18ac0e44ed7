"""A `tf.GradientTape` whose gradients are averaged."""

import contextlib
from typing import Any

import tensorflow as tf

from tfddl._src.collectives import ReduceOp
from tfddl._src.gradients.loss_count import loss_count
from tfddl._src.gradients.options import Compression, ReductionOptions, make_options
from tfddl._src.gradients.reduction import reduce_gradients
from tfddl._src.runtime import current
from tfddl._src.step_context import current_step


class DistributedGradientTape:
    """A `tf.GradientTape` whose gradients are averaged over all workers.

    Usage::

        with tf.GradientTape() as tape:
            loss = loss_fn(y, model(x, training=True))
        tape = tfddl.DistributedGradientTape(tape)
        gradients = tape.gradient(loss, model.trainable_variables, count=tf.shape(x)[0])

    Before the first step, `tfddl.broadcast_variables` gives all ranks the same weights. Gradients
    of different ranks are matched by their variables, see `gradient`.
    """

    def __init__(
        self,
        tape: tf.GradientTape,
        *,
        op: ReduceOp | str = ReduceOp.AVERAGE,
        compression: Compression | str = Compression.NONE,
        sparse_as_dense: bool = False,
    ) -> None:
        """Wraps a tape that is recording, or has recorded.

        Args:
            tape: The tape.
            op: As for `DistributedOptimizer`.
            compression: As for `DistributedOptimizer`.
            sparse_as_dense: As for `DistributedOptimizer`.
        """
        self._tape = tape
        self._options = make_options(op, compression, sparse_as_dense)
        current()

    @classmethod
    def of(cls, tape: tf.GradientTape, options: ReductionOptions) -> "DistributedGradientTape":
        """Wraps a tape, with all the options there are."""
        wrapped = cls(tape)
        wrapped._options = options
        return wrapped

    def gradient(
        self, target: Any, sources: Any, output_gradients: Any = None, *, count: Any = None
    ) -> Any:
        """The gradients, averaged. All ranks must call it together.

        Where a gradient is None on some ranks only, it counts as zero there, with the rank's count.
        Eagerly that may change from call to call; a `tf.function` agrees on it when it is first
        traced, see `tfddl.DistributedOptimizer`.

        Args:
            target: As for `tf.GradientTape.gradient`.
            sources: As for `tf.GradientTape.gradient`; of the same number, shapes and dtypes, in
                the same order, on all ranks.
            output_gradients: As for `tf.GradientTape.gradient`.
            count: What the rank's mean loss was divided by; without it, every rank counts the
                same.

        Returns:
            The structure of ``sources``; the same on all ranks, None where all have None.

        Raises:
            DisagreementOpError: Ranks have other sources; or one traces a function again, alone,
                with gradients that were None on all.
        """
        is_weighted = count is not None and self._options.op is ReduceOp.AVERAGE
        with loss_count(count) if is_weighted else contextlib.nullcontext():
            gradients = self._tape.gradient(target, sources, output_gradients)
            # IndexedSlices are composites: expanded, their indices would be averaged as if they
            # were gradients.
            flat = tf.nest.flatten(gradients, expand_composites=False)
            variables = tf.nest.flatten(sources, expand_composites=False)
            reduced = reduce_gradients(flat, self._options, variables, current_step())
        return tf.nest.pack_sequence_as(gradients, reduced)

    def __enter__(self) -> "DistributedGradientTape":
        self._tape.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._tape.__exit__(*exc_info)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tape, name)
