"""Reductions of dense tensors, and their gradients."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import tensorflow as tf

from tfddl._src.collectives.adasum import adasum, check_adasum
from tfddl._src.collectives.fusion import TRANSFER_DTYPES, fuse
from tfddl._src.collectives.negotiation import (
    CollectiveRequest,
    DisplayName,
    failing_together,
    negotiate,
    serialized,
)
from tfddl._src.collectives.process_sets import GradientRule, Group
from tfddl._src.comm.native import ReduceOp
from tfddl._src.comm.process_group import ProcessGroup
from tfddl.errors import UnsupportedError

Gradient = Callable[..., list[tf.Tensor | None]]
"""Of the upstream gradients of all results, those of all inputs."""

_LINEAR = (ReduceOp.AVERAGE, ReduceOp.SUM)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaledOp:
    """All that has to be known to reduce: checked at construction, and alike on all ranks."""

    op: ReduceOp = ReduceOp.AVERAGE

    prescale_factor: float = 1.0
    """What every rank's tensor is multiplied with before."""

    postscale_factor: float = 1.0
    """What the result is multiplied with."""

    narrow: bool = False
    """Whether 16-bit floats travel as they are, and each sum of two is rounded. Otherwise they
    travel as float32, and the result is rounded once."""

    @classmethod
    def of(
        cls, op: ReduceOp | str, *, prescale_factor: float, postscale_factor: float
    ) -> "ScaledOp":
        """Of what a user gave.

        Raises:
            UnsupportedError: There is no such op, or a factor isn't a number.
        """
        if op not in list(ReduceOp):
            raise UnsupportedError(f"op is {op!r}; it must be one of {', '.join(ReduceOp)}.")
        return cls(
            op=ReduceOp(op),
            prescale_factor=_number("prescale_factor", prescale_factor),
            postscale_factor=_number("postscale_factor", postscale_factor),
        )

    def __str__(self) -> str:
        factors = [
            f"{name} {getattr(self, name)!r}"
            for name in ("prescale_factor", "postscale_factor")
            if getattr(self, name) != 1.0
        ]
        return " ".join([self.op, *factors])

    @property
    def is_linear(self) -> bool:
        """Whether it is a sum with factors, so that `factor` is all there is to its gradient."""
        return self.op in _LINEAR

    @property
    def _is_plain(self) -> bool:
        """Whether nothing is multiplied or divided, so that the total is the result."""
        factors = (self.prescale_factor, self.postscale_factor)
        return self.op is not ReduceOp.AVERAGE and factors == (1.0, 1.0)

    @property
    def summed_by(self) -> ReduceOp:
        """What the process group does: it knows no average."""
        return ReduceOp.SUM if self.op is ReduceOp.AVERAGE else self.op

    def factor(self, size: int) -> float:
        """By how much the result grows with what each rank gives, for a linear op."""
        divisor = size if self.op is ReduceOp.AVERAGE else 1
        return self.prescale_factor * self.postscale_factor / divisor

    def before(self, tensor: tf.Tensor, group: ProcessGroup) -> tf.Tensor:
        """A rank's tensor as it travels: scaled, in a dtype in which the result is right."""
        if tensor.dtype == tf.bool and self.op not in (ReduceOp.MIN, ReduceOp.MAX):
            raise UnsupportedError(f"{self.op} of bool is undefined; use min or max.")
        wide = tensor.dtype
        if self.op is not ReduceOp.ADASUM and not (group.rounds_once and self._is_plain):
            wide = TRANSFER_DTYPES.get(wide, wide)
            if wide in (tf.float16, tf.bfloat16) and not self.narrow:
                wide = tf.float32
        return times(tf.cast(tensor, wide), self.prescale_factor)

    def after(self, total: tf.Tensor, size: int, dtype: tf.DType) -> tf.Tensor:
        """What users get of what arrived, in their dtype."""
        if self.op is not ReduceOp.AVERAGE:
            return tf.cast(times(total, self.postscale_factor), dtype)
        if not total.dtype.is_integer:
            return tf.cast(times(total / size, self.postscale_factor), dtype)
        # Cut off once, as in Horovod.
        if self.postscale_factor == 1.0:
            return tf.cast(tf.truncatediv(total, tf.cast(size, total.dtype)), dtype)
        return tf.cast(tf.cast(total, tf.float64) * self.postscale_factor / size, dtype)


def _number(name: str, value: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UnsupportedError(f"{name} is {value!r}; it must be a number.") from None


def times(tensor: tf.Tensor, factor: float) -> tf.Tensor:
    """The tensor times a number, in its dtype; integers by way of float64, cut off."""
    if factor == 1.0:
        return tensor
    if tensor.dtype.is_integer:
        # Exact for integers up to 2**53.
        return tf.cast(tf.cast(tensor, tf.float64) * factor, tensor.dtype)
    return tensor * factor


def reduce_dense(
    group: Group, tensors: Sequence[tf.Tensor], scaled_op: ScaledOp, *, name: str | None
) -> list[tf.Tensor]:
    """Reduces dense tensors, in their order; small ones travel together."""
    if not tensors:
        return []

    @tf.custom_gradient
    @serialized(group)
    def reduce(*inputs: tf.Tensor) -> tuple[list[tf.Tensor], Gradient]:
        request = CollectiveRequest.of(group, f"allreduce {scaled_op}", name, inputs)
        bound = negotiate(group, request.fused(group))
        with failing_together(bound):
            if scaled_op.op is ReduceOp.ADASUM:
                check_adasum(group.size, inputs)
            sent = [scaled_op.before(tensor, bound.process_group) for tensor in inputs]
        exchange: Callable[[Sequence[tf.Tensor]], list[tf.Tensor]] = functools.partial(
            bound.process_group.all_reduce, op=scaled_op.summed_by, signature=bound.signature
        )
        if scaled_op.op is ReduceOp.ADASUM:
            exchange = functools.partial(adasum, bound)
        totals = fuse(bound, sent, exchange)

        def gradient(*upstream: tf.Tensor) -> list[tf.Tensor | None]:
            places = differentiable_positions(inputs)
            arrived = [tf.convert_to_tensor(upstream[i]) for i in places]
            if scaled_op.is_linear or group.gradients is GradientRule.HOROVOD:
                found = reduce_dense(group, arrived, scaled_op, name=name)
            else:
                mine, best = [sent[i] for i in places], [totals[i] for i in places]
                found = _to_the_extremum(group, mine, best, arrived, scaled_op)
            return with_none(places, found, len(inputs))

        outputs = [
            scaled_op.after(total, group.size, tensor.dtype)
            for total, tensor in zip(totals, inputs, strict=True)
        ]
        return outputs, gradient

    return list(reduce(*[tf.convert_to_tensor(t) for t in tensors]))


def differentiable_positions(tensors: Sequence[tf.Tensor]) -> list[int]:
    """The places of those that have gradients: integers and bool have none, so none travels."""
    return [i for i, tensor in enumerate(tensors) if tensor.dtype.is_floating]


def with_none(
    places: Sequence[int], gradients: Sequence[tf.Tensor], number: int
) -> list[tf.Tensor | None]:
    """So many gradients: those of some places, None elsewhere."""
    found: list[tf.Tensor | None] = [None] * number
    for i, gradient in zip(places, gradients, strict=True):
        found[i] = gradient
    return found


def gradient_op(group: Group) -> ScaledOp:
    """How the gradients of what all ranks have from one of them become that one's gradient."""
    is_horovod = group.gradients is GradientRule.HOROVOD
    return ScaledOp(op=ReduceOp.AVERAGE if is_horovod else ReduceOp.SUM)


def _to_the_extremum(
    group: Group,
    sent: Sequence[tf.Tensor],
    totals: Sequence[tf.Tensor],
    upstream: Sequence[tf.Tensor],
    scaled_op: ScaledOp,
) -> list[tf.Tensor]:
    """The gradient of min and max: shared by the ranks that have the extremum."""
    if scaled_op.op is ReduceOp.PRODUCT:
        raise UnsupportedError(
            "allreduce product has no gradient here; sum the logarithms instead."
        )
    if scaled_op.op is ReduceOp.ADASUM:
        raise UnsupportedError("allreduce adasum has no gradient here. HINT: average, or sum.")
    # Where the extremum is NaN nobody has reached it (NaN != NaN): 0 / 0 then makes the gradient
    # NaN, too.
    reached = [
        tf.cast(mine == best, u.dtype) for mine, best, u in zip(sent, totals, upstream, strict=True)
    ]
    add_up = ScaledOp(op=ReduceOp.SUM)
    ties = reduce_dense(group, reached, add_up, name=DisplayName("ties"))
    sums = reduce_dense(group, upstream, add_up, name=DisplayName("gradients"))
    factor = scaled_op.factor(group.size)
    return [times(s * r / n, factor) for s, r, n in zip(sums, reached, ties, strict=True)]
