"""What one worker reads of a data set, epoch by epoch, from any position on."""

import contextlib
import dataclasses
from collections.abc import Iterator
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
    """A `fit` takes up an epoch where it was left; kept in `EpochState` while it does.

    From then on every iteration of the share in that epoch begins with placeholders, one for each
    step that was made, so that its length stays that of an epoch. What `rest_of` returns is
    without them.
    """

    share: "Shard"
    position: Position

    def rest_of(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """What is left of the epoch.

        Where fewer examples than workers are left, some worker has to run one that doesn't count;
        the elements then have sample weights, also where `dataset` has none.

        Args:
            dataset: The share's dataset, or one that `find_share` finds the share of.

        Raises:
            UnsupportedError: Sample weights are needed, but there is no ``y``.
        """
        return self.share.rest_of(dataset, self.position)


@dataclasses.dataclass
class EpochState:
    """What a `fit` that is running says to those that read its data."""

    epoch: int | None = None
    """The epoch that is running; None outside of `fit`."""

    resume: ResumePoint | None = None
    """Where the epoch goes on, if an earlier run began it."""

    reports_failures: bool = False
    """Whether `fit` tells the other ranks of a failure, so that this one has to keep step."""


EPOCH_STATE = PerRuntime(lambda _: EpochState())


class Shard:
    """What one worker reads of a data set.

    Attributes:
        plan: Of a whole epoch.
        rank: Whose share.
        failure: What went wrong when it was read, if anything has. TensorFlow turns exceptions
            into its own; this is the one that there was.
    """

    def __init__(
        self, state: EpochState, examples: Examples, plan: Plan, *, rank: int, epoch: int
    ) -> None:
        """For examples that the plan shares out.

        Args:
            state: Which epoch is read.
            examples: All there are.
            plan: Which of them each rank reads.
            rank: This one.
            epoch: The epoch that is read outside of `fit`.

        Raises:
            UnsupportedError: Some worker has to run an example that doesn't count, but there is no
                y.
        """
        self.plan = plan
        self.rank = rank
        self.failure: DataError | None = None
        self._state = state
        self._examples = examples
        self._epoch = epoch
        self._specs = (
            sample_weights.add_weight_specs(examples.specs) if plan.has_padding else examples.specs
        )
        self._weighed_after: Position | None = None

    def dataset(self) -> tf.data.Dataset:
        """The dataset, tagged as this share's."""
        dataset = tf.data.Dataset.from_generator(
            self._batches, output_signature=structure.batched(self._specs)
        )
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        # There is nothing to tune, and the end of an epoch would have to wait for the thread that
        # tunes: it sleeps longer and longer, soon for seconds.
        options.autotune.enabled = False
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(self.plan.steps))
        dataset = dataset.with_options(options).prefetch(2)
        dataset.tfddl_shard = self
        return dataset

    def steps_done(self, position: Position) -> int:
        """By how many steps the rest of an epoch is shorter than the whole.

        These are steps of this share's workers and batch size: with others than before, not as
        many as were made.

        Raises:
            ShardingError: The position isn't one of this data and order, or nothing is left after it.
        """
        return self.plan.steps - self.plan.after(position).steps

    def rest_of(self, dataset: tf.data.Dataset, position: Position) -> tf.data.Dataset:
        """See `ResumePoint.rest_of`."""
        rest = dataset.skip(self.steps_done(position))
        plan = self.plan.after(position)
        if not plan.has_padding or sample_weights.has_float_weights(self._specs):
            return rest
        sample_weights.add_weight_specs(structure.unbatched(dataset.element_spec))
        counts = [batch.count > 0 for batch in self._steps(plan, position.epoch)]
        self._weighed_after = position
        return tf.data.Dataset.zip((rest, tf.data.Dataset.from_tensor_slices(counts))).map(
            tf.autograph.experimental.do_not_convert(sample_weights.weight_batch)
        )

    def _batches(self) -> Iterator[Any]:
        # Asked when iteration starts: `fit` makes an iterator for each of its epochs.
        epoch = self._epoch if self._state.epoch is None else self._state.epoch
        plan = self._plan_of(epoch)
        self.failure = None
        for _ in range(self.plan.steps - plan.steps):
            yield self._element(self._examples.sample, count=1)
        done = 0
        try:
            for element in self._read(plan, epoch):
                yield element
                done += 1
        except DataError as error:
            self.failure = error
            if not self._state.reports_failures:
                # TensorFlow makes a message of it, with all tracebacks in it.
                raise DataError(str(error)) from None
            # `fit` tells the other ranks of it; until they know, this one has to keep step.
            for _ in range(plan.steps - done):
                yield self._element(self._examples.sample, count=1)

    def _plan_of(self, epoch: int) -> Plan:
        """The plan of the epoch that begins, or of what is left of it."""
        resume = self._state.resume
        if resume is None or resume.share is not self or resume.position.epoch != epoch:
            return self.plan
        plan = self.plan.after(resume.position)
        marks = (
            sample_weights.has_float_weights(self._specs) or self._weighed_after == resume.position
        )
        if plan.has_padding and not marks:
            raise UnsupportedError(
                "The rest of the epoch needs examples that don't count, but the dataset has no "
                "sample weights to tell them by; iterate over Resume.rest_of(dataset)."
            )
        return plan

    def _read(self, plan: Plan, epoch: int) -> Iterator[Any]:
        counting = (batch.indices for batch in self._steps(plan, epoch) if batch.count)
        with contextlib.closing(self._examples.batches(counting, epoch=epoch)) as rows:
            for batch in self._steps(plan, epoch):
                of_batch = next(rows) if batch.count else self._examples.sample
                yield self._element(of_batch, batch.count)

    def _steps(self, plan: Plan, epoch: int) -> Iterator[Batch]:
        return (plan.batch(epoch=epoch, step=step, rank=self.rank) for step in range(plan.steps))

    def _element(self, rows: list[np.ndarray], count: int) -> Any:
        rows = sample_weights.weight_rows(rows, self._specs, count)
        return tf.nest.pack_sequence_as(self._specs, rows)
