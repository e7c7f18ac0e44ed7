"""What one worker reads of a data set, epoch by epoch, from any position on."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfddl._src.data import sample_weights, structure
from tfddl._src.data.examples import Examples
from tfddl._src.runtime import PerRuntime
from tfddl._src.sharding import Batch, Plan, Position
from tfddl.errors import DataError, UnsupportedError


@dataclasses.dataclass(frozen=True)
class ResumePoint:
    """Where a `fit` takes up an epoch that an earlier run began.

    While it is the `EpochState`'s, each iteration of the shard in that epoch begins with
    placeholders, one for each step that was made before, so that its length stays that of a whole
    epoch. What `rest_of` returns is without them.
    """

    shard: "Shard"
    position: Position

    def rest_of(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """What is left of the epoch.

        Where fewer examples than workers are left, some worker gets a padding example; the
        elements then have sample weights, also where `dataset` has none.

        Args:
            dataset: The shard's dataset, or one in which `find_shard` finds the shard.

        Raises:
            UnsupportedError: Sample weights are needed, but there is no ``y``.
        """
        return self.shard.rest_of(dataset, self.position)


@dataclasses.dataclass
class EpochState:
    """What a running `fit` tells the shards that are read in it.

    A dataset can't be told anything when Keras iterates over it, so shards look here.
    """

    epoch: int | None = None
    """The epoch that `fit` is in; None outside of `fit`."""

    resume: ResumePoint | None = None
    """Where the epoch goes on, if an earlier run began it."""

    reports_failures: bool = False
    """Whether `fit` tells the other ranks of an error, so that this one has to keep step."""


_STATES = PerRuntime(lambda _: EpochState())


def epoch_state() -> EpochState:
    """The state of this process: of the `fit` that is running, if one is.

    Raises:
        NotInitializedError: `tfddl.init()` has not been called.
    """
    return _STATES.current()


class Shard:
    """What one worker reads of a data set.

    Attributes:
        plan: Of a whole epoch.
        ranks: Whose shard, as the plan counts: the worker's own rank; or, in ascending order, its
            virtual workers, whose batches then follow each other in each step.
        virtual_workers: How many the plan is for; None where it is for the workers themselves.
        error: Why reading it last failed, if it did. TensorFlow replaces exceptions of generators
            by its own, with the traceback in the text; this is the original.
    """

    def __init__(
        self,
        state: EpochState,
        examples: Examples,
        plan: Plan,
        *,
        ranks: Sequence[int],
        epoch: int,
    ) -> None:
        """A rank's shard of the examples.

        Args:
            state: That of the `fit` that may read it.
            examples: What the plan deals out.
            plan: Of a whole epoch.
            ranks: Whose shard.
            epoch: Whose order the dataset has outside of `fit`.

        Raises:
            UnsupportedError: Some worker needs a padding example, but there is no ``y``.
        """
        self.plan = plan
        self.ranks = tuple(ranks)
        self.virtual_workers: int | None = None
        self.error: DataError | None = None
        self._examples = examples
        self._epoch = epoch
        self._state = state
        self._specs = examples.specs
        if plan.has_padding:
            self._specs = sample_weights.add_weight_specs(examples.specs)
        self._weighted_after: Position | None = None

    def dataset(self) -> tf.data.Dataset:
        """The dataset, in which `find_shard` finds this shard."""
        steps = self._examples.num_joined(self.plan.batch_size)
        specs = structure.batched(self._specs)
        if steps > 1:
            dataset = tf.data.Dataset.from_generator(
                lambda: _joined(self._batches(), steps), output_signature=structure.batched(specs)
            ).unbatch()
        else:
            dataset = tf.data.Dataset.from_generator(self._batches, output_signature=specs)
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        # There is nothing to tune, and the end of an epoch would wait for the tuning thread, whose
        # sleeps grow to seconds (tensorflow/core/framework/model.cc, Model::OptimizeLoop).
        options.autotune.enabled = False
        # from_generator doesn't know its length, and Keras takes the steps of an epoch from it.
        dataset = dataset.apply(
            tf.data.experimental.assert_cardinality(self._num_batches(self.plan))
        )
        dataset = dataset.with_options(options).prefetch(2)
        dataset.tfddl_shard = self
        return dataset

    def steps_done(self, position: Position) -> int:
        """By how many steps the rest of an epoch is shorter than a whole one.

        In steps of this shard's workers and batch size: with others than before, it isn't the
        number of steps that were made.

        Raises:
            ShardingError: The position isn't one of this data and order, or nothing is left
                after it.
        """
        return self.plan.steps - self.plan.after(position).steps

    def rest_of(self, dataset: tf.data.Dataset, position: Position) -> tf.data.Dataset:
        """See `ResumePoint.rest_of`."""
        rest = dataset.skip(self.steps_done(position))
        plan = self.plan.after(position)
        if not plan.has_padding or sample_weights.has_float_weights(self._specs):
            return rest
        # Raises where there is no y: here, because an error within map would be TensorFlow's own.
        sample_weights.add_weight_specs(structure.unbatched(dataset.element_spec))
        counts = [batch.count > 0 for batch in self._steps(plan, position.epoch)]
        self._weighted_after = position
        return tf.data.Dataset.zip((rest, tf.data.Dataset.from_tensor_slices(counts))).map(
            tf.autograph.experimental.do_not_convert(sample_weights.weight_batch)
        )

    def _batches(self) -> Iterator[Any]:
        # Asked when iteration starts: `fit` makes an iterator for each of its epochs.
        epoch = self._epoch if self._state.epoch is None else self._state.epoch
        plan = self._plan_of(epoch)
        self.error = None
        for _ in range(self._num_batches(self.plan) - self._num_batches(plan)):
            yield self._element(self._examples.sample, count=1)
        done = 0
        try:
            for element in self._read(plan, epoch):
                yield element
                done += 1
        except DataError as error:
            self.error = error
            if not self._state.reports_failures:
                # Without the chain of causes: TensorFlow puts all their tracebacks into its text.
                raise DataError(str(error)) from None
            # The other ranks learn of it with the next step, which needs this rank's gradients.
            for _ in range(self._num_batches(plan) - done):
                yield self._element(self._examples.sample, count=1)

    def _plan_of(self, epoch: int) -> Plan:
        """The plan of the epoch that begins, or of what is left of it."""
        resume = self._state.resume
        if resume is None or resume.shard is not self or resume.position.epoch != epoch:
            return self.plan
        plan = self.plan.after(resume.position)
        has_weights = sample_weights.has_float_weights(self._specs)
        if plan.has_padding and not has_weights and self._weighted_after != resume.position:
            raise UnsupportedError(
                "The rest of the epoch needs padding examples, but the dataset has no sample "
                "weights to mark them with. HINT: iterate over ResumePoint.rest_of(dataset)."
            )
        return plan

    def _read(self, plan: Plan, epoch: int) -> Iterator[Any]:
        counting = (batch.indices for batch in self._steps(plan, epoch) if batch.count)
        with contextlib.closing(self._examples.batches(counting, epoch=epoch)) as rows:
            for batch in self._steps(plan, epoch):
                of_batch = next(rows) if batch.count else self._examples.sample
                yield self._element(of_batch, batch.count)

    def _steps(self, plan: Plan, epoch: int) -> Iterator[Batch]:
        return (
            plan.batch(epoch=epoch, step=step, rank=rank)
            for step in range(plan.steps)
            for rank in self.ranks
        )

    def _num_batches(self, plan: Plan) -> int:
        return plan.steps * len(self.ranks)

    def _element(self, rows: list[np.ndarray], count: int) -> Any:
        rows = sample_weights.weight_rows(rows, self._specs, count)
        return tf.nest.pack_sequence_as(self._specs, rows)


def _joined(batches: Iterator[Any], steps: int) -> Iterator[Any]:
    """Neighbours of the same shapes as one element, at most so many."""
    for _, group in itertools.groupby(batches, lambda b: [a.shape for a in tf.nest.flatten(b)]):
        while members := list(itertools.islice(group, steps)):
            yield tf.nest.map_structure(lambda *leaves: np.stack(leaves), *members)
