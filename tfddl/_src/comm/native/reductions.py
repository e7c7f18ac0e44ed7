"""How numbers of several workers become one."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

import numpy as np


class ReduceOp(enum.StrEnum):
    """How the tensors of all ranks become one.

    Below `tfddl._src.collectives` nothing averages: an average is a sum there, divided above.
    """

    AVERAGE = "average"
    SUM = "sum"
    MIN = "min"
    MAX = "max"
    PRODUCT = "product"


_UFUNCS = {
    ReduceOp.SUM: np.add,
    ReduceOp.PRODUCT: np.multiply,
    ReduceOp.MIN: np.minimum,
    ReduceOp.MAX: np.maximum,
}
REDUCED = tuple(_UFUNCS)
"""What arithmetic there is for."""


def reduced(rows: Sequence[np.ndarray], reduction: ReduceOp) -> np.ndarray:
    """Reduces in the order given, into an array of its own."""
    out = np.empty_like(rows[0])
    reduce(rows, reduction, out)
    return out


def reduce(operands: Sequence[np.ndarray], reduction: ReduceOp, out: np.ndarray) -> None:
    """Reduces in the order given; 16-bit floats in 32 bits."""
    function: Callable[..., np.ndarray] = _UFUNCS[reduction]
    if out.dtype.itemsize == 2 and out.dtype.kind not in "iu":
        operands = [operand.astype(np.float32) for operand in operands]
        total = operands[0]
        for operand in operands[1:]:
            function(total, operand, out=total)
        out[:] = total
        return
    if len(operands) == 1:
        out[:] = operands[0]
        return
    function(operands[0], operands[1], out=out)
    for operand in operands[2:]:
        function(out, operand, out=out)
