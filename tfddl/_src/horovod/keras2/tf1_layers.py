"""`tf.layers`: the functions that scripts for sessions build their models of.

TensorFlow 2.16 and newer have them only with Keras 2. These have the names, the defaults
and the variables (``conv2d/kernel``, ``conv2d/bias``) of TensorFlow 1.15. Arguments that they don't
know are a TypeError.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def dense(  # noqa: PLR0913 - TensorFlow 1's signature
    inputs: Any,
    units: int,
    activation: Callable[[Any], Any] | None = None,
    use_bias: bool = True,
    kernel_initializer: Any = None,
    bias_initializer: Any = None,
    kernel_regularizer: Callable[[Any], Any] | None = None,
    name: str | None = None,
    reuse: Any = None,
) -> tf.Tensor:
    """A matrix of weights times the last dimension, and a bias."""
    inputs = tf.convert_to_tensor(inputs)
    with tf.compat.v1.variable_scope(name, "dense", reuse=reuse):
        shape = [inputs.shape[-1], units]
        kernel = _variable("kernel", shape, inputs.dtype, kernel_initializer, kernel_regularizer)
        return _finished(
            tf.tensordot(inputs, kernel, 1), units, use_bias, bias_initializer, activation
        )


def conv2d(  # noqa: PLR0913 - TensorFlow 1's signature
    inputs: Any,
    filters: int,
    kernel_size: int | Sequence[int],
    strides: int | Sequence[int] = (1, 1),
    padding: str = "valid",
    data_format: str = "channels_last",
    dilation_rate: int | Sequence[int] = (1, 1),
    activation: Callable[[Any], Any] | None = None,
    use_bias: bool = True,
    kernel_initializer: Any = None,
    bias_initializer: Any = None,
    kernel_regularizer: Callable[[Any], Any] | None = None,
    name: str | None = None,
    reuse: Any = None,
) -> tf.Tensor:
    """A convolution of pictures, and a bias."""
    _check_format(data_format)
    inputs = tf.convert_to_tensor(inputs)
    with tf.compat.v1.variable_scope(name, "conv2d", reuse=reuse):
        shape = [*_pair(kernel_size), inputs.shape[-1], filters]
        kernel = _variable("kernel", shape, inputs.dtype, kernel_initializer, kernel_regularizer)
        outputs = tf.nn.conv2d(
            inputs,
            kernel,
            strides=_pair(strides),
            padding=padding.upper(),
            dilations=_pair(dilation_rate),
        )
        return _finished(outputs, filters, use_bias, bias_initializer, activation)


def max_pooling2d(  # noqa: PLR0913 - TensorFlow 1's signature
    inputs: Any,
    pool_size: int | Sequence[int],
    strides: int | Sequence[int],
    padding: str = "valid",
    data_format: str = "channels_last",
    name: str | None = None,
) -> tf.Tensor:
    """The largest of each window."""
    _check_format(data_format)
    sizes = _pair(pool_size), _pair(strides)
    return tf.nn.max_pool2d(inputs, *sizes, padding=padding.upper(), name=name)


def average_pooling2d(  # noqa: PLR0913 - TensorFlow 1's signature
    inputs: Any,
    pool_size: int | Sequence[int],
    strides: int | Sequence[int],
    padding: str = "valid",
    data_format: str = "channels_last",
    name: str | None = None,
) -> tf.Tensor:
    """The mean of each window."""
    _check_format(data_format)
    sizes = _pair(pool_size), _pair(strides)
    return tf.nn.avg_pool2d(inputs, *sizes, padding=padding.upper(), name=name)


def flatten(inputs: Any, name: str | None = None) -> tf.Tensor:
    """All dimensions but the first in one."""
    inputs = tf.convert_to_tensor(inputs)
    return tf.reshape(inputs, [-1, inputs.shape[1:].num_elements()], name=name)


def dropout(  # noqa: PLR0913 - TensorFlow 1's signature
    inputs: Any,
    rate: float = 0.5,
    noise_shape: Any = None,
    seed: int | None = None,
    training: Any = False,
    name: str | None = None,
) -> tf.Tensor:
    """Zeros in the place of some, where ``training`` is true; it may be a tensor."""
    inputs = tf.convert_to_tensor(inputs)

    def dropped() -> tf.Tensor:
        return tf.compat.v1.nn.dropout(inputs, noise_shape=noise_shape, seed=seed, rate=rate)

    if isinstance(training, tf.Tensor):
        return tf.cond(training, dropped, lambda: tf.identity(inputs), name=name)
    return dropped() if training else tf.identity(inputs, name=name)


def _variable(
    name: str, shape: Sequence[int | None], dtype: tf.DType, initializer: Any, regularizer: Any
) -> Any:
    # Without an initializer, get_variable takes glorot_uniform, as tf.layers did.
    return tf.compat.v1.get_variable(
        name, shape, dtype, initializer=initializer, regularizer=regularizer
    )


def _finished(
    outputs: tf.Tensor, units: int, use_bias: bool, initializer: Any, activation: Any
) -> tf.Tensor:
    if use_bias:
        zeros = initializer or tf.compat.v1.zeros_initializer()
        outputs = tf.nn.bias_add(outputs, _variable("bias", [units], outputs.dtype, zeros, None))
    return outputs if activation is None else activation(outputs)


def _pair(size: int | Sequence[int]) -> list[int]:
    return [size, size] if isinstance(size, int) else list(size)


def _check_format(data_format: str) -> None:
    if data_format != "channels_last":
        raise ValueError(
            f"data_format is {data_format!r}; on CPUs TensorFlow has 'channels_last' only. HINT: "
            "leave it out."
        )
