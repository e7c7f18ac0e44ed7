"""Which rank gets which examples in which step: pure arithmetic, without communication.

Everything here rests on `shard_range`, which replaces tf.data's auto-sharding. A plan divides the
examples of an epoch into steps, and each step among the ranks. It is computed from numbers alone:
every rank, and any later run with any number of workers, gets the same answer.

Usage:
    plan = GlobalPlan(num_examples=103, size=8, batch_size=4, seed=1)
    for step in range(plan.steps):
        batch = plan.batch(epoch=0, step=step, rank=3)   # batch.indices, batch.count

    position = plan.position(epoch=0, steps=2)           # stopped here
    other = GlobalPlan(num_examples=103, size=5, batch_size=4, seed=1)
    rest = other.after(position)                         # the rest of the epoch, by 5 workers
"""

import dataclasses
import enum
import functools

import numpy as np
import numpy.typing as npt

from tfddl.errors import ShardingError

Indices = npt.NDArray[np.int64]


class Order(enum.StrEnum):
    """The order of an epoch's examples, and what a rank reads of it."""

    GLOBAL = "global"
    """One permutation of all examples; every global batch is divided among the ranks."""

    BLOCK = "block"
    """Each rank stays within its own contiguous shard, and reads nothing else."""


def shard_range(num_examples: int, rank: int, size: int) -> tuple[int, int]:
    """The half-open range of examples that belong to one rank.

    With ``q, r = divmod(num_examples, size)`` the first r ranks get q + 1 examples and the others
    q. Shards are contiguous, disjoint, in rank order, and together cover everything.

    Args:
        num_examples: How many examples there are, >= 0.
        rank: Whose shard, 0 <= rank < size.
        size: The number of ranks, >= 1.

    Returns:
        ``(start, stop)``, half-open: ``shard_range(5000, 0, 10) == (0, 500)``.

    Raises:
        ShardingError: An argument is not an integer or is out of range. It is a `ValueError`.
    """
    _check_int("num_examples", num_examples, minimum=0)
    _check_int("size", size, minimum=1)
    _check_int("rank", rank, minimum=0)
    if rank >= size:
        raise ShardingError(f"rank is {rank} but size is {size}; rank must be 0..{size - 1}.")
    quotient, remainder = divmod(num_examples, size)
    start = rank * quotient + min(rank, remainder)
    return start, start + quotient + (rank < remainder)


@dataclasses.dataclass(frozen=True, slots=True)
class CompletedSpan:
    """A part of an epoch in block order that one set of workers has trained on."""

    size: int
    batch_size: int
    steps: int

    def __post_init__(self) -> None:
        for name in self.__slots__:
            _check_int(name, getattr(self, name), minimum=1)


@dataclasses.dataclass(frozen=True, slots=True)
class Position:
    """A position in the data: all it takes to resume, with any number of workers.

    `position` of a plan makes one; `after` of a plan resumes from it.
    """

    epoch: int
    consumed: int
    """How many examples of the epoch, over all ranks, have been trained on."""

    spans: tuple[CompletedSpan, ...] = ()
    """In block order, by which workers: each span begins where the one before ended. Empty in
    global order."""

    def __post_init__(self) -> None:
        _check_int("epoch", self.epoch, minimum=0)
        _check_int("consumed", self.consumed, minimum=0)


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """The examples of one rank in one step."""

    indices: Indices
    """Of the examples: int64 of shape (n,), n >= 1."""

    count: int
    """How many of them count: n, or 0 for a padding example."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlobalPlan:
    """Global order: an epoch is one permutation of all examples, by seed and epoch.

    The number of steps is ceil(n / (size * batch_size)). `shard_range` divides the n examples into
    that many global batches, whose sizes differ by one at most, and each global batch among the
    ranks. Two plans with the same product ``size * batch_size`` have the same global batches.

    Where a rank's part of a global batch would be empty, it gets a padding example, a real one with
    count 0: Keras and TensorFlow don't handle empty batches everywhere (means are 0 / 0).
    """

    num_examples: int
    size: int
    batch_size: int
    """Examples per rank and step, as in Horovod; no rank ever gets more."""

    seed: int | None = None
    """None keeps the order of the data."""

    consumed: int = 0
    """Examples of the epoch that were trained on before; the plan has the rest."""

    def __post_init__(self) -> None:
        _check_plan(self)
        _check_int("consumed", self.consumed, minimum=0)
        if self.consumed >= self.num_examples:
            raise ShardingError(
                f"consumed is {self.consumed} of {self.num_examples} examples; nothing is left. "
                "HINT: start the next epoch instead."
            )

    @property
    def steps(self) -> int:
        """Steps until the end of the epoch, the same on every rank."""
        # Rounded up, in integers: exact, as math.ceil of a float isn't.
        return -(-self._remaining // (self.size * self.batch_size))

    @property
    def has_padding(self) -> bool:
        """Whether any rank gets a padding example in any step."""
        return self._remaining // self.steps < self.size

    def global_range(self, step: int) -> tuple[int, int]:
        """The half-open range, in the epoch's order, of the examples of one step."""
        start, stop = shard_range(self._remaining, step, self.steps)
        return self.consumed + start, self.consumed + stop

    def batch(self, *, epoch: int, step: int, rank: int) -> Batch:
        """The examples of one rank in one step."""
        first, last = self.global_range(step)
        start, stop = shard_range(last - first, rank, self.size)
        order = permutation(self.num_examples, self.seed, epoch)
        return _batch(order, first + start, first + stop)

    def batch_sizes(self, rank: int) -> dict[int, int]:
        """Size of a batch -> how many a rank has in every epoch; padding examples have size 0."""
        small, num_large = divmod(self._remaining, self.steps)
        return _count_sizes(
            (_shard_size(small + 1, rank, self.size), num_large),
            (_shard_size(small, rank, self.size), self.steps - num_large),
        )

    def position(self, *, epoch: int, steps: int) -> Position:
        """The position after some steps of this plan.

        Args:
            epoch: The number of the epoch, >= 0.
            steps: Completed steps of this plan, 0 <= steps <= `self.steps`.

        Raises:
            ShardingError: A number is out of range.
        """
        _check_steps(steps, self.steps)
        return Position(epoch, self.consumed + _boundary(self._remaining, steps, self.steps))

    def after(self, position: Position) -> "GlobalPlan":
        """The plan for the rest of an epoch, with this plan's workers and batch size.

        Where ``size * batch_size`` is unchanged, the rest has the global batches of an epoch that
        wasn't interrupted.

        Raises:
            ShardingError: The position is of block order, or nothing is left after it.
        """
        if position.spans:
            raise ShardingError(
                "The position was reached in block order, but the plan is one of global order. "
                'HINT: resume with order="block", or begin the epoch anew.'
            )
        return dataclasses.replace(self, consumed=position.consumed)

    @property
    def _remaining(self) -> int:
        return self.num_examples - self.consumed


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """Block order: a rank reads only its own contiguous part of the data.

    All ranks run ceil(largest shard / batch_size) steps, though shards differ by one example;
    `shard_range` divides each shard into that many batches. With a seed, the order within each
    shard changes from epoch to epoch.

    The rest of an interrupted epoch is what is left of the ranks' shards, in rank order. With
    another number of workers, or another batch size, `shard_range` divides it anew; with the same,
    the division continues.
    """

    num_examples: int
    size: int
    batch_size: int
    """Examples per rank and step, as in Horovod; no rank ever gets more."""

    seed: int | None = None
    """None keeps the order of the data."""

    spans: tuple[CompletedSpan, ...] = ()
    """What was trained on before; the plan has the rest."""

    def __post_init__(self) -> None:
        _check_plan(self)
        if self._remaining(self.spans) == 0:
            raise ShardingError(
                f"All {self.num_examples} examples of the epoch were consumed; nothing is left. "
                "HINT: start the next epoch instead."
            )

    @property
    def steps(self) -> int:
        """Steps until the end of the epoch, the same on every rank."""
        return self._total_steps - self._steps_done

    @property
    def has_padding(self) -> bool:
        """Whether any rank gets a padding example in any step."""
        return self._remaining(self._earlier_spans) // self.size < self._total_steps

    def batch(self, *, epoch: int, step: int, rank: int) -> Batch:
        """The examples of one rank in one step."""
        _check_int("step", step, minimum=0)
        first, last = shard_range(self._remaining(self._earlier_spans), rank, self.size)
        start, stop = shard_range(last - first, step + self._steps_done, self._total_steps)
        if self._earlier_spans:
            order = _remaining_order(self.num_examples, self.seed, epoch, self._earlier_spans)
            return _batch(order, first + start, first + stop)
        # Shuffles the rank's own part only, so that it costs 1/size of a permutation of all.
        within = permutation(last - first, self.seed, epoch, rank)
        batch = _batch(within, start, stop)
        return Batch(indices=batch.indices + first, count=batch.count)

    def batch_sizes(self, rank: int) -> dict[int, int]:
        """Size of a batch -> how many a rank has in every epoch; padding examples have size 0."""
        shard = _shard_size(self._remaining(self._earlier_spans), rank, self.size)
        small, num_large = divmod(shard, self._total_steps)
        num_large = max(0, num_large - self._steps_done)
        return _count_sizes((small + 1, num_large), (small, self.steps - num_large))

    def position(self, *, epoch: int, steps: int) -> Position:
        """The position after some steps of this plan.

        Args:
            epoch: The number of the epoch, >= 0.
            steps: Completed steps of this plan, 0 <= steps <= `self.steps`.

        Raises:
            ShardingError: A number is out of range.
        """
        _check_steps(steps, self.steps)
        spans = self._earlier_spans
        if steps + self._steps_done:
            spans += (CompletedSpan(self.size, self.batch_size, steps + self._steps_done),)
        return Position(epoch, self.num_examples - self._remaining(spans), spans)

    def after(self, position: Position) -> "BlockPlan":
        """The plan for the rest of an epoch, with this plan's workers and batch size.

        Raises:
            ShardingError: The position is not of this data in block order, or nothing is left
                after it.
        """
        consumed = self.num_examples - self._remaining(position.spans)
        if position.consumed != consumed:
            raise ShardingError(
                f"The position says that {position.consumed} examples were consumed; in block "
                f"order, of {self.num_examples} examples, it would be {consumed}. HINT: resume "
                "with the order and the data of that position, or begin the epoch anew."
            )
        return dataclasses.replace(self, spans=position.spans)

    @property
    def _steps_done(self) -> int:
        """Completed steps of the division that this plan continues; 0 where it divides anew."""
        last = self.spans[-1] if self.spans else None
        same = last is not None and (last.size, last.batch_size) == (self.size, self.batch_size)
        return last.steps if last is not None and same else 0

    @property
    def _earlier_spans(self) -> tuple[CompletedSpan, ...]:
        """The spans before that division."""
        return self.spans[:-1] if self._steps_done else self.spans

    @property
    def _total_steps(self) -> int:
        return _block_steps(self._remaining(self._earlier_spans), self.size, self.batch_size)

    def _remaining(self, spans: tuple[CompletedSpan, ...]) -> int:
        """How many examples are left after these spans."""
        left = self.num_examples
        for span in spans:
            left = sum(stop - start for start, stop in _remaining_ranges(left, span))
        return left


Plan = GlobalPlan | BlockPlan


def permutation(num_examples: int, seed: int | None, *stream: int) -> Indices:
    """An order of examples, the same on every rank for the same arguments.

    Args:
        num_examples: Their number.
        seed: None is the natural order.
        *stream: Integers that the order depends on besides: the epoch, the rank.

    Returns:
        int64 of shape (num_examples,), read-only.
    """
    # The natural order is the same in each epoch: one entry of the cache.
    return _permutation(num_examples, seed, *(() if seed is None else stream))


# Plans ask for the same order in each step. At most 4 orders are kept, of 8 bytes per example: of
# training and validation data, of an epoch and the next one.
@functools.lru_cache(maxsize=4)
def _permutation(num_examples: int, seed: int | None, *stream: int) -> Indices:
    if seed is None:
        order = np.arange(num_examples, dtype=np.int64)
    else:
        # SeedSequence makes streams of neighbouring seeds and epochs independent. A feature release
        # of NumPy may change what a Generator draws (NEP 19): an epoch that was begun with another
        # one can't be resumed exactly.
        order = np.random.default_rng([seed, *stream]).permutation(num_examples)
    order.setflags(write=False)
    return order


@functools.lru_cache(maxsize=2)
def _remaining_order(
    num_examples: int, seed: int | None, epoch: int, spans: tuple[CompletedSpan, ...]
) -> Indices:
    """The examples of an epoch that are left after some spans, in their order."""
    shards = [shard_range(num_examples, r, spans[0].size) for r in range(spans[0].size)]
    order = np.concatenate(
        [
            first + permutation(last - first, seed, epoch, r)
            for r, (first, last) in enumerate(shards)
        ]
    )
    for span in spans:
        order = np.concatenate(
            [order[start:stop] for start, stop in _remaining_ranges(len(order), span)]
        )
    order.setflags(write=False)
    return order


def _remaining_ranges(num_examples: int, span: CompletedSpan) -> list[tuple[int, int]]:
    """What each rank of a span has left of its shard: half-open ranges, in rank order."""
    total = _block_steps(num_examples, span.size, span.batch_size)
    _check_steps(span.steps, total)
    shards = [shard_range(num_examples, rank, span.size) for rank in range(span.size)]
    return [(first + _boundary(last - first, span.steps, total), last) for first, last in shards]


def _block_steps(num_examples: int, size: int, batch_size: int) -> int:
    start, stop = shard_range(num_examples, 0, size)
    return -(-(stop - start) // batch_size)


def _boundary(num_examples: int, part: int, parts: int) -> int:
    """Where a part begins; for ``part == parts``, where the last one ends."""
    return shard_range(num_examples, part, parts)[0] if part < parts else num_examples


def _shard_size(num_examples: int, part: int, parts: int) -> int:
    start, stop = shard_range(num_examples, part, parts)
    return stop - start


def _count_sizes(*runs: tuple[int, int]) -> dict[int, int]:
    """Size -> how often it occurs, of pairs of both."""
    sizes: dict[int, int] = {}
    for size, number in runs:
        if number:
            sizes[size] = sizes.get(size, 0) + number
    return sizes


def _batch(order: Indices, start: int, stop: int) -> Batch:
    if start < stop:
        return Batch(indices=order[start:stop], count=stop - start)
    padding = min(start, len(order) - 1)
    return Batch(indices=order[padding : padding + 1], count=0)


def _check_plan(plan: "GlobalPlan | BlockPlan") -> None:
    _check_int("num_examples", plan.num_examples, minimum=0)
    _check_int("size", plan.size, minimum=1)
    _check_int("batch_size", plan.batch_size, minimum=1)
    if plan.seed is not None:
        _check_int("seed", plan.seed, minimum=0)
    if plan.num_examples < plan.size:
        raise ShardingError(
            f"There are {plan.num_examples} examples for {plan.size} workers; every worker needs "
            f"at least one. HINT: use at most {max(plan.num_examples, 1)} workers, or more data."
        )


def _check_steps(steps: int, available: int) -> None:
    _check_int("steps", steps, minimum=0)
    if steps > available:
        raise ShardingError(f"steps is {steps}, but there are only {available} steps.")


def _check_int(name: str, value: object, *, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ShardingError(f"{name} must be an integer, not {value!r} ({type(value).__name__}).")
    if value < minimum:
        raise ShardingError(f"{name} is {value}; it must be at least {minimum}.")
