"""Gradients averaged over the workers.

The weight travels with the gradient. A rank's gradient is that of a mean over its own examples;
their number is the *count*. At the beginning of a step's backward pass the ranks add up their
counts; each then multiplies its gradients with its count's part of the sum, and what all of them
add up to is the gradient of the mean over all examples, also where ranks have different numbers of
them. Averaging the ranks' means would weigh an example
in a small batch more than one in a large batch.
"""

import contextlib
import dataclasses
import enum
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfddl.collectives import (
    Label,
    ReduceOp,
    allgather,
    allreduce,
    grouped_allreduce,
    sum_narrow,
    sum_scaled,
)
from tfddl.errors import UnsupportedError
from tfddl.runtime import Step, current, is_started

Gradient = Any
"""A `tf.Tensor`, `tf.IndexedSlices`, or None."""


class Compression(enum.StrEnum):
    """In which precision gradients travel."""

    NONE = "none"
    FP16 = "fp16"
    BF16 = "bf16"


_COMPRESSED = {Compression.FP16: tf.float16, Compression.BF16: tf.bfloat16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Averaging:
    """How gradients become one."""

    op: ReduceOp = ReduceOp.AVERAGE
    """AVERAGE: of the mean over all examples. SUM: the plain sum of the ranks' gradients."""

    compression: Compression = Compression.NONE
    """16 bits halve what travels, and round what arrives."""

    sparse_as_dense: bool = False
    """Whether `tf.IndexedSlices` are made dense before they travel."""

    scale: float = 1.0
    """What averages are multiplied with: under ``strategy.scope()`` the number of workers, by which
    Keras has divided each worker's loss."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "op", ReduceOp(self.op))
        object.__setattr__(self, "compression", Compression(self.compression))
        if self.op not in (ReduceOp.AVERAGE, ReduceOp.SUM):
            raise UnsupportedError(
                f"Gradients can't be combined by {self.op}; op must be average or sum."
            )


@contextlib.contextmanager
def loss_count(count: Any) -> Iterator[None]:
    """Says, in a loop written by hand, what the rank's mean loss was divided by.

    Usage::

        with tfddl.loss_count(tf.shape(x)[0]):
            optimizer.apply_gradients(zip(gradients, variables))

    Without it, every rank's gradient weighs the same. `fit` needs none of this. Before such a loop,
    `tfddl.broadcast_variables` gives all ranks the same weights; `fit` does that by itself. With
    ``BatchNormalization(synchronized=True)`` in the model, the gradients themselves depend on the
    counts: then compute them inside, too.

    Args:
        count: Scalar, >= 0: the number of examples of the rank's batch, or the sum of their
            weights if the loss is divided by that. 0 leaves the rank out.
    """
    runtime = current()
    step = dataclasses.replace(runtime.step, count=tf.cast(count, tf.float32))
    with runtime.in_step(step):
        yield


def sum_over_ranks(values: tf.Tensor) -> tf.Tensor:
    """What a loss that doesn't decompose into examples is made of, over the whole global batch.

    In a training step of `fit`, and within `loss_count`, where all ranks must call it together, it
    is the sum over the ranks; one whose count is 0 contributes nothing. Each rank's gradient is
    that of its own values, multiplied by all ranks' counts over its own: averaged by the counts,
    as gradients are, the ranks' parts then add up to the gradient of the loss.

    Anywhere else (in `evaluate`, in validation) it is the rank's own values, and nothing travels:
    ranks may take different numbers of steps there, and would wait for each other.

    Args:
        values: One dimension, floating point, of the same size on all ranks.

    Returns:
        The same shape and dtype.
    """
    step = current().step if is_started() else Step()
    if step.count is None:
        return values
    count = tf.cast(step.count, values.dtype)

    @tf.custom_gradient
    def summed(own: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        total = allreduce(tf.concat([[count], own], axis=0), ReduceOp.SUM, name=Label("loss"))
        weight = tf.math.divide_no_nan(total[0], count) if step.averages else tf.ones_like(count)
        return total[1:], lambda upstream: upstream * weight

    return summed(tf.where(count > 0, values, tf.zeros_like(values)))


class DistributedGradientTape:
    """A `tf.GradientTape` whose gradients are averaged over all workers.

    Usage::

        with tf.GradientTape() as tape:
            loss = loss_fn(y, model(x, training=True))
        tape = tfddl.DistributedGradientTape(tape)
        gradients = tape.gradient(loss, model.trainable_variables, count=tf.shape(x)[0])

    Before the first step, `tfddl.broadcast_variables` gives all ranks the same weights.
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
        self._averaging = make_averaging(op, compression, sparse_as_dense)
        current()

    def gradient(
        self, target: Any, sources: Any, output_gradients: Any = None, *, count: Any = None
    ) -> Any:
        """The gradients, averaged. All ranks must call it together.

        Args:
            target: As for `tf.GradientTape.gradient`.
            sources: As for `tf.GradientTape.gradient`.
            output_gradients: As for `tf.GradientTape.gradient`.
            count: What the rank's mean loss was divided by; without it, every rank weighs the
                same.

        Returns:
            The structure of ``sources``.
        """
        weighs = count is not None and self._averaging.op is ReduceOp.AVERAGE
        with loss_count(count) if weighs else contextlib.nullcontext():
            gradients = self._tape.gradient(target, sources, output_gradients)
            flat = tf.nest.flatten(gradients, expand_composites=False)
            reduced = reduce_gradients(flat, self._averaging)
        return tf.nest.pack_sequence_as(gradients, reduced)

    def __enter__(self) -> "DistributedGradientTape":
        self._tape.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._tape.__exit__(*exc_info)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tape, name)


def reduce_gradients(gradients: Sequence[Gradient], averaging: Averaging) -> list[Gradient]:
    """Combines the gradients of all ranks; what the step knows of itself travels with them.

    Args:
        gradients: The rank's own; None where a variable has none, alike on all ranks.
        averaging: How.

    Returns:
        The same on every rank, in the same order, None where there was None.
    """
    runtime = current()
    if runtime.cluster.size == 1:
        return list(gradients)
    present = [i for i, gradient in enumerate(gradients) if gradient is not None]
    present.reverse()  # The last layers' gradients are there first.
    values = [_prepared(gradients[i], averaging) for i in present]
    weight = _Header(runtime.step, averaging, dtype=_header_dtype(values)).weight()
    reduced = _sum_of_scaled(values, weight, averaging.compression)
    result: list[Gradient] = [None] * len(gradients)
    for i, value in zip(present, reduced, strict=True):
        result[i] = value
    return result


class _Header:
    """The few numbers of a step that travel with its gradients."""

    def __init__(
        self, step: Step, averaging: Averaging, *, dtype: tf.DType, finite: Any = None
    ) -> None:
        self._step = step
        self._divides = averaging.op is ReduceOp.AVERAGE
        self._count = tf.constant(1.0, dtype) if step.count is None else tf.cast(step.count, dtype)
        self.weight_sent = (
            self._count * averaging.scale if self._divides else tf.constant(1.0, dtype)
        )
        """What this rank's gradients are multiplied with before they are added up."""
        stop = 0.0 if step.stop is None else tf.convert_to_tensor(step.stop)
        broken = 0.0 if finite is None else 1.0 - tf.cast(finite, dtype)
        self._changes = [] if step.statistics is None else step.statistics.change(dtype)
        examples = tf.constant(1.0, dtype) if step.examples is None else step.examples
        examples = tf.cast(examples, dtype)
        weighted = [_scaled(change, examples) for change in self._changes]
        flags = tf.stack([self._count, tf.cast(stop, dtype), tf.cast(broken, dtype), examples])
        self.mine = tf.concat([flags, *weighted], axis=0)

    def received(self, total: tf.Tensor) -> tf.Tensor:
        """Takes in what came back; returns what the summed gradients are divided by."""
        if self._step.stop_agreed is not None:
            self._step.stop_agreed.assign(tf.cast(total[1], self._step.stop_agreed.dtype))
        if self._step.totals is not None:
            totals = tf.stack([total[0], total[3]])
            self._step.totals.assign(tf.cast(totals, self._step.totals.dtype))
        if self._step.statistics is not None and self._changes:
            lengths = [change.shape[0] for change in self._changes]
            means = tf.math.divide_no_nan(total[4:], total[3])
            self._step.statistics.take(tf.split(means, lengths))
        return total[0] if self._divides else tf.ones_like(total[0])

    def weight(self) -> tf.Tensor:
        """Sends the header alone; returns what this rank's gradients are multiplied with."""
        total = allreduce(self.mine, ReduceOp.SUM, name=Label("step"))
        weight = tf.math.divide_no_nan(self.weight_sent, self.received(total))
        return tf.where(total[2] > 0, tf.constant(float("nan"), weight.dtype), weight)


def _header_dtype(gradients: Sequence[Gradient]) -> tf.DType:
    """That of the counts: no less than that of the gradients."""
    return tf.float64 if any(g.dtype == tf.float64 for g in gradients) else tf.float32


def _sum_of_scaled(values: Sequence[Any], weight: tf.Tensor, compression: Compression) -> list[Any]:
    """The sum over the ranks of what each multiplies with a weight of its own.

    It is weighed before it is added up: 16 bits would overflow, and slices are never added up.
    """
    sparse = [i for i, value in enumerate(values) if isinstance(value, tf.IndexedSlices)]
    dense = [i for i in range(len(values)) if i not in sparse]
    if compression is Compression.NONE:
        sums = sum_scaled([values[i] for i in dense], weight, name=Label("gradients"))
    else:
        scaled = [_scaled(values[i], weight) for i in dense]
        sums = _summed(scaled, compression, name=Label("gradients"))
    reduced = list(values)
    for i, total in zip(dense, sums, strict=True):
        reduced[i] = total
    for i in sparse:
        reduced[i] = _gathered(_scaled(values[i], weight))
    return reduced


def _summed(values: Sequence[tf.Tensor], compression: Compression, *, name: str) -> list[tf.Tensor]:
    if compression is Compression.NONE:
        return grouped_allreduce(values, ReduceOp.SUM, name=name)
    sums = sum_narrow([_compressed(value, compression) for value in values], name=name)
    return [tf.cast(total, value.dtype) for total, value in zip(sums, values, strict=True)]


def _compressed(value: tf.Tensor, compression: Compression) -> tf.Tensor:
    if value.dtype not in (tf.float32, tf.float64):
        return value
    return tf.cast(value, _COMPRESSED[compression])


def _gathered(slices: tf.IndexedSlices) -> tf.IndexedSlices:
    return tf.IndexedSlices(
        values=allgather(slices.values, name=Label("gradient values")),
        indices=allgather(slices.indices, name=Label("gradient indices")),
        dense_shape=slices.dense_shape,
    )


def _prepared(gradient: Any, averaging: Averaging) -> Any:
    if isinstance(gradient, tf.IndexedSlices) and not averaging.sparse_as_dense:
        return gradient
    return tf.convert_to_tensor(gradient)


def _scaled(gradient: Any, weight: tf.Tensor) -> Any:
    """Zero where the weight is zero, whatever the gradient; NaN where the weight is."""
    if isinstance(gradient, tf.IndexedSlices):
        values = _scaled(gradient.values, weight)
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return tf.math.multiply_no_nan(gradient, tf.cast(weight, gradient.dtype))


def weigh_gradients(
    gradients: Sequence[Gradient],
    averaging: Averaging,
    *,
    check_finite: Callable[..., Any] | None = None,
) -> list[Gradient]:
    """Multiplies a rank's gradients so that their sum over the ranks is the average.

    Args:
        gradients: The rank's own.
        averaging: How they are averaged.
        check_finite: Where they aren't finite on any rank by this, they become NaN on all.
    """
    finite = None if check_finite is None else check_finite(gradients)
    dtype = _header_dtype([g for g in gradients if g is not None])
    weight = _Header(current().step, averaging, dtype=dtype, finite=finite).weight()
    return [None if g is None else _scaled(_prepared(g, averaging), weight) for g in gradients]


def add_up_gradients(gradients: Sequence[tf.Tensor], averaging: Averaging) -> list[tf.Tensor]:
    """The sum over the ranks of gradients that went through `weigh_gradients`."""
    values = [tf.convert_to_tensor(g) for g in gradients]
    return _summed(values, averaging.compression, name=Label("accumulated gradients"))


def make_averaging(
    op: ReduceOp | str, compression: Compression | str, sparse_as_dense: bool
) -> Averaging:
    """An `Averaging` of what a user gave.

    Raises:
        UnsupportedError: There is no such op or compression.
    """
    if op not in list(ReduceOp):
        raise UnsupportedError(f"op is {op!r}; it must be average or sum.")
    if compression not in list(Compression):
        raise UnsupportedError(
            f"compression is {compression!r}; it must be one of {', '.join(Compression)}."
        )
    return Averaging(
        op=ReduceOp(op),
        compression=Compression(compression),
        sparse_as_dense=sparse_as_dense,
    )
