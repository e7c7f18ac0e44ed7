"""How gradients become one: the options, checked at construction."""

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any, Protocol

import tensorflow as tf

from tfddl._src.collectives import ProcessSet, ReduceOp
from tfddl._src.runtime import current
from tfddl._src.virtual_workers import check_virtual_workers
from tfddl.errors import UnsupportedError

Gradient = Any
"""A `tf.Tensor`, `tf.IndexedSlices`, or None."""


class Compression(enum.StrEnum):
    """In which precision gradients travel.

    NCCL adds up no bfloat16 in TensorFlow: there BF16 rounds what float32 carries, and
    saves nothing.
    """

    NONE = "none"
    FP16 = "fp16"
    BF16 = "bf16"


class Compressor(Protocol):
    """Makes tensors smaller while they travel; a class whose methods are static is one, too."""

    def compress(self, tensor: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """Returns what travels instead, floating point, and what `decompress` has to know."""

    def decompress(self, tensor: tf.Tensor, ctx: Any) -> tf.Tensor:
        """Returns the result of what has arrived."""


_COMPRESSED = {Compression.FP16: tf.float16, Compression.BF16: tf.bfloat16}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ReductionOptions:
    """How gradients become one."""

    op: ReduceOp = ReduceOp.AVERAGE
    """AVERAGE: of the mean over all examples. SUM: the plain sum of the ranks' gradients. ADASUM:
    theirs, whatever their counts."""

    compression: Compression | Compressor = Compression.NONE
    """16 bits halve what travels, and round what arrives."""

    sparse_as_dense: bool = False
    """Whether `tf.IndexedSlices` are made dense before they travel."""

    scale: float = 1.0
    """What averages are multiplied with: under ``strategy.scope()`` the number of workers, by which
    Keras has divided each worker's loss."""

    by_count: bool = True
    """Whether `fit` weights the ranks' gradients by their numbers of examples; otherwise each rank
    that has any counts the same."""

    predivide: float | None = None
    """What gradients are divided by before they are added up, the rest of the division coming
    after; None leaves that to us."""

    groups: int | tuple[tuple[Any, ...], ...] = 1
    """In how many exchanges gradients travel, one after the other; or the variables of each
    exchange, the others then in one of their own."""

    process_set: ProcessSet | None = None
    """Whose ranks take part; None is all."""

    local: tuple[Any, ...] = ()
    """Variables whose gradients stay the rank's own."""

    scale_local: bool = True
    """Whether the gradients of these are divided by the number of ranks."""

    sum_passes: bool = False
    """Whether gradients accumulated over several steps are added up instead of averaged."""

    evaluates_alone: bool = False
    """Whether `evaluate` and `predict` of the model are each rank's own, as under Horovod, instead
    of the job's."""

    virtual_workers: int | None = None
    """For how many virtual workers training is planned, in whose order gradients are added up."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "op", ReduceOp(self.op))
        if isinstance(self.compression, str):
            object.__setattr__(self, "compression", Compression(self.compression))
        if self.op not in (ReduceOp.AVERAGE, ReduceOp.SUM, ReduceOp.ADASUM):
            raise UnsupportedError(
                f"Gradients can't be combined by {self.op}; op must be average, sum or adasum."
            )
        if self.predivide is not None and self.op is not ReduceOp.AVERAGE:
            raise UnsupportedError(
                "gradient_predivide_factor splits the division of an average in two, and there is "
                f"none with op={self.op}. Leave it out, or use op=average."
            )
        if self.predivide is not None and not self.predivide > 0:
            raise UnsupportedError(
                f"gradient_predivide_factor is {self.predivide}; it must be above 0."
            )
        if isinstance(self.groups, int) and self.groups < 1:
            raise UnsupportedError(f"groups is {self.groups}; there must be at least 1.")

    @property
    def size(self) -> int:
        """How many ranks take part."""
        if self.process_set is None:
            return current().cluster.size
        return self.process_set.size()

    @property
    def exchanges(self) -> bool:
        """Whether this rank's gradients go anywhere: it isn't alone, and is one of the set's."""
        return self.size > 1 and (self.process_set is None or self.process_set.included())

    @property
    def divides_losses(self) -> bool:
        """Whether losses may be divided by `size`: all gradients are averaged, none stays local."""
        plain = self.op is ReduceOp.AVERAGE and self.scale == 1.0 and not self.local
        return plain and self.virtual_workers is None

    def for_virtual_workers(self, virtual_workers: int) -> "ReductionOptions":
        """The same for virtual workers.

        Raises:
            UnsupportedError: There are fewer of them than workers; what is added up, or the number
                of threads, would depend on the number of workers.
        """
        runtime = current()
        check_virtual_workers(virtual_workers, runtime.cluster.size)
        if self.op is ReduceOp.ADASUM or self.compression is not Compression.NONE:
            raise UnsupportedError(
                f"virtual_workers={virtual_workers} was given with op={self.op.value!r} and "
                f"compression={str(self.compression)!r}; expected an average or a sum, and no "
                "compression: others round by where processes begin. HINT: leave these out."
            )
        if runtime.options.intra_op_threads is None:
            raise UnsupportedError(
                f"virtual_workers={virtual_workers} was given, but not how many threads an "
                f"operation has, which is by default the cores of a worker (now "
                f"{runtime.num_cores}): with other threads TensorFlow adds up in another order. "
                "HINT: tfddl.init(intra_op_threads=1), or another number, the same in every start."
            )
        threads = tf.config.threading.get_intra_op_parallelism_threads()
        if threads != runtime.options.intra_op_threads:
            raise UnsupportedError(
                f"virtual_workers={virtual_workers} was given with "
                f"intra_op_threads={runtime.options.intra_op_threads}, but an operation has "
                f"{threads or 'as many threads as there are cores'}: TensorFlow ran operations "
                "before tfddl.init(), when it was too late to change that. HINT: call tfddl.init() "
                "first."
            )
        return dataclasses.replace(self, virtual_workers=virtual_workers)

    def compress(self, value: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """A dense gradient as it travels, and what `decompress` has to know."""
        if isinstance(self.compression, Compression):
            narrow = _COMPRESSED.get(self.compression, value.dtype)
            is_wide = value.dtype in (tf.float32, tf.float64)
            return (tf.cast(value, narrow) if is_wide else value), value.dtype
        compressed, context = self.compression.compress(value)
        if not compressed.dtype.is_floating:
            raise UnsupportedError(
                f"{self.compression!r} makes {compressed.dtype.name} of a gradient; expected "
                "floating point, of which averages can be made."
            )
        return compressed, context

    def decompress(self, value: tf.Tensor, context: Any) -> tf.Tensor:
        """What has arrived of a gradient, in its dtype."""
        if isinstance(self.compression, Compression):
            return tf.cast(value, context)
        return self.compression.decompress(value, context)

    def is_local(self, variable: Any) -> bool:
        """Whether a variable's gradient stays the rank's own."""
        # `in` would compare by ==, which for variables is elementwise, or refused.
        return any(variable is own for own in self.local)

    def in_groups(self, positions: Sequence[int], variables: Sequence[Any]) -> list[list[int]]:
        """Deals positions out to the exchanges, keeping their order; none is empty."""
        if isinstance(self.groups, int):
            size, more = divmod(len(positions), self.groups)
            ends = [i * size + min(i, more) for i in range(self.groups + 1)]
            dealt = [list(positions[a:b]) for a, b in zip(ends, ends[1:], strict=False)]
        else:
            numbers = {id(v): i for i, group in enumerate(self.groups) for v in group}
            dealt = [[] for _ in range(len(self.groups) + 1)]
            for position in positions:
                dealt[numbers.get(id(variables[position]), -1)].append(position)
        return [group for group in dealt if group]


def make_options(
    op: ReduceOp | str, compression: Compression | str, sparse_as_dense: bool
) -> ReductionOptions:
    """`ReductionOptions` of what a user gave.

    Raises:
        UnsupportedError: There is no such op or compression.
    """
    if op not in list(ReduceOp):
        raise UnsupportedError(f"op is {op!r}; it must be average, sum or adasum.")
    if compression not in list(Compression):
        raise UnsupportedError(
            f"compression is {compression!r}; it must be one of {', '.join(Compression)}."
        )
    return ReductionOptions(
        op=ReduceOp(op),
        compression=Compression(compression),
        sparse_as_dense=sparse_as_dense,
    )
