"""Adasum: gradients that point the same way are averaged, orthogonal ones are added up.

For two of them, a and b, it is ``(1 - a·b / 2|a|²) a + (1 - a·b / 2|b|²) b``; for 2ⁿ ranks, that of
the Adasums of both halves of them. Each tensor is one vector.

References:
    "Scaling Distributed Training with Adaptive Summation", Maleki et al., 2021,
    https://arxiv.org/abs/2006.02924; as in horovod/common/ops/adasum/adasum.h, where pairs of
    neighbours come first, and a vector of (nearly) no length counts as orthogonal to any.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfddl._src.collectives.process_sets import Group
from tfddl._src.comm.native import ReduceOp
from tfddl._src.comm.process_group import flatten, unflatten
from tfddl.errors import UnimplementedError, UnsupportedError

_DTYPES = (tf.float16, tf.float32, tf.float64)

_SHORTEST = float(np.sqrt(np.finfo(np.float64).tiny))
"""Of |a|²; what is below it isn't divided by."""


def check_adasum(size: int, tensors: Sequence[tf.Tensor]) -> None:
    """Makes sure that there is an Adasum.

    Raises:
        UnimplementedError: The number of ranks is no power of 2.
        UnsupportedError: A tensor of another dtype.
    """
    if size & (size - 1):
        raise UnimplementedError(
            f"adasum is for 2, 4, 8, … ranks, not for {size}. HINT: start that many, or use "
            "op=average with a learning rate that grows with the number of ranks."
        )
    for tensor in tensors:
        if tensor.dtype not in _DTYPES:
            known = ", ".join(dtype.name for dtype in _DTYPES)
            raise UnsupportedError(
                f"adasum of {tensor.dtype.name} isn't supported; of {known} it is."
            )


def adasum(group: Group, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The Adasum over the ranks of each of some tensors, which travel together.

    By recursive vector halving, as in Horovod: pairs exchange halves of what they have, so that in
    the end each rank has the result of one part, and all gather the parts. A rank sends
    2 (N - 1) / N times the bytes there are, and three numbers per tensor in each of log2(N) steps.
    No element is computed on two ranks: a sum's last bits depend on the number of threads, of which
    hosts may have different ones.

    Args:
        group: 2, 4, 8, … ranks, which have negotiated it.
        tensors: At least one, any shapes, one dtype; the same on all ranks.

    Returns:
        The same shapes and dtype, bit for bit the same on every rank.
    """
    process_group, signature = group.process_group, group.signature
    # Pairs compare their calls, and of all ranks only this.
    process_group.all_gather(tf.zeros([1], tf.int32), signature=signature)
    given = [tf.stop_gradient(tensor) for tensor in tensors]
    if group.size == 1:
        return given
    flat = flatten(given)
    elements = tf.size(flat, tf.int64)
    length = -(-elements // group.size) * group.size
    part = _Part(
        tf.pad(flat, [[0, length - elements]]),
        tf.zeros([], tf.int64),
        tf.cumsum([*(tf.size(tensor, tf.int64) for tensor in given), length - elements]),
    )
    distance = 1
    while distance < group.size:
        first = group.rank & ~distance
        kept, sent = part.halves(upper=first != group.rank)
        half = tf.size(sent, tf.int64)
        pair = process_group.subgroup((first, first + distance))
        swap = half * tf.constant([[0, 1], [1, 0]], tf.int64)
        arrived = kept.with_values(pair.all_to_all(sent, swap, signature=signature))
        one, other = (kept, arrived) if first == group.rank else (arrived, kept)
        start = group.rank - group.rank % (2 * distance)
        block = process_group.subgroup(tuple(range(start, start + 2 * distance)))
        [products] = block.all_reduce([_products(one, other)], ReduceOp.SUM, signature=signature)
        part = kept.with_values(_of_two(one, other, products))
        distance *= 2
    rows = process_group.all_gather(part.values, signature=signature)
    whole = tf.reshape(tf.gather(rows, _order(group.size)), [-1])
    return unflatten(whole[:elements], given)


@dataclasses.dataclass(frozen=True)
class _Part:
    """A part of some tensors that lie one behind the other, with zeros behind the last."""

    values: tf.Tensor
    """Shape (n,), of the tensors' dtype."""

    start: tf.Tensor
    """Scalar, int64: how many elements are before it."""

    ends: tf.Tensor
    """Shape (tensors + 1,), int64: where each tensor ends, and the zeros, in the whole."""

    def halves(self, *, upper: bool) -> tuple["_Part", tf.Tensor]:
        """One half, and the values of the other; n is even.

        Args:
            upper: Whether it is the second half.
        """
        half = tf.size(self.values, tf.int64) // 2
        first, second = self.values[:half], self.values[half:]
        if upper:
            return dataclasses.replace(self, values=second, start=self.start + half), first
        return dataclasses.replace(self, values=first), second

    def with_values(self, values: tf.Tensor) -> "_Part":
        """The same part of other tensors."""
        return dataclasses.replace(self, values=values)

    def by_tensor(self) -> list[tf.Tensor]:
        """What is here of each tensor, which may be nothing, and last of the zeros."""
        here = tf.clip_by_value(self.ends - self.start, 0, tf.size(self.values, tf.int64))
        lengths = here - tf.concat([[0], here[:-1]], axis=0)
        parts: list[tf.Tensor] = tf.split(self.values, lengths, num=self.ends.shape[0])
        return parts


def _products(one: _Part, other: _Part) -> tf.Tensor:
    """Of each tensor's two parts a·b, |a|² and |b|²: shape (tensors, 3), float64."""
    rows = []
    for part, opposite in zip(one.by_tensor()[:-1], other.by_tensor()[:-1], strict=True):
        a, b = tf.cast(part, tf.float64), tf.cast(opposite, tf.float64)
        rows.append(tf.stack([tf.reduce_sum(x) for x in (a * b, a * a, b * b)]))
    return tf.stack(rows)


def _of_two(one: _Part, other: _Part, products: tf.Tensor) -> tf.Tensor:
    """The Adasum of two parts.

    Args:
        one: Of the first.
        other: Of the second, where that has it.
        products: As `_products` makes them, of the whole tensors.
    """
    dot, squares = products[:, :1], products[:, 1:]
    shares = tf.where(
        squares < _SHORTEST, tf.zeros_like(squares), dot / tf.maximum(squares, _SHORTEST)
    )
    # 16 bits are multiplied and added in 32, and rounded once.
    dtype = one.values.dtype
    wide = tf.float32 if dtype == tf.float16 else dtype
    factors = tf.cast(1.0 - 0.5 * shares, wide)
    *parts, zeros = one.by_tensor()
    found = [
        tf.cast(pair[0] * tf.cast(a, wide) + pair[1] * tf.cast(b, wide), dtype)
        for pair, a, b in zip(tf.unstack(factors), parts, other.by_tensor()[:-1], strict=True)
    ]
    return tf.concat([*found, zeros], axis=0)


def _order(size: int) -> list[int]:
    """Which rank has each part in the end: the first step decides about the half, and so on."""
    places = [0]
    distance = size // 2
    while distance:
        places += [place + distance for place in places]
        distance //= 2
    return places
