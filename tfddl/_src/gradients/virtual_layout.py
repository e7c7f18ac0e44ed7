"""A virtual worker's gradients as they are added up: a flat tensor per dtype, and slices."""

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from tfddl._src.gradients.options import Gradient

_ADDED_IN = {tf.float16: tf.float32, tf.bfloat16: tf.float32}
"""16-bit gradients are added up in 32 bits and rounded once: sums could overflow."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientLayout:
    """Where each gradient is, alike for all virtual workers: their steps are one traced function.

    A step's own numbers (the header) come first in the first tensor.
    """

    header: int
    """How many numbers the header has."""

    shapes: tuple[tuple[int, ...] | None, ...]
    """Of each variable whose gradient is dense; None for the others."""

    dtypes: tuple[tf.DType | None, ...]
    """Of each variable's gradient; None where there is none."""

    header_dtype: tf.DType

    @classmethod
    def of(
        cls, gradients: Sequence[Gradient], variables: Sequence[tf.Variable], *, header: int
    ) -> "GradientLayout":
        """That of gradients, and of a header of so many numbers."""
        dense = [g is not None and not isinstance(g, tf.IndexedSlices) for g in gradients]
        dtypes = tuple(None if g is None else g.dtype for g in gradients)
        return cls(
            header=header,
            shapes=tuple(
                tuple(v.shape) if is_dense else None
                for is_dense, v in zip(dense, variables, strict=True)
            ),
            dtypes=dtypes,
            header_dtype=tf.float64 if tf.float64 in dtypes else tf.float32,
        )

    @property
    def _groups(self) -> list[tuple[tf.DType, list[int]]]:
        """By the dtype in which they are added up, the positions of dense gradients."""
        groups: dict[tf.DType, list[int]] = {self.header_dtype: []}
        for i, (shape, dtype) in enumerate(zip(self.shapes, self.dtypes, strict=True)):
            if shape is not None and dtype is not None:
                groups.setdefault(_ADDED_IN.get(dtype, dtype), []).append(i)
        return list(groups.items())

    def pack(
        self,
        gradients: Sequence[Gradient],
        weight: tf.Tensor,
        header: tf.Tensor,
        *,
        round_up: Callable[[int], int],
    ) -> tuple[list[tf.Tensor], list[tf.IndexedSlices]]:
        """Weighted gradients, ready to be added to those of other virtual workers.

        Args:
            gradients: In the order of the variables.
            weight: Scalar. Where it is 0 the gradients are, whatever they were.
            header: Shape (`header`,).
            round_up: The length that a tensor of some length must have; the rest is zeros.
        """
        flats = []
        for dtype, positions in self._groups:
            parts = [tf.reshape(tf.cast(gradients[i], dtype), [-1]) for i in positions]
            flat = tf.concat([tf.zeros([0], dtype), *parts], axis=0)
            flat = tf.math.multiply_no_nan(flat, tf.cast(weight, dtype))
            leading = [tf.cast(header, dtype)] if dtype == self.header_dtype else []
            length = flat.shape[0] + self.header * len(leading)
            rest = tf.zeros([round_up(length) - length], dtype)
            flats.append(tf.concat([*leading, flat, rest], axis=0))
        sparse = [
            tf.IndexedSlices(
                tf.math.multiply_no_nan(g.values, tf.cast(weight, g.dtype)),
                tf.cast(g.indices, tf.int64),
                g.dense_shape,
            )
            for g in gradients
            if isinstance(g, tf.IndexedSlices)
        ]
        return flats, sparse

    def unpack(
        self,
        flats: Sequence[tf.Tensor],
        sparse: Sequence[tf.IndexedSlices],
        divisor: tf.Tensor | None,
    ) -> list[Gradient]:
        """The gradients of all virtual workers, of what `pack` has made and was added up.

        Args:
            flats: The sums of what `pack` returned first.
            sparse: What it returned second, of all virtual workers.
            divisor: Scalar; None leaves the sums as they are.
        """
        gradients: list[Gradient] = [None] * len(self.shapes)
        for flat, (dtype, positions) in zip(flats, self._groups, strict=True):
            start = self.header if dtype == self.header_dtype else 0
            mean = _divided(flat[start:], divisor)
            lengths = [tf.TensorShape(self.shapes[i]).num_elements() for i in positions]
            parts = tf.split(mean, [*lengths, mean.shape[0] - sum(lengths)])
            for i, part in zip(positions, parts, strict=False):
                gradients[i] = tf.cast(tf.reshape(part, self.shapes[i]), self.dtypes[i])
        is_sparse = [
            shape is None and dtype is not None
            for shape, dtype in zip(self.shapes, self.dtypes, strict=True)
        ]
        positions = [i for i, is_one in enumerate(is_sparse) if is_one]
        for i, slices in zip(positions, sparse, strict=True):
            values = _divided(slices.values, divisor)
            gradients[i] = tf.IndexedSlices(values, slices.indices, slices.dense_shape)
        return gradients


def _divided(sums: tf.Tensor, divisor: tf.Tensor | None) -> tf.Tensor:
    return sums if divisor is None else tf.math.divide_no_nan(sums, tf.cast(divisor, sums.dtype))
