"""Adasum: gradients that point the same way are averaged, orthogonal ones are added up.

For two of them, a and b, it is ``(1 - a·b / 2|a|²) a + (1 - a·b / 2|b|²) b``; for 2ⁿ ranks, that of
the Adasums of both halves of them. Each tensor is one vector.

References:
    "Scaling Distributed Training with Adaptive Summation", Maleki et al., 2021,
    https://arxiv.org/abs/2006.02924; as in horovod/common/ops/adasum/adasum.h, where pairs of
    neighbours come first, and a vector of (nearly) no length counts as orthogonal to any.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfddl._src.collectives.process_sets import Group
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

    Pairs exchange all they have: log2(N) times as many bytes as there are, where recursive halving
    would send less than twice as many. Then all get what the first rank has found, a broadcast of
    as many bytes as there are: a sum's last bits depend on the number of threads, of which hosts
    may have different ones.

    Args:
        group: 2, 4, 8, … ranks, which have negotiated it.
        tensors: At least one, any shapes, one dtype; the same on all ranks.

    Returns:
        The same shapes and dtype, bit for bit the same on every rank.
    """
    process_group, signature = group.process_group, group.signature
    # Pairs compare their calls, and of all ranks only this.
    process_group.all_gather(tf.zeros([1], tf.int32), signature=signature)
    found = [tf.stop_gradient(tensor) for tensor in tensors]
    distance = 1
    while distance < group.size:
        first = group.rank & ~distance
        pair = process_group.subgroup((first, first + distance))
        rows = pair.all_gather(flatten(found), signature=signature)
        halves = zip(unflatten(rows[0], found), unflatten(rows[1], found), strict=True)
        found = [_of_two(one, other) for one, other in halves]
        distance *= 2
    return process_group.broadcast(found, 0, signature=signature)


def _of_two(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    wide = [tf.cast(tensor, tf.float64) for tensor in (one, other)]
    dot = tf.reduce_sum(wide[0] * wide[1])
    # 16 bits are multiplied and added in 32, and rounded once.
    dtype = tf.float32 if one.dtype == tf.float16 else one.dtype
    parts = []
    for tensor, double in zip((one, other), wide, strict=True):
        square = tf.reduce_sum(double * double)
        share = tf.where(
            square < _SHORTEST, tf.zeros_like(square), dot / tf.maximum(square, _SHORTEST)
        )
        parts.append(tf.cast(1.0 - 0.5 * share, dtype) * tf.cast(tensor, dtype))
    return tf.cast(parts[0] + parts[1], one.dtype)
