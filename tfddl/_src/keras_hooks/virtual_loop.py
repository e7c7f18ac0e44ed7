"""Virtual workers in loops written by hand."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfddl._src.keras_hooks import batch_count, virtual_data, virtual_fit
from tfddl._src.keras_hooks.consistency import compare_arithmetic
from tfddl._src.keras_hooks.optimizer import innermost, is_distributed
from tfddl._src.keras_hooks.virtual_states import VirtualStates
from tfddl._src.keras_hooks.virtual_step import VirtualStep
from tfddl._src.runtime import current
from tfddl._src.step_context import StepContext
from tfddl._src.virtual_workers import own_workers
from tfddl.errors import UnsupportedError


class VirtualTrainStep:
    """A step of a loop written by hand, in the same bits on any number of workers.

    Usage::

        optimizer = tfddl.DistributedOptimizer(optimizer, virtual_workers=8)

        def train_step(batch):  # of one virtual worker
            x, y = batch
            with tf.GradientTape() as tape:
                loss = loss_fn(y, model(x, training=True))
            gradients = tape.gradient(loss, model.trainable_variables)
            with tfddl.loss_count(tf.shape(x)[0]):
                optimizer.apply_gradients(zip(gradients, model.trainable_variables))
            return loss

        step = tfddl.VirtualTrainStep(train_step, model, optimizer)
        for epoch in range(10):
            data = tfddl.shard_dataset(x, y, batch_size=4, virtual_workers=8, epoch=epoch)
            for batches in step.batches(data):
                losses = step(batches)

    The function is traced once, as a `tf.function`, and called for each virtual worker of this
    process in turn: with its batch, its dropout and other state of the model's layers. What the
    optimizer gets is added up over all virtual workers, and applied once. Before the first step,
    `tfddl.broadcast_variables` gives all ranks the same weights; seeds are derived here.
    """

    def __init__(
        self,
        train_step: Callable[[Any], Any],
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
    ) -> None:
        """Derives the seeds of the virtual workers. All ranks must call it together.

        Args:
            train_step: Called with a batch, as `shard_dataset` gives it; calls the optimizer once,
                and returns tensors. Variables other than those of model and optimizer that it
                changes are shared by the virtual workers of a process.
            model: Built.
            optimizer: Of ``DistributedOptimizer(…, virtual_workers=…)``, perhaps in a
                `keras.optimizers.LossScaleOptimizer`; it is built, if it isn't yet.

        Raises:
            UnsupportedError: The optimizer isn't for virtual workers.
            DisagreementError: The ranks would not compute the same bits: other processors, or
                other versions of TensorFlow.
        """
        options = innermost(optimizer).tfddl_options if is_distributed(optimizer) else None
        if options is None or options.virtual_workers is None:
            raise UnsupportedError(
                f"VirtualTrainStep got {type(optimizer).__name__} without virtual_workers; "
                "expected one that adds up over them. HINT: tfddl.DistributedOptimizer(optimizer, "
                "virtual_workers=8)."
            )
        compare_arithmetic(virtual_fit.arithmetic_of(options.virtual_workers))
        cluster = current().cluster
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
        self._virtual_workers: int = options.virtual_workers
        workers = own_workers(self._virtual_workers, cluster.rank, cluster.size)
        states = VirtualStates(model, workers, self._virtual_workers)
        states.derive_seeds()
        self._step = VirtualStep(model, optimizer, train_step, states, self._context)
        self._spec: Any = None

    def batches(self, dataset: tf.data.Dataset) -> Iterator[Sequence[Any]]:
        """The batches of each step, for this process' virtual workers, in order.

        All ranks must iterate to the end together. There the model is given the state that layers
        keep for themselves (of dropout's seeds, say), that of the first virtual worker.

        Args:
            dataset: What ``shard_dataset(…, virtual_workers=…)`` returned; map and prefetch may
                follow.

        Raises:
            UnsupportedError: It isn't planned for these virtual workers.
        """
        grouped = virtual_data.group_batches(
            dataset, self._virtual_workers, name="VirtualTrainStep.batches"
        )
        self._spec = virtual_data.batch_spec(grouped)
        return self._each_step(grouped)

    def _each_step(self, grouped: tf.data.Dataset) -> Iterator[Sequence[Any]]:
        is_single = len(self._step.states.workers) == 1
        for element in grouped:
            yield (element,) if is_single else element
        self._step.states.write_layer_states()

    def __call__(self, batches: Sequence[Any]) -> list[Any]:
        """Makes a step. All ranks must call it together.

        Args:
            batches: One of those that `batches` gives.

        Returns:
            What the function returned for each virtual worker of this process.

        Raises:
            UnsupportedError: It is called in a `tf.function`, or before `batches`; or the function
                called the optimizer twice, or not at all, or needs all virtual workers at the same
                time.
        """
        if not tf.executing_eagerly():
            raise UnsupportedError(
                "VirtualTrainStep was called while a tf.function is traced; expected a call from "
                "outside: TensorFlow would reorder the sums. HINT: leave out the tf.function "
                "around the loop; the step itself is traced."
            )
        if self._spec is None:
            raise UnsupportedError(
                "VirtualTrainStep was called before its batches; expected what they give. HINT: "
                "for batches in step.batches(tfddl.shard_dataset(…, virtual_workers=…)): "
                "step(batches)."
            )
        self._step.run(batches, self._spec)
        current().count_round()
        return [last.outputs for last in self._step.last]

    def _context(self, batch: Any) -> StepContext:
        x, _, weight = keras.utils.unpack_x_y_sample_weight(batch)
        counts, examples = batch_count.counts(weight), batch_count.num_examples(x)
        if counts is not None:
            examples = tf.where(counts, examples, 0)
        return StepContext(examples=examples, virtual_workers=self._virtual_workers)
