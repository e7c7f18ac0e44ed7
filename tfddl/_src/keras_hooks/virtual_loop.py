"""Virtual workers in loops written by hand."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
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

_NUMBER = "virtual_workers"


def _state_name(worker: int, position: int) -> str:
    return f"virtual worker {worker}, variable {position}"


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

    To go on later, on any number of workers, save `state` beside the variables of model and
    optimizer, and the epoch and step; `restore` it, and skip the steps that are done.
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

    def state(self) -> dict[str, np.ndarray]:
        """What the virtual workers keep for themselves, of all of them: states of layers.

        All ranks must call it together, between steps. It is the same on every rank; the number of
        processes has no part in it.

        Returns:
            Arrays by name, as `numpy.savez` takes them.
        """
        named: dict[str, np.ndarray] = {_NUMBER: np.array(self._virtual_workers)}
        for worker, states in enumerate(self._step.states.layer_states()):
            for position, value in states.items():
                named[_state_name(worker, position)] = np.asarray(value)
        return named

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Gives the virtual workers what `state` returned, on any number of processes.

        The variables of model and optimizer are restored by the caller, on every rank.

        Args:
            state: Of a model with the same layers; what `numpy.load` returns will do.

        Raises:
            UnsupportedError: It is that of another number of virtual workers, or of other layers.
        """
        found = int(state[_NUMBER]) if _NUMBER in state else "none"
        if found != self._virtual_workers:
            raise UnsupportedError(
                f"VirtualTrainStep.restore got a state of virtual_workers={found}; expected "
                f"{self._virtual_workers}: with others, batches, sums and random numbers would be "
                f"others. HINT: tfddl.DistributedOptimizer(optimizer, virtual_workers={found})."
            )
        states = self._step.states
        positions = states.layer_positions()
        workers = range(self._virtual_workers)
        expected = {_state_name(w, at) for w in workers for at in positions}
        differing = expected ^ (set(state) - {_NUMBER})
        if differing:
            raise UnsupportedError(
                f"VirtualTrainStep.restore got a state with {len(state) - 1} arrays; expected the "
                f"{len(positions)} of this model's layers for each of {self._virtual_workers} "
                f"virtual workers (differs: {min(differing)}). HINT: build the model as when "
                "the state was saved."
            )
        states.restore(
            [{at: np.asarray(state[_state_name(w, at)]) for at in positions} for w in workers], []
        )

    def batches(self, dataset: tf.data.Dataset, *, first_step: int = 0) -> Iterator[Sequence[Any]]:
        """The batches of each step, for this process' virtual workers, in order.

        All ranks must iterate to the end together. There the model is given the state that layers
        keep for themselves (of dropout's seeds, say), that of the first virtual worker.

        Args:
            dataset: What ``shard_dataset(…, virtual_workers=…)`` returned; map and prefetch may
                follow.
            first_step: How many steps of the epoch were made before: they are left out (their
                examples are read, and dropped).

        Raises:
            UnsupportedError: It isn't planned for these virtual workers.
        """
        grouped = virtual_data.group_batches(
            dataset, self._virtual_workers, name="VirtualTrainStep.batches"
        )
        self._spec = virtual_data.batch_spec(grouped)
        return self._each_step(grouped.skip(first_step))

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
