"""Horovod's names for how tensors are reduced and compressed."""

import warnings
from typing import Any

import tfddl
from tfddl.errors import UnsupportedError

Average = tfddl.ReduceOp.AVERAGE
Sum = tfddl.ReduceOp.SUM
Min = tfddl.ReduceOp.MIN
Max = tfddl.ReduceOp.MAX
Product = tfddl.ReduceOp.PRODUCT

ADASUM_HINT = (
    "Adasum isn't there. Use op=hvd.Average with a learning rate scaled by the number of workers "
    "and hvd.callbacks.LearningRateWarmupCallback."
)


class Compression:
    """In which precision tensors travel."""

    none = tfddl.Compression.NONE
    fp16 = tfddl.Compression.FP16


def resolve_op(op: Any, average: bool | None) -> tfddl.ReduceOp:
    """The reduction of Horovod's ``op`` and of ``average``, which is older.

    Raises:
        UnsupportedError: Both are given, or there is no such op.
    """
    if average is not None:
        if op is not None:
            raise UnsupportedError("Give either op or average (which is the older way), not both.")
        return Average if average else Sum
    if op is None:
        return Average
    if op not in list(tfddl.ReduceOp):
        raise UnsupportedError(f"op is {op!r}; it must be hvd.Average, Sum, Min, Max or Product.")
    return tfddl.ReduceOp(op)


def resolve_compression(compression: Any) -> tfddl.Compression:
    """The compression as tfddl knows it.

    Raises:
        UnsupportedError: It is something else, such as a compressor of the user's own.
    """
    if compression not in list(tfddl.Compression):
        raise UnsupportedError(
            f"compression is {compression!r}; it must be hvd.Compression.none or "
            "hvd.Compression.fp16. For another one compress before hvd.allreduce, and "
            "decompress after it."
        )
    return tfddl.Compression(compression)


def warn_no_effect(name: str, value: Any, why: str) -> None:
    """Warns where an argument is given that changes nothing here."""
    if value:
        warnings.warn(f"{name}={value!r} has no effect: {why}", stacklevel=4)


def warn_no_device(device_dense: str = "", device_sparse: str = "") -> None:
    """Warns where a device is named."""
    why = "tensors travel from the worker's device, its GPU where it has one."
    warn_no_effect("device_dense", device_dense, why)
    warn_no_effect("device_sparse", device_sparse, why)
