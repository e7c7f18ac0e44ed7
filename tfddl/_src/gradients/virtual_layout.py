"""A virtual worker's gradients as they are added up: dense ones, small ones joined, and slices."""

import dataclasses
import math
from collections.abc import Sequence

import tensorflow as tf

from tfddl._src.gradients.options import Gradient

_ADDED_IN = {tf.float16: tf.float32, tf.bfloat16: tf.float32}
"""16-bit gradients are added up in 32 bits and rounded once: sums could overflow."""


_SMALL_BYTES = 2**16
"""Of a gradient: up to so many, copying it costs less than another tensor to travel."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientLayout:
    """Where each gradient is, alike for all virtual workers: their steps are one traced function.

    Small ones of a dtype share a tensor, so that few travel; large ones aren't copied. A step's own
    numbers (the header) come first in the first tensor.
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
        """Of each tensor, the dtype in which it is added up, and whose gradients are in it."""
        small: dict[tf.DType, list[int]] = {self.header_dtype: []}
        large: list[tuple[tf.DType, list[int]]] = []
        for i, (shape, given) in enumerate(zip(self.shapes, self.dtypes, strict=True)):
            if shape is None or given is None:
                continue
            dtype = _ADDED_IN.get(given, given)
            if math.prod(shape) * dtype.size > _SMALL_BYTES:
                large.append((dtype, [i]))
            else:
                small.setdefault(dtype, []).append(i)
        return [*small.items(), *large]

    def pack(
        self,
        gradients: Sequence[Gradient],
        weight: tf.Tensor,
        header: tf.Tensor,
    ) -> tuple[list[tf.Tensor], list[tf.IndexedSlices]]:
        """Weighted gradients, ready to be added to those of other virtual workers.

        Args:
            gradients: In the order of the variables.
            weight: Scalar. Where it is 0 the gradients are, whatever they were.
            header: Shape (`header`,).
        """
        flats = []
        for number, (dtype, positions) in enumerate(self._groups):
            parts = [tf.reshape(tf.cast(gradients[i], dtype), [-1]) for i in positions]
            parts = [tf.math.multiply_no_nan(part, tf.cast(weight, dtype)) for part in parts]
            if number == 0:
                parts = [tf.cast(header, dtype), *parts]
            flats.append(parts[0] if len(parts) == 1 else tf.concat(parts, axis=0))
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
        for number, (flat, (_, positions)) in enumerate(zip(flats, self._groups, strict=True)):
            lengths = [tf.TensorShape(self.shapes[i]).num_elements() for i in positions]
            parts = [flat]
            if number == 0:
                parts = tf.split(flat, [self.header, *lengths])[1:]
            elif len(positions) > 1:
                parts = tf.split(flat, lengths)
            for i, part in zip(positions, parts, strict=True):
                part = _divided(part, divisor)
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
