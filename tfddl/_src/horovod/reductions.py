"""Horovod's reductions, and arguments without an effect here, resolved to tfddl's."""

import warnings
from typing import Any

import tfddl
from tfddl.errors import UnsupportedError

Average = tfddl.ReduceOp.AVERAGE
Sum = tfddl.ReduceOp.SUM
Min = tfddl.ReduceOp.MIN
Max = tfddl.ReduceOp.MAX
Product = tfddl.ReduceOp.PRODUCT
Adasum = tfddl.ReduceOp.ADASUM


def resolve_op(op: Any, average: bool | None) -> tfddl.ReduceOp:
    """The reduction that ``op``, or the older ``average``, asks for; by default `Average`.

    Raises:
        UnsupportedError: Both are given, or there is no such op.
    """
    if average is not None:
        if op is not None:
            raise UnsupportedError(
                "op and average are both given. HINT: leave out average, the older of both."
            )
        return Average if average else Sum
    if op is None:
        return Average
    if op not in list(tfddl.ReduceOp):
        raise UnsupportedError(
            f"op is {op!r}; it must be hvd.Average, Sum, Min, Max, Product or Adasum."
        )
    return tfddl.ReduceOp(op)


def warn_no_effect(name: str, value: Any, why: str) -> None:
    """Warns where an argument is given that has no effect here."""
    if value:
        warnings.warn(f"{name}={value!r} has no effect: {why}", stacklevel=4)


def warn_no_device(device_dense: str = "", device_sparse: str = "") -> None:
    """Warns where a device is given."""
    why = "tensors are sent from the worker's device, its GPU where it has one."
    warn_no_effect("device_dense", device_dense, why)
    warn_no_effect("device_sparse", device_sparse, why)
