"""What makes tensors smaller while they travel (horovod/tensorflow/compression.py)."""

from typing import Any

import tensorflow as tf

import tfddl
from tfddl._src.gradients import Compressor as AnyCompressor
from tfddl.errors import UnsupportedError


class Compressor:
    """The base class of scripts' own compressors: both methods are static."""

    @staticmethod
    def compress(tensor: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """Returns what travels instead of a tensor, and what `decompress` has to know."""
        raise NotImplementedError

    @staticmethod
    def decompress(tensor: tf.Tensor, ctx: Any) -> tf.Tensor:
        """Returns the result, of what has arrived and what `compress` has returned here."""
        raise NotImplementedError


class NoneCompressor(Compressor):
    """Changes nothing."""

    @staticmethod
    def compress(tensor: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """Returns the tensor."""
        return tensor, None

    @staticmethod
    def decompress(tensor: tf.Tensor, ctx: Any) -> tf.Tensor:
        """Returns the tensor."""
        return tensor


class FP16Compressor(Compressor):
    """Sends floating-point tensors in 16 bits."""

    @staticmethod
    def compress(tensor: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """Returns a float16 tensor, unless it is of integers; and its dtype."""
        dtype = tensor.dtype
        return (tf.cast(tensor, tf.float16) if dtype.is_floating else tensor), dtype

    @staticmethod
    def decompress(tensor: tf.Tensor, ctx: Any) -> tf.Tensor:
        """Returns the tensor in the dtype that it had."""
        return tf.cast(tensor, ctx)


class Compression:
    """The compressors that are there; a script may pass one of its own instead."""

    none = NoneCompressor
    fp16 = FP16Compressor


def resolve_compressor(compression: Any) -> AnyCompressor:
    """The compressor that an argument asks for.

    Raises:
        UnsupportedError: It is none.
    """
    if compression in list(tfddl.Compression):
        known = {tfddl.Compression.NONE: NoneCompressor, tfddl.Compression.FP16: FP16Compressor}
        compression = known.get(tfddl.Compression(compression))
    methods = [getattr(compression, name, None) for name in ("compress", "decompress")]
    if not all(map(callable, methods)):
        raise UnsupportedError(
            f"compression is {compression!r}; it must be hvd.Compression.none, "
            "hvd.Compression.fp16, or a class with static methods compress(tensor) -> (tensor, "
            "ctx) and decompress(tensor, ctx)."
        )
    found: AnyCompressor = compression
    return found


def resolve_compression(compression: Any) -> tfddl.Compression | AnyCompressor:
    """The compression of gradients: tfddl's own where there is the like.

    Raises:
        UnsupportedError: It is none.
    """
    if compression in list(tfddl.Compression):
        return tfddl.Compression(compression)
    compressor = resolve_compressor(compression)
    if compressor is NoneCompressor:
        return tfddl.Compression.NONE
    return tfddl.Compression.FP16 if compressor is FP16Compressor else compressor
