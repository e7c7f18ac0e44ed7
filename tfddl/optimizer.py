"""Gradients averaged over the workers: `DistributedOptimizer` and `DistributedGradientTape`.

The weight travels with the gradient. A rank's gradient is that of a mean over its own examples;
their number is the *count*. What the ranks add up is count times gradient, and the count itself in
the same pack; the sum divided by the summed count is the gradient of the mean over all examples,
also where ranks have different numbers of them. Averaging the ranks' means would weigh an example
in a small batch more than one in a large batch.
"""

import contextlib
import dataclasses
import enum
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfddl.collectives import ReduceOp, allgather, allreduce, grouped_allreduce
from tfddl.errors import UnsupportedError
from tfddl.runtime import Step, current

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "op", ReduceOp(self.op))
        object.__setattr__(self, "compression", Compression(self.compression))
        if self.op not in (ReduceOp.AVERAGE, ReduceOp.SUM):
            raise UnsupportedError(
                f"Gradients can't be combined by {self.op}; op must be average or sum."
            )


def DistributedOptimizer(
    optimizer: keras.optimizers.Optimizer,
    *,
    op: ReduceOp | str = ReduceOp.AVERAGE,
    compression: Compression | str = Compression.NONE,
    sparse_as_dense: bool = False,
) -> keras.optimizers.Optimizer:
    """Makes a Keras optimizer average its gradients over all workers before it applies them.

    The optimizer itself is changed and returned: its class becomes a subclass of its own, its
    settings, slots and step count stay. Clipping comes after the averaging. With
    ``gradient_accumulation_steps`` the gradients travel once per update; the steps between
    exchange only their counts (a few bytes), which exact weights need. A
    `keras.optimizers.LossScaleOptimizer` may be inside or outside: a gradient that isn't finite on
    one rank makes all ranks skip the step.

    What `model.save` writes names the original class, and loads where tfddl isn't installed; what
    is loaded isn't distributed, wrap it again. In a loop written by hand, `apply_gradients`
    averages too; there `tfddl.loss_count` says what the rank's mean loss was divided by.

    All ranks must apply gradients together.

    Args:
        optimizer: Any Keras 3 optimizer.
        op: "average", or "sum" for losses that are sums.
        compression: "none", "fp16" or "bf16": in which precision gradients travel.
        sparse_as_dense: Makes sparse gradients (of embeddings) dense before they travel. Sparse
            ones are gathered, not added up.

    Returns:
        The same optimizer.

    Raises:
        UnsupportedError: Not a Keras 3 optimizer; wrapped before; under ``strategy.scope()``; an
            op or compression that there isn't.
        NotInitializedError: `tfddl.init()` has not been called.

    References:
        "Horovod: fast and easy distributed deep learning in TensorFlow", 2018,
        https://arxiv.org/abs/1802.05799
    """
    averaging = _averaging(op, compression, sparse_as_dense)
    current()
    refuse_strategy_scope()
    _check_optimizer(optimizer)
    inner = innermost(optimizer)
    base: Any = type(inner)
    inner.__class__ = _distributed_class(base)
    inner.tfddl_averaging = averaging
    return optimizer


def is_distributed(optimizer: Any) -> bool:
    """Whether an optimizer, or the one inside a loss-scale optimizer, averages over workers."""
    return isinstance(innermost(optimizer), _Distributed)


def innermost(optimizer: Any) -> Any:
    """The optimizer inside loss-scale optimizers."""
    while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer


@contextlib.contextmanager
def loss_count(count: Any) -> Iterator[None]:
    """Says, in a loop written by hand, what the rank's mean loss was divided by.

    Usage::

        with tfddl.loss_count(tf.shape(x)[0]):
            optimizer.apply_gradients(zip(gradients, variables))

    Without it, every rank's gradient weighs the same. `fit` needs none of this. Before such a loop,
    `tfddl.broadcast_variables` gives all ranks the same weights; `fit` does that by itself.

    Args:
        count: Scalar, >= 0: the number of examples of the rank's batch, or the sum of their
            weights if the loss is divided by that. 0 leaves the rank out.
    """
    runtime = current()
    step = dataclasses.replace(runtime.step, count=tf.cast(count, tf.float32))
    with runtime.in_step(step):
        yield


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
        self._averaging = _averaging(op, compression, sparse_as_dense)
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
        gradients = self._tape.gradient(target, sources, output_gradients)
        flat = tf.nest.flatten(gradients, expand_composites=False)
        with contextlib.nullcontext() if count is None else loss_count(count):
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
    if averaging.compression is not Compression.NONE or any(map(_is_sparse_or_small, values)):
        reduced = _reduce_after_header(values, averaging)
    else:
        header = _Header(runtime.step, averaging, dtype=_header_dtype(values))
        reduced = _reduce_with_header(values, header)
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
        self.weight_sent = self._count if self._divides else tf.constant(1.0, dtype)
        """What this rank's gradients are multiplied with before they are added up."""
        stop = 0.0 if step.stop is None else tf.convert_to_tensor(step.stop)
        broken = 0.0 if finite is None else 1.0 - tf.cast(finite, dtype)
        self._changes = [] if step.statistics is None else step.statistics.change(dtype)
        weighted = [_scaled(change, self._count) for change in self._changes]
        flags = tf.stack([self._count, tf.cast(stop, dtype), tf.cast(broken, dtype)])
        self.mine = tf.concat([flags, *weighted], axis=0)

    def received(self, total: tf.Tensor) -> tf.Tensor:
        """Takes in what came back; returns what the summed gradients are divided by."""
        if self._step.stop_agreed is not None:
            self._step.stop_agreed.assign(tf.cast(total[1], self._step.stop_agreed.dtype))
        if self._step.statistics is not None and self._changes:
            lengths = [change.shape[0] for change in self._changes]
            self._step.statistics.take(tf.split(total[3:] / total[0], lengths))
        return total[0] if self._divides else tf.ones_like(total[0])

    def weight(self) -> tf.Tensor:
        """Sends the header alone; returns what this rank's gradients are multiplied with."""
        total = allreduce(self.mine, ReduceOp.SUM, name="step")
        weight = tf.math.divide_no_nan(self.weight_sent, self.received(total))
        return tf.where(total[2] > 0, tf.constant(float("nan"), weight.dtype), weight)


def _header_dtype(gradients: Sequence[Gradient]) -> tf.DType:
    """That of the counts: no less than that of the gradients."""
    return tf.float64 if any(g.dtype == tf.float64 for g in gradients) else tf.float32


def _reduce_with_header(values: Sequence[tf.Tensor], header: _Header) -> list[tf.Tensor]:
    weighted = [_scaled(value, header.weight_sent) for value in values]
    total, *sums = grouped_allreduce([header.mine, *weighted], ReduceOp.SUM, name="gradients")
    divisor = header.received(total)
    return [tf.math.divide_no_nan(s, tf.cast(divisor, s.dtype)) for s in sums]


def _is_sparse_or_small(value: Any) -> bool:
    return isinstance(value, tf.IndexedSlices) or value.dtype in (tf.float16, tf.bfloat16)


def _reduce_after_header(values: Sequence[Any], averaging: Averaging) -> list[Any]:
    """Weighs before anything is summed: 16 bits would overflow, and slices are never summed."""
    weight = _Header(current().step, averaging, dtype=_header_dtype(values)).weight()
    weighted = [_scaled(value, weight) for value in values]
    dense = [i for i, value in enumerate(weighted) if not isinstance(value, tf.IndexedSlices)]
    carried = [_compressed(weighted[i], averaging.compression) for i in dense]
    sums = grouped_allreduce(carried, ReduceOp.SUM, name="gradients")
    reduced: list[Any] = [None] * len(weighted)
    for i, total in zip(dense, sums, strict=True):
        reduced[i] = tf.cast(total, weighted[i].dtype)
    for i, value in enumerate(weighted):
        if isinstance(value, tf.IndexedSlices):
            reduced[i] = _gathered(value)
    return reduced


def _compressed(value: tf.Tensor, compression: Compression) -> tf.Tensor:
    if compression is Compression.NONE or value.dtype not in (tf.float32, tf.float64):
        return value
    return tf.cast(value, _COMPRESSED[compression])


def _gathered(slices: tf.IndexedSlices) -> tf.IndexedSlices:
    return tf.IndexedSlices(
        values=allgather(slices.values, name="gradient values"),
        indices=allgather(slices.indices, name="gradient indices"),
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


class _Distributed:
    """What is put before the class of a Keras optimizer."""

    tfddl_averaging: Averaging
    tfddl_reduced: bool = False
    """Set while gradients arrive that were dealt with before."""

    def apply(self, grads: Sequence[Gradient], trainable_variables: Any = None) -> None:
        """Averages the gradients over the workers, then applies them."""
        refuse_strategy_scope()
        if not self.tfddl_reduced:
            grads = reduce_or_weigh(self, grads)
        super().apply(grads, trainable_variables)  # type: ignore[misc]

    def _clip_gradients(self, grads: Sequence[Gradient]) -> Any:
        """With accumulation: what was accumulated, already weighed, is added up just once."""
        if accumulates(self) and current().cluster.size > 1:
            compression = self.tfddl_averaging.compression
            sums = grouped_allreduce(
                [_compressed(tf.convert_to_tensor(g), compression) for g in grads],
                ReduceOp.SUM,
                name="accumulated gradients",
            )
            grads = [tf.cast(s, g.dtype) for s, g in zip(sums, grads, strict=True)]
        return super()._clip_gradients(grads)  # type: ignore[misc]


def reduce_or_weigh(
    optimizer: Any, gradients: Sequence[Gradient], *, check_finite: Callable[..., Any] | None = None
) -> list[Gradient]:
    """What an optimizer does with a step's gradients before anything else.

    Without accumulation they are reduced. With it they are only weighed, by what all ranks' counts
    are; should they not be finite on any rank (asked where a loss-scale optimizer is around), they
    become NaN on all.
    """
    runtime = current()
    gradients = list(gradients)
    if runtime.cluster.size == 1:
        return gradients
    averaging = optimizer.tfddl_averaging
    if not accumulates(optimizer):
        return reduce_gradients(gradients, averaging)
    finite = None if check_finite is None else check_finite(gradients)
    dtype = _header_dtype([g for g in gradients if g is not None])
    weight = _Header(runtime.step, averaging, dtype=dtype, finite=finite).weight()
    return [None if g is None else _scaled(_prepared(g, averaging), weight) for g in gradients]


@contextlib.contextmanager
def reduced_before(optimizer: Any) -> Iterator[None]:
    """Lets an optimizer apply gradients that went through `reduce_or_weigh`."""
    optimizer.tfddl_reduced = True
    try:
        yield
    finally:
        optimizer.tfddl_reduced = False


def accumulates(optimizer: Any) -> bool:
    """Whether the optimizer applies the gradients of several steps at once."""
    return bool(optimizer.gradient_accumulation_steps)


def refuse_strategy_scope() -> None:
    """Raises where TensorFlow's strategy would average as well.

    Raises:
        UnsupportedError: Under ``strategy.scope()``.
    """
    if tf.distribute.has_strategy():
        raise UnsupportedError(
            "DistributedOptimizer is used under strategy.scope(), where TensorFlow adds up the "
            "gradients of the workers by itself: they would be averaged twice. Leave the scope, "
            "or compile with the plain Keras optimizer there."
        )


def _averaging(
    op: ReduceOp | str, compression: Compression | str, sparse_as_dense: bool
) -> Averaging:
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


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise UnsupportedError(
            f"DistributedOptimizer takes a Keras 3 optimizer such as keras.optimizers.Adam(1e-3), "
            f"not {optimizer!r}."
        )
    if is_distributed(optimizer):
        raise UnsupportedError("This optimizer is distributed already; wrap it once.")
    if not callable(getattr(keras.optimizers.Optimizer, "_clip_gradients", None)):
        raise UnsupportedError(
            f"Keras {keras.__version__} has no Optimizer._clip_gradients, where accumulated "
            "gradients are averaged. Update tfddl, or use an older Keras."
        )


@functools.cache
def _distributed_class(base: type) -> type:
    """One subclass per optimizer class; its name is the base's, so that Keras saves that."""
    return type(
        base.__name__,
        (_Distributed, base),
        {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__},
    )
