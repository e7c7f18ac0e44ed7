"""What a transport has to offer."""

import abc
import enum
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

import tensorflow as tf

from tfddl._src.comm.native import OpSignature, ReduceOp

Lengths: TypeAlias = Sequence[int] | tf.Tensor
"""How many elements go to each rank, in rank order: numbers, or shape (size,), int64, known only
when the graph runs."""


class Collective(enum.StrEnum):
    """By which means TensorFlow's collectives move bytes."""

    RING = "ring"
    """gRPC, for CPUs."""

    NCCL = "nccl"
    """NVIDIA's library, for GPUs."""


class Between(enum.StrEnum):
    """By which means the first workers of CPU hosts speak to each other."""

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
"""What any transport carries that TensorFlow's collectives don't bound."""


class ProcessGroup(abc.ABC):
    """Moves flat tensors between all workers, or between some of them.

    Every method that moves something must be called by all its ranks, in the same order, with
    tensors of one length and dtype; it works eagerly and in a graph (loops and branches included).
    Within a graph, calls travel in program order, also those of several sets of ranks.
    """

    name: str
    """What users see in messages and logs."""

    dtypes: frozenset[tf.DType]
    """What it carries; others have to be cast before."""

    rounds_once = False
    """Whether sums of 8 and 16 bits come out as if they had been added up in 32."""

    overlaps = True
    """Whether there is a core, or a GPU, that computes while tensors travel. Where there is none,
    both only get into each other's way."""

    device = "CPU:0"
    """Where what operations need of their own (counters, the header of a step) is kept."""

    stays_on_device = False
    """Whether an operation between tensors of the device may use nothing but the device: it is a
    GPU, and a detour by the CPU waits for all that the GPU was given before."""

    compares = False
    """Whether its operations compare the ranks' calls, see `bind`, before anything is moved."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self._among: dict[tuple[int, ...], ProcessGroup] = {}
        self._making = threading.Lock()

    def among(self, ranks: tuple[int, ...]) -> "ProcessGroup":
        """The transport over some of the ranks, of which this one is one; nothing travels for it.

        Only the members call it. It is made once per set, and kept.

        Args:
            ranks: Ascending, without repetition, as this transport counts them.

        Returns:
            A transport whose `rank` and `size` are those within the set, in the order given. Of all
            ranks it is this transport itself.
        """
        if ranks == tuple(range(self.size)):
            return self
        with self._making:  # Each counts its operations: there must not be two of them.
            if ranks not in self._among:
                self._among[ranks] = self._make_subgroup(ranks)
            return self._among[ranks]

    @property
    def has_sets(self) -> bool:
        """Whether there are, or were, transports over some of the ranks."""
        return bool(self._among)

    @abc.abstractmethod
    def _make_subgroup(self, ranks: tuple[int, ...]) -> "ProcessGroup":
        """A new transport for `among`; the ranks are fewer than all."""

    @abc.abstractmethod
    def all_reduce(self, flat: tf.Tensor, reduction: ReduceOp) -> tf.Tensor:
        """Reduces elementwise over the ranks.

        Args:
            flat: Shape (n,), n >= 0, a dtype of `dtypes`.
            reduction: How.

        Returns:
            The same shape and dtype, bit for bit the same on every rank.
        """

    @abc.abstractmethod
    def all_gather(self, flat: tf.Tensor) -> tf.Tensor:
        """Collects the tensors of all ranks.

        Args:
            flat: Shape (n,), n >= 0, a dtype of `dtypes`.

        Returns:
            Shape (size, n), in rank order.
        """

    @abc.abstractmethod
    def broadcast(self, flat: tf.Tensor, root_rank: int) -> tf.Tensor:
        """Gives every rank the tensor of one.

        Args:
            flat: Shape (n,), n >= 0, a dtype of `dtypes`; only the root's values matter.
            root_rank: Whose.

        Returns:
            The same shape and dtype, bit for bit what the root has.
        """

    def reduce_scatter(self, flat: tf.Tensor, lengths: Lengths, reduction: ReduceOp) -> tf.Tensor:
        """Reduces elementwise over the ranks; each rank gets its own part.

        Args:
            flat: Shape (n,), n >= 0, a dtype of `dtypes`.
            lengths: How many elements each rank gets; their sum is n. The same on all ranks.
            reduction: How.

        Returns:
            Shape (lengths[rank],), the same dtype.
        """
        total = self.all_reduce(flat, reduction)
        each = tf.convert_to_tensor(lengths, tf.int64)
        start = tf.reduce_sum(each[: self.rank])
        return total[start : start + each[self.rank]]

    def all_to_all(self, flat: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """Gives every rank a part of its own from each rank.

        Args:
            flat: Shape (n,), n >= 0, a dtype of `dtypes`: this rank's parts for all ranks, in rank
                order. n may differ per rank.
            lengths: Shape (size, size), int64: row i says how many elements rank i sends to each
                rank, so that row `rank` adds up to n. The same on all ranks.

        Returns:
            Shape (sum of column `rank`,), the same dtype: what has come from each rank, in rank
            order.
        """
        longest = tf.reduce_max(tf.reduce_sum(lengths, axis=1))
        padded = tf.pad(flat, [[0, longest - tf.size(flat, tf.int64)]])
        rows = self.all_gather(padded)
        starts = tf.cumsum(lengths, axis=1, exclusive=True)[:, self.rank]
        ends = starts + lengths[:, self.rank]
        return tf.concat([rows[r, starts[r] : ends[r]] for r in range(self.size)], axis=0)

    def all_reduce_pack(
        self, pack: Sequence[tf.Tensor], reduction: ReduceOp, *, scale: tf.Tensor | None = None
    ) -> list[tf.Tensor]:
        """Reduces several tensors together.

        Args:
            pack: At least one, any shapes, one dtype of `dtypes`; the same on all ranks.
            reduction: How.
            scale: Scalar, floating point: what this rank's tensors, floats, are multiplied with
                before. 0 makes zeros even of what isn't a number.

        Returns:
            The same shapes and dtype.
        """
        return joined(scaled(pack, scale), lambda flat: self.all_reduce(flat, reduction))

    def broadcast_pack(self, pack: Sequence[tf.Tensor], root_rank: int) -> list[tf.Tensor]:
        """Gives every rank several tensors of one.

        Args:
            pack: As for `all_reduce_pack`.
            root_rank: Whose.

        Returns:
            The same shapes and dtype.
        """
        return joined(pack, lambda flat: self.broadcast(flat, root_rank))

    def bind(self, call: OpSignature, shapes: Sequence[tf.Tensor] = ()) -> "ProcessGroup":
        """The same transport, whose operations belong to a call.

        Where `compares` says so, its operations compare the calls of the ranks by themselves.

        Args:
            call: What the operations belong to.
            shapes: Of each tensor, where the call doesn't tell them all because they are known only
                when the graph runs: what of it has to be alike.
        """
        del call, shapes
        return self

    def measure(self, wanted: bool) -> bool:
        """Starts or stops the clock that `seconds` reads; this rank's own affair.

        Returns:
            Whether collectives are measured now. They can't be where
            `tf.config.experimental.enable_op_determinism` has been called: TensorFlow then refuses
            to tell the time.
        """
        return wanted

    def seconds(self) -> float:
        """For how many seconds this rank has been in collectives while the clock ran.

        Zero for ever where nothing travels.
        """
        return 0.0

    def end(self, text: str) -> None:
        """Ends what waits here, on this rank, and all that follows; any thread may call it.

        Args:
            text: What their errors say.
        """
        del text  # Where nothing travels, nothing waits.

    def counts(self) -> tuple[int, int]:
        """How many operations have begun and ended on this rank; zeros where nobody counts.

        May be asked by any thread. All ranks begin the same operations, in the same order: so the
        one that has begun fewest is the one that others wait for.
        """
        return 0, 0

    def counts_of_all_sets(self) -> tuple[int, int]:
        """Like `counts`, with the operations of the transports that `among` has made."""
        return self.counts()

    def waited_seconds(self) -> float:
        """How many seconds of all collectives so far were waiting for other ranks, where known."""
        return 0.0

    def counters(self) -> dict[str, int]:
        """What has been moved so far, where that is counted.

        Returns:
            "bytes_reduced", of the tensors given to reductions; "bytes_written" into memory for it.
        """
        return {}


def scaled(pack: Sequence[tf.Tensor], scale: tf.Tensor | None) -> Sequence[tf.Tensor]:
    """The tensors times a scalar, as `ProcessGroup.all_reduce_pack` wants it."""
    if scale is None:
        return pack
    return [tf.math.multiply_no_nan(t, tf.cast(scale, t.dtype)) for t in pack]


def with_small_joined(
    pack: Sequence[tf.Tensor],
    travel: Callable[[Sequence[tf.Tensor], Sequence[bool]], list[tf.Tensor]],
    *,
    most: int,
) -> list[tf.Tensor]:
    """Lets small tensors that are neighbours travel as one; the others go as they are.

    So the order of all elements stays, whatever is joined.

    Args:
        pack: At least one, any shapes, one dtype.
        travel: Gives back the same shapes and dtype; is told which of the tensors are joined ones,
            of which only slices are used.
        most: Bytes that a small tensor has. One whose size is known only when the graph runs isn't
            small.
    """
    runs: list[list[tf.Tensor]] = []
    for is_small, group in itertools.groupby(pack, lambda tensor: _is_small(tensor, most)):
        neighbours = list(group)
        runs += [neighbours] if is_small else [[tensor] for tensor in neighbours]
    arrived = travel(
        [run[0] if len(run) == 1 else _flat(run) for run in runs], [len(run) > 1 for run in runs]
    )
    return [
        tensor
        for run, whole in zip(runs, arrived, strict=True)
        for tensor in ([whole] if len(run) == 1 else _apart(whole, run))
    ]


def _is_small(tensor: tf.Tensor, most: int) -> bool:
    length = tensor.shape.num_elements()
    return length is not None and length * tensor.dtype.size <= most


def joined(pack: Sequence[tf.Tensor], travel: Callable[[tf.Tensor], tf.Tensor]) -> list[tf.Tensor]:
    """Lets tensors travel as one, flattened and joined."""
    return _apart(travel(_flat(pack)), pack)


def _flat(pack: Sequence[tf.Tensor]) -> tf.Tensor:
    """Tensors of any shapes, flattened, one behind the other."""
    return tf.concat([tf.reshape(tensor, [-1]) for tensor in pack], axis=0)


def _apart(flat: tf.Tensor, pack: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """What `_flat` has joined, in the shapes that it had."""
    lengths = [tensor.shape.num_elements() for tensor in pack]
    if None in lengths:
        lengths = [tf.size(tensor) for tensor in pack]
    pieces = tf.split(flat, lengths) if len(pack) > 1 else [flat]
    return [
        tf.ensure_shape(tf.reshape(piece, tf.shape(tensor)), tensor.shape)
        for piece, tensor in zip(pieces, pack, strict=True)
    ]
