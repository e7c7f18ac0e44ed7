"""Who gets which examples, and in which step: pure arithmetic.

Everything here rests on `shard_range`, which replaces tf.data's auto-sharding. A plan cuts the
examples of an epoch into steps and each step into the shares of the ranks; it is computed from
numbers alone, so that every rank (and any later run, with any number of workers) arrives at the
same answer without asking the others.

Usage:
    plan = GlobalPlan(num_examples=103, size=8, batch_size=4, seed=1)
    for step in range(plan.steps):
        batch = plan.batch(epoch=0, step=step, rank=3)   # batch.indices, batch.count

    position = plan.position(epoch=0, steps=2)           # stopped here
    other = GlobalPlan(num_examples=103, size=5, batch_size=4, seed=1)
    rest = other.after(position)                         # 5 workers do the rest of the epoch
"""

import dataclasses
import enum
import functools

import numpy as np
import numpy.typing as npt

from tfddl.errors import ShardingError

Indices = npt.NDArray[np.int64]


class Order(enum.StrEnum):
    """In which order the examples of an epoch are visited."""

    GLOBAL = "global"
    """One permutation of all examples; every global batch is cut over the ranks."""

    BLOCK = "block"
    """Each rank stays within its own contiguous shard, and reads nothing else."""


def shard_range(num_examples: int, rank: int, size: int) -> tuple[int, int]:
    """The half-open range of examples that belong to one rank.

    With ``q, r = divmod(num_examples, size)`` the first r ranks get q + 1 examples and the others
    q. Shards are contiguous, disjoint, in rank order, and together cover everything.

    Args:
        num_examples: How many examples there are, >= 0.
        rank: Whose share, 0 <= rank < size.
        size: Over how many ranks, >= 1.

    Returns:
        ``(start, stop)``, half-open: ``shard_range(5000, 0, 10) == (0, 500)``.

    Raises:
        ShardingError: An argument is not an integer or is out of range.
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
    """What one group of workers did of an epoch, in block order."""

    size: int
    batch_size: int
    steps: int

    def __post_init__(self) -> None:
        for name in self.__slots__:
            _check_int(name, getattr(self, name), minimum=1)


@dataclasses.dataclass(frozen=True, slots=True)
class Position:
    """A place in the data: all it takes to go on, with any number of workers.

    A plan's `position` makes one, a plan's `after` goes on from it.
    """

    epoch: int
    consumed: int
    """How many examples of the epoch, over all ranks, have been trained on."""

    stretches: tuple[CompletedSpan, ...] = ()
    """In block order, who trained on them: each stretch begins where the one before ended. Empty
    in global order."""

    def __post_init__(self) -> None:
        _check_int("epoch", self.epoch, minimum=0)
        _check_int("consumed", self.consumed, minimum=0)


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """What one rank does in one step."""

    indices: Indices
    """Which examples, int64 of shape (at least 1,)."""

    count: int
    """How many of them count: their number, or 0 for a stand-in."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlobalPlan:
    """Global batches: an epoch is one permutation of all examples, by seed and epoch.

    The number of steps is ceil(n / (size * batch_size)). The n examples are cut into that many
    global batches by `shard_range`, so that their sizes differ by one at most, and each global
    batch is cut over the ranks by `shard_range`. Two plans with the same product
    ``size * batch_size`` have the same global batches.

    Where a rank's part of a global batch would be empty, it gets a real example that doesn't
    count (a stand-in): no worker ever sees an empty tensor.
    """

    num_examples: int
    size: int
    batch_size: int
    """Examples per rank and step, as in Horovod; no rank ever gets more."""

    seed: int | None = None
    """None keeps the order of the data."""

    consumed: int = 0
    """Examples of the epoch that were trained on before; the plan covers the rest."""

    def __post_init__(self) -> None:
        _check_plan(self)
        _check_int("consumed", self.consumed, minimum=0)
        if self.consumed >= self.num_examples:
            raise ShardingError(
                f"consumed is {self.consumed} of {self.num_examples} examples; nothing is left. "
                "Start the next epoch instead."
            )

    @property
    def steps(self) -> int:
        """Steps until the end of the epoch, the same on every rank."""
        return -(-self._remaining // (self.size * self.batch_size))

    @property
    def has_padding(self) -> bool:
        """Whether any rank has to run an example that doesn't count."""
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
        """How many batches of which size a rank has in every epoch; stand-ins have size 0."""
        small, num_large = divmod(self._remaining, self.steps)
        return _sizes(
            (_part(small + 1, rank, self.size), num_large),
            (_part(small, rank, self.size), self.steps - num_large),
        )

    def position(self, *, epoch: int, steps: int) -> Position:
        """The place after some steps of this plan.

        Args:
            epoch: Of which epoch, >= 0.
            steps: How many steps of this plan were made, 0 <= steps <= `steps` of the plan.

        Raises:
            ShardingError: A number is out of range.
        """
        _check_steps(steps, self.steps)
        return Position(epoch, self.consumed + _start(self._remaining, steps, self.steps))

    def after(self, position: Position) -> "GlobalPlan":
        """The plan of the rest of an epoch, for this plan's workers and batch size.

        Where ``size * batch_size`` is what it was, the rest has the global batches of an epoch
        that wasn't interrupted.

        Raises:
            ShardingError: The position is not one of global order, or nothing is left after it.
        """
        if position.stretches:
            raise ShardingError(
                "The position was reached in block order, but the plan is one of global order. "
                'Go on with order="block", or begin the epoch anew.'
            )
        return dataclasses.replace(self, consumed=position.consumed)

    @property
    def _remaining(self) -> int:
        return self.num_examples - self.consumed


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """Block shards: a rank reads only its own contiguous part of the data.

    Ranks whose shards differ by one example still run the same number of steps:
    ceil(largest shard / batch_size); each shard is cut into that many batches by `shard_range`.
    With a seed, the order within each shard changes from epoch to epoch.

    The rest of an epoch that was interrupted is what is left of the ranks' shards, in rank order.
    Another number of workers, or another batch size, cuts it anew by `shard_range`; the same goes
    on with the cut that there was.
    """

    num_examples: int
    size: int
    batch_size: int
    """Examples per rank and step, as in Horovod; no rank ever gets more."""

    seed: int | None = None
    """None keeps the order of the data."""

    stretches: tuple[CompletedSpan, ...] = ()
    """What was done of the epoch before; the plan covers the rest."""

    def __post_init__(self) -> None:
        _check_plan(self)
        if self._remaining(self.stretches) == 0:
            raise ShardingError(
                f"All {self.num_examples} examples of the epoch were consumed; nothing is left. "
                "Start the next epoch instead."
            )

    @property
    def steps(self) -> int:
        """Steps until the end of the epoch, the same on every rank."""
        return self._cut_steps - self._offset

    @property
    def has_padding(self) -> bool:
        """Whether any rank has to run an example that doesn't count."""
        return self._remaining(self._before) // self.size < self._cut_steps

    def batch(self, *, epoch: int, step: int, rank: int) -> Batch:
        """The examples of one rank in one step."""
        _check_int("step", step, minimum=0)
        first, last = shard_range(self._remaining(self._before), rank, self.size)
        start, stop = shard_range(last - first, step + self._offset, self._cut_steps)
        if self._before:
            order = _rest_of_blocks(self.num_examples, self.seed, epoch, self._before)
            return _batch(order, first + start, first + stop)
        # Of a whole epoch, only the rank's own part is shuffled.
        within = permutation(last - first, self.seed, epoch, rank)
        batch = _batch(within, start, stop)
        return Batch(indices=batch.indices + first, count=batch.count)

    def batch_sizes(self, rank: int) -> dict[int, int]:
        """How many batches of which size a rank has in every epoch; stand-ins have size 0."""
        shard = _part(self._remaining(self._before), rank, self.size)
        small, num_large = divmod(shard, self._cut_steps)
        num_large = max(0, num_large - self._offset)
        return _sizes((small + 1, num_large), (small, self.steps - num_large))

    def position(self, *, epoch: int, steps: int) -> Position:
        """The place after some steps of this plan.

        Args:
            epoch: Of which epoch, >= 0.
            steps: How many steps of this plan were made, 0 <= steps <= `steps` of the plan.

        Raises:
            ShardingError: A number is out of range.
        """
        _check_steps(steps, self.steps)
        stretches = self._before
        if steps + self._offset:
            stretches += (CompletedSpan(self.size, self.batch_size, steps + self._offset),)
        return Position(epoch, self.num_examples - self._remaining(stretches), stretches)

    def after(self, position: Position) -> "BlockPlan":
        """The plan of the rest of an epoch, for this plan's workers and batch size.

        Raises:
            ShardingError: The position is not one of this data in block order, or nothing is left
                after it.
        """
        consumed = self.num_examples - self._remaining(position.stretches)
        if position.consumed != consumed:
            raise ShardingError(
                f"The position says that {position.consumed} examples were consumed; in block "
                f"order, of {self.num_examples} examples, it would be {consumed}. Go on with the "
                "order and the data with which the position was reached, or begin the epoch anew."
            )
        return dataclasses.replace(self, stretches=position.stretches)

    @property
    def _offset(self) -> int:
        """How many steps were made in the cut that this plan goes on with."""
        last = self.stretches[-1] if self.stretches else None
        same = last is not None and (last.size, last.batch_size) == (self.size, self.batch_size)
        return last.steps if last is not None and same else 0

    @property
    def _before(self) -> tuple[CompletedSpan, ...]:
        """What was done before the cut that this plan goes on with."""
        return self.stretches[:-1] if self._offset else self.stretches

    @property
    def _cut_steps(self) -> int:
        return _block_steps(self._remaining(self._before), self.size, self.batch_size)

    def _remaining(self, stretches: tuple[CompletedSpan, ...]) -> int:
        """How many examples are left after these stretches."""
        left = self.num_examples
        for stretch in stretches:
            left = sum(stop - start for start, stop in _tails(left, stretch))
        return left


Plan = GlobalPlan | BlockPlan


def permutation(num_examples: int, seed: int | None, *stream: int) -> Indices:
    """The order of the examples, the same on every rank for the same arguments.

    Args:
        num_examples: How many examples to order.
        seed: Which family of orders; None is the natural order.
        *stream: What else the order depends on: the epoch, the rank.

    Returns:
        int64 of shape (num_examples,), read-only.
    """
    # The natural order is the same in each epoch, and need be kept only once.
    return _permutation(num_examples, seed, *(() if seed is None else stream))


@functools.lru_cache(maxsize=4)
def _permutation(num_examples: int, seed: int | None, *stream: int) -> Indices:
    if seed is None:
        order = np.arange(num_examples, dtype=np.int64)
    else:
        order = np.random.default_rng([seed, *stream]).permutation(num_examples)
    order.setflags(write=False)
    return order


@functools.lru_cache(maxsize=2)
def _rest_of_blocks(
    num_examples: int, seed: int | None, epoch: int, stretches: tuple[CompletedSpan, ...]
) -> Indices:
    """The examples of an epoch that are left after some stretches, in their order."""
    shards = [shard_range(num_examples, r, stretches[0].size) for r in range(stretches[0].size)]
    order = np.concatenate(
        [
            first + permutation(last - first, seed, epoch, r)
            for r, (first, last) in enumerate(shards)
        ]
    )
    for stretch in stretches:
        order = np.concatenate([order[start:stop] for start, stop in _tails(len(order), stretch)])
    order.setflags(write=False)
    return order


def _tails(num_examples: int, stretch: CompletedSpan) -> list[tuple[int, int]]:
    """What each rank of a stretch left of its shard: half-open ranges, in rank order."""
    total = _block_steps(num_examples, stretch.size, stretch.batch_size)
    _check_steps(stretch.steps, total)
    shards = [shard_range(num_examples, rank, stretch.size) for rank in range(stretch.size)]
    return [(first + _start(last - first, stretch.steps, total), last) for first, last in shards]


def _block_steps(num_examples: int, size: int, batch_size: int) -> int:
    start, stop = shard_range(num_examples, 0, size)
    return -(-(stop - start) // batch_size)


def _start(num_examples: int, part: int, parts: int) -> int:
    """Where a part begins, and, for ``part == parts``, where the last one ends."""
    return shard_range(num_examples, part, parts)[0] if part < parts else num_examples


def _part(num_examples: int, part: int, parts: int) -> int:
    start, stop = shard_range(num_examples, part, parts)
    return stop - start


def _sizes(*runs: tuple[int, int]) -> dict[int, int]:
    """Adds up pairs of a size and how often it occurs."""
    sizes: dict[int, int] = {}
    for size, number in runs:
        if number:
            sizes[size] = sizes.get(size, 0) + number
    return sizes


def _batch(order: Indices, start: int, stop: int) -> Batch:
    if start < stop:
        return Batch(indices=order[start:stop], count=stop - start)
    stand_in = min(start, len(order) - 1)
    return Batch(indices=order[stand_in : stand_in + 1], count=0)


def _check_plan(plan: "GlobalPlan | BlockPlan") -> None:
    _check_int("num_examples", plan.num_examples, minimum=0)
    _check_int("size", plan.size, minimum=1)
    _check_int("batch_size", plan.batch_size, minimum=1)
    if plan.seed is not None:
        _check_int("seed", plan.seed, minimum=0)
    if plan.num_examples < plan.size:
        raise ShardingError(
            f"There are {plan.num_examples} examples for {plan.size} workers; every worker needs "
            f"at least one. Use at most {max(plan.num_examples, 1)} workers, or more data."
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
