"""The interface by which workers exchange tensors, and what its implementations have in common."""

import abc
import dataclasses
import enum
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

import tensorflow as tf

from tfddl._src.comm.native import ByteCounters, OpSignature, ReduceOp
from tfddl.errors import UnsupportedError

Lengths: TypeAlias = Sequence[int] | tf.Tensor
"""How many elements go to each rank, in rank order: numbers, or shape (size,), int64, known only
when the graph runs."""


class Transport(enum.StrEnum):
    """What TensorFlow's collectives send bytes through."""

    RING = "ring"
    """Over gRPC, for CPUs."""

    NCCL = "nccl"
    """NVIDIA's library, for GPUs."""


class InterHostTransport(enum.StrEnum):
    """What the first workers of CPU hosts send bytes through, to each other."""

    TCP = "tcp"
    """Streams of our own."""

    RING = "ring"
    """TensorFlow's collectives."""


OVER_ROWS = {
    ReduceOp.SUM: tf.reduce_sum,
    ReduceOp.PRODUCT: tf.reduce_prod,
    ReduceOp.MIN: tf.reduce_min,
    ReduceOp.MAX: tf.reduce_max,
}
"""The same arithmetic within one worker."""


ALL_DTYPES = frozenset(
    {
        *(tf.bool, tf.uint8, tf.int8, tf.uint16, tf.int16, tf.uint32, tf.int32),
        *(tf.int64, tf.float16, tf.bfloat16, tf.float32, tf.float64),
    }
)
"""What any process group carries that TensorFlow's collectives don't bound."""


@dataclasses.dataclass(frozen=True, eq=False)
class DynamicSignature:
    """What has to be alike about an operation on all ranks, shapes known only in a run included."""

    static: OpSignature = OpSignature("", "an operation")
    """What is known when the operation is called, or its graph is made."""

    shapes: tuple[tf.Tensor, ...] = ()
    """The dynamic shape of each tensor, int64 or int32: what of it has to be alike. Empty where
    `static` has them all."""

    joinable: bool = False
    """Whether `all_gather` goes on without ranks that have joined, whose rows are zeros."""


UNNAMED = DynamicSignature()
"""Operations of nobody's call: those of a group within another one."""


class ProcessGroup(abc.ABC):
    """Moves flat tensors between all workers, or between some of them.

    All members must call every data operation together, in the same order, with tensors of the same
    lengths and dtype; it works eagerly and in a graph (loops and branches included). Within a
    graph, operations run in program order, also those of several groups.

    Data operations raise `PeerLostOpError`, `StalledOpError` and `DeadlockOpError`; in a graph
    TensorFlow makes other errors of them, with the same text.

    Attributes:
        name: What users see in messages and logs.
        dtypes: What it carries; others have to be cast before.
        rank: This worker's place in the group, 0 <= rank < size.
        ranks: The members' ranks in the job, ascending.
        rounds_once: Whether sums of 8 and 16 bits come out as if they had been added up in 32.
        overlaps: Whether there is a core, or a GPU, that computes while tensors travel. Where there
            is none, both only get into each other's way.
        device: Where what operations need of their own (counters, the header of a step) is kept.
        stays_on_device: Whether an operation between tensors of the device may use nothing but the
            device: it is a GPU, and a detour by the CPU waits for all that the GPU was given
            before.
        compares: Whether operations compare the members' signatures before anything is moved, and
            raise `DisagreementOpError` (in a graph `GraphDisagreementError`) on all members where
            they differ.
        runs_in_sessions: Whether operations work in the graph of a `tf.compat.v1.Session`.
        can_close: Whether `close` gives back all that it has, so that another group can take its
            place in this process.
        counters: Bytes that have been reduced and written so far, where that is counted.
    """

    name: str
    dtypes: frozenset[tf.DType]
    rounds_once = False
    overlaps = True
    device = "CPU:0"
    stays_on_device = False
    compares = False
    runs_in_sessions = False
    can_close = False

    def __init__(self, rank: int, ranks: Sequence[int]) -> None:
        self.rank = rank
        self.ranks = tuple(ranks)
        self.counters = ByteCounters()
        self._subgroups: dict[tuple[int, ...], ProcessGroup] = {}
        self._making = threading.Lock()

    @property
    def size(self) -> int:
        """How many members there are."""
        return len(self.ranks)

    def subgroup(self, ranks: tuple[int, ...]) -> "ProcessGroup":
        """The group of some members, of which this worker is one. Nothing travels for it.

        It is made once for each set of ranks, and kept: two would take each other's messages.

        Args:
            ranks: Ascending, without repetition, as this group counts them: in [0, size).

        Returns:
            A group whose ranks are counted in the order given. Of all members it is this group.
        """
        if ranks == tuple(range(self.size)):
            return self
        with self._making:
            if ranks not in self._subgroups:
                self._subgroups[ranks] = self._make_subgroup(ranks)
            return self._subgroups[ranks]

    @abc.abstractmethod
    def _make_subgroup(self, ranks: tuple[int, ...]) -> "ProcessGroup":
        """A new group for `subgroup`; the ranks are fewer than all."""

    @abc.abstractmethod
    def abort(self, text: str) -> None:
        """Ends what waits here, on this rank, and all that follows; any thread may call it.

        Args:
            text: What their errors say.
        """

    @property
    def is_broken(self) -> bool:
        """Whether operations can't go on: a member has ended, where that is known."""
        return False

    def close(self, text: str) -> None:
        """Closes the connections of this rank, where `can_close`; members find that it has ended.

        Args:
            text: What the errors of operations that are called nevertheless say.
        """
        raise UnsupportedError(f"Connections by {self.name} stay until the process ends.")

    @abc.abstractmethod
    def all_reduce(
        self,
        tensors: Sequence[tf.Tensor],
        op: ReduceOp,
        *,
        scale: tf.Tensor | None = None,
        signature: DynamicSignature = UNNAMED,
    ) -> list[tf.Tensor]:
        """Reduces tensors elementwise over the ranks, together.

        Args:
            tensors: At least one, any shapes, one dtype of `dtypes`; the same on all ranks.
            op: How; not AVERAGE.
            scale: Scalar, floating point: what this rank's tensors, floats, are multiplied with
                before. 0 makes zeros even of what isn't a number.
            signature: What the members compare, and messages name.

        Returns:
            The same shapes and dtype, bit for bit the same on every rank.
        """

    def sum_weighted(
        self,
        head: tf.Tensor,
        tensors: Sequence[tf.Tensor],
        weight: tf.Tensor,
        *,
        divisor: float | None,
        signature: DynamicSignature = UNNAMED,
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Sums of tensors that each rank weights, divided by what their weights add up to.

        Args:
            head: Shape (n,), n > 0, float32 or float64: numbers that are added up as they are.
            tensors: At least one, shapes that are known, the dtype of `head`; the same on all
                ranks.
            weight: Scalar, that dtype: what this rank's tensors are multiplied with. 0 makes zeros
                even of what isn't a number.
            divisor: Of the sums of the tensors; None is the sum of the first number of `head`.
                0 makes zeros.
            signature: What the members compare, and messages name.

        Returns:
            The sum of `head`; and the tensors, bit for bit the same on every rank.
        """
        # multiply_no_nan(x, y) is zero where y is, even for a NaN in x (not the other way round).
        weighted = tf.math.multiply_no_nan(flatten(tensors), weight)
        flat = tf.concat([head, weighted], axis=0)
        [total] = self.all_reduce([flat], ReduceOp.SUM, signature=signature)
        number = total[0] if divisor is None else tf.constant(divisor, total.dtype)
        # All of it is divided, and cut once: to take the tensors out first would copy them.
        means = unflatten(tf.math.divide_no_nan(total, number), [head, *tensors])
        return total[: head.shape[0]], means[1:]

    @abc.abstractmethod
    def all_gather(self, flat: tf.Tensor, *, signature: DynamicSignature = UNNAMED) -> tf.Tensor:
        """Collects the tensors of all ranks.

        Args:
            flat: Shape (n,), n >= 0, a dtype of `dtypes`.
            signature: What the members compare, and messages name.

        Returns:
            Shape (size, n), in rank order.
        """

    def gather_rows(
        self, tensors: Sequence[tf.Tensor], *, signature: DynamicSignature = UNNAMED
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Joins tensors of all ranks on their first dimensions, which may differ.

        Args:
            tensors: At least one, each with at least one dimension, dtypes of `dtypes`; the same
                but for first dimensions on all ranks.
            signature: What the members compare, and messages name.

        Returns:
            Shape (size, number of tensors), int64: how many rows each rank has of each. And each
            tensor's rows of all ranks, in rank order.
        """
        own = tf.stack([tf.shape(tensor, tf.int64)[0] for tensor in tensors])
        rows = self.all_gather(own, signature=signature)
        outputs: list[tf.Tensor] = [None] * len(tensors)
        # All of one dtype at once, padded to the longest, then cut.
        for members in positions_by_dtype(tensors):
            mine = flatten([tensors[i] for i in members])
            inner = tf.stack([tf.reduce_prod(tf.shape(tensors[i], tf.int64)[1:]) for i in members])
            lengths = tf.gather(rows, members, axis=1) * inner
            longest = tf.reduce_max(tf.reduce_sum(lengths, axis=1))
            padded = tf.pad(mine, [[0, longest - tf.size(mine, tf.int64)]])
            arrived = self.all_gather(padded, signature=signature)
            ends = tf.cumsum(lengths, axis=1)
            for column, i in enumerate(members):
                parts = [
                    arrived[rank, ends[rank, column] - lengths[rank, column] : ends[rank, column]]
                    for rank in range(self.size)
                ]
                outputs[i] = _shaped(tf.concat(parts, axis=0), rows[:, i], tensors[i])
        return rows, outputs

    @abc.abstractmethod
    def broadcast(
        self, tensors: Sequence[tf.Tensor], root: int, *, signature: DynamicSignature = UNNAMED
    ) -> list[tf.Tensor]:
        """Gives every rank the tensors of one.

        Args:
            tensors: As for `all_reduce`; only the root's values matter.
            root: Whose: its place in the group.
            signature: What the members compare, and messages name.

        Returns:
            The same shapes and dtype, bit for bit what the root has.
        """

    def join(self, *, signature: DynamicSignature = UNNAMED) -> tf.Tensor:
        """Takes part in nothing more until all members have joined, for which it waits.

        Meanwhile this rank counts as zeros in the others' `all_reduce`; their other operations
        raise `DisagreementOpError` (in a graph `GraphDisagreementError`).

        Args:
            signature: What it belongs to.

        Returns:
            Scalar, int32: the place in the group of the rank that has joined last, the same on all.

        Raises:
            UnsupportedError: Members can't be left out of the group's operations.
        """
        raise UnsupportedError(
            f"rank {self.ranks[self.rank]} has called join, which {self.name} doesn't know: all "
            "ranks take part in each of its operations. HINT: join works between CPUs, on one host "
            "or with one worker per host; and tfddl.shard_dataset gives all ranks the same number "
            "of steps, so that none has to wait."
        )

    def reduce_scatter(
        self,
        flat: tf.Tensor,
        lengths: Lengths,
        op: ReduceOp,
        *,
        signature: DynamicSignature = UNNAMED,
    ) -> tf.Tensor:
        """Reduces elementwise over the ranks; each rank gets its own part.

        Args:
            flat: Shape (n,), n >= 0, a dtype of `dtypes`.
            lengths: How many elements each rank gets; their sum is n. The same on all ranks.
            op: How; not AVERAGE.
            signature: What the members compare, and messages name.

        Returns:
            Shape (lengths[rank],), the same dtype.
        """
        [total] = self.all_reduce([flat], op, signature=signature)
        each = tf.convert_to_tensor(lengths, tf.int64)
        start = tf.reduce_sum(each[: self.rank])
        return total[start : start + each[self.rank]]

    def all_to_all(
        self, flat: tf.Tensor, lengths: tf.Tensor, *, signature: DynamicSignature = UNNAMED
    ) -> tf.Tensor:
        """Gives every rank a part of its own from each rank.

        Args:
            flat: Shape (n,), n >= 0, a dtype of `dtypes`: this rank's parts for all ranks, in rank
                order. n may differ per rank.
            lengths: Shape (size, size), int64: row i says how many elements rank i sends to each
                rank, so that row `rank` adds up to n. The same on all ranks.
            signature: What the members compare, and messages name.

        Returns:
            Shape (sum of column `rank`,), the same dtype: what each rank has sent, in rank
            order.
        """
        longest = tf.reduce_max(tf.reduce_sum(lengths, axis=1))
        padded = tf.pad(flat, [[0, longest - tf.size(flat, tf.int64)]])
        rows = self.all_gather(padded, signature=signature)
        starts = tf.cumsum(lengths, axis=1, exclusive=True)[:, self.rank]
        ends = starts + lengths[:, self.rank]
        return tf.concat([rows[r, starts[r] : ends[r]] for r in range(self.size)], axis=0)


def scaled(tensors: Sequence[tf.Tensor], scale: tf.Tensor | None) -> Sequence[tf.Tensor]:
    """The tensors times a scalar, as `ProcessGroup.all_reduce` wants it."""
    if scale is None:
        return tensors
    return [tf.math.multiply_no_nan(t, tf.cast(scale, t.dtype)) for t in tensors]


def with_small_concatenated(
    tensors: Sequence[tf.Tensor],
    exchange: Callable[[Sequence[tf.Tensor], Sequence[bool]], list[tf.Tensor]],
    *,
    max_bytes: int,
) -> list[tf.Tensor]:
    """Concatenates small adjacent tensors for an exchange; the others go as they are.

    So the order of all elements stays, whatever is concatenated.

    Args:
        tensors: At least one, any shapes, one dtype.
        exchange: Gives back the same shapes and dtype; is told which of the tensors are
            concatenated ones, of which only slices are used.
        max_bytes: Of a small tensor. One whose size is known only when the graph runs isn't small.
    """
    runs: list[list[tf.Tensor]] = []
    for is_small, group in itertools.groupby(tensors, lambda tensor: _is_small(tensor, max_bytes)):
        neighbours = list(group)
        runs += [neighbours] if is_small else [[tensor] for tensor in neighbours]
    arrived = exchange(
        [run[0] if len(run) == 1 else flatten(run) for run in runs], [len(run) > 1 for run in runs]
    )
    return [
        tensor
        for run, whole in zip(runs, arrived, strict=True)
        for tensor in ([whole] if len(run) == 1 else unflatten(whole, run))
    ]


def positions_by_dtype(tensors: Sequence[tf.Tensor | tf.TensorSpec]) -> list[list[int]]:
    """The positions of the tensors of each dtype, in order."""
    positions: dict[tf.DType, list[int]] = {}
    for i, tensor in enumerate(tensors):
        positions.setdefault(tensor.dtype, []).append(i)
    return list(positions.values())


def _shaped(flat: tf.Tensor, rows: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    shape = tf.concat([[tf.reduce_sum(rows)], tf.shape(like, tf.int64)[1:]], axis=0)
    static = tf.TensorShape([None]).concatenate(like.shape[1:])
    return tf.ensure_shape(tf.reshape(flat, shape), static)


def _is_small(tensor: tf.Tensor, max_bytes: int) -> bool:
    length = tensor.shape.num_elements()
    return length is not None and length * tensor.dtype.size <= max_bytes


def flatten(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Tensors of any shapes and one dtype, flattened, one behind the other."""
    return tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)


def unflatten(flat: tf.Tensor, like: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """What `flatten` has concatenated, in the shapes that it had."""
    lengths = [tensor.shape.num_elements() for tensor in like]
    if None not in lengths:
        parts = tf.split(flat, lengths) if len(like) > 1 else [flat]
        return [tf.reshape(part, tensor.shape) for part, tensor in zip(parts, like, strict=True)]
    parts = tf.split(flat, [tf.size(tensor) for tensor in like]) if len(like) > 1 else [flat]
    return [
        tf.ensure_shape(tf.reshape(part, tf.shape(tensor)), tensor.shape)
        for part, tensor in zip(parts, like, strict=True)
    ]
