"""Elementwise reductions of the arrays of several workers."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence

import numpy as np


class ReduceOp(enum.StrEnum):
    """How the tensors of all ranks become one.

    Below `tfddl._src.collectives` nothing averages: an average is a sum there, divided above.
    Neither is there an Adasum (see `tfddl._src.collectives.adasum`), which is made of gathers.
    """

    AVERAGE = "average"
    SUM = "sum"
    MIN = "min"
    MAX = "max"
    PRODUCT = "product"
    ADASUM = "adasum"


_UFUNCS = {
    ReduceOp.SUM: np.add,
    ReduceOp.PRODUCT: np.multiply,
    ReduceOp.MIN: np.minimum,
    ReduceOp.MAX: np.maximum,
}
REDUCED = tuple(_UFUNCS)
"""What arithmetic there is for."""


_MAX_EXPONENT = 100
"""Of powers of two whose inverse is far from those that float32 rounds, or flushes to 0."""


def accumulator_dtype(dtype: np.dtype) -> np.dtype:
    """In which dtype elements are reduced: 16-bit floats (float16, bfloat16) in float32."""
    # bfloat16 is a type of ml_dtypes, whose kind isn't "f" to NumPy.
    is_half = dtype.itemsize == 2 and dtype.kind not in "iu"
    return np.dtype(np.float32) if is_half else dtype


def reduce(operands: Sequence[np.ndarray], reduction: ReduceOp) -> np.ndarray:
    """Reduces into a new array; see `reduce_into`."""
    out = np.empty_like(operands[0])
    reduce_into(operands, reduction, out)
    return out


def reduce_into(operands: Sequence[np.ndarray], reduction: ReduceOp, out: np.ndarray) -> None:
    """Reduces from the first operand to the last.

    Floating-point sums depend on their order: all workers that compute one result must pass the
    operands in one order.

    Args:
        operands: at least one, of one length and dtype. 16-bit floats (float16, bfloat16) are
            reduced in float32 and rounded once.
        reduction: how.
        out: of the same length and dtype; it may be the first operand.
    """
    # np.minimum and np.maximum give NaN where either operand is NaN, so that their results don't
    # depend on the order, either.
    function: Callable[..., np.ndarray] = _UFUNCS[reduction]
    accumulator = accumulator_dtype(out.dtype)
    if accumulator != out.dtype:
        operands = [operand.astype(accumulator) for operand in operands]
        total = operands[0]
        for operand in operands[1:]:
            function(total, operand, out=total)
        # Rounded to nearest, ties to even, by NumPy and ml_dtypes alike: once, whatever the number
        # of workers.
        out[:] = total
        return
    if len(operands) == 1:
        out[:] = operands[0]
        return
    function(operands[0], operands[1], out=out)
    for operand in operands[2:]:
        function(out, operand, out=out)


def divide_into(sums: np.ndarray, number: float, out: np.ndarray) -> None:
    """Divides by a number, rounded once; by 0 everything is 0.

    Args:
        sums: float32 or float64.
        number: of that dtype.
        out: of the same length and dtype; it may be `sums`.
    """
    # See `OperationStarter.begin`.
    with np.errstate(all="ignore"):
        mantissa, exponent = math.frexp(number)
        if number == 0:
            out[:] = 0
        elif abs(mantissa) == 0.5 and abs(exponent) < _MAX_EXPONENT:
            # A power of two, as most batches have: its inverse is exact, so that both are rounded
            # alike, and to multiply takes a third of the time.
            np.multiply(sums, out.dtype.type(1 / number), out=out)
        else:
            np.divide(sums, number, out=out)
