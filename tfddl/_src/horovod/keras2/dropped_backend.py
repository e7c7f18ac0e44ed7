"""Functions of Keras 2's backend that Keras 3 has nowhere: phases, graphs, names of axes' order."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfddl._src.horovod.keras2.deprecations import DeprecationWarnings
from tfddl.errors import UnsupportedError

_ORDERS = {"tf": "channels_last", "th": "channels_first"}


def functions(deprecations: DeprecationWarnings) -> dict[str, Any]:
    """All of them, by their names in `keras.backend`."""
    phase = _LearningPhase(deprecations)
    axes = _AxisOrder(deprecations)
    plain: dict[str, tuple[Callable[..., Any], str]] = {
        "function": (function, "keras.Model(inputs, outputs), which can be called"),
        "placeholder": (placeholder, "keras.Input"),
        "get_variable_shape": (lambda x: tuple(x.shape), "tuple(x.shape)"),
        "identity": (tf.identity, "keras.ops.copy"),
        "is_tensor": (tf.is_tensor, "keras.ops.is_tensor"),
        "logsumexp": (_logsumexp, "keras.ops.logsumexp"),
        "print_tensor": (_print_tensor, "tf.print"),
        "random_binomial": (_random_binomial, "keras.random.binomial"),
        "reset_uids": (keras.backend.clear_session, "keras.utils.clear_session"),
        "slice": (tf.slice, "keras.ops.slice"),
    }
    warned = {
        name: _warning(deprecations, name, call, modern) for name, (call, modern) in plain.items()
    }
    return {
        **warned,
        "learning_phase": phase.get,
        "set_learning_phase": phase.set,
        "in_train_phase": phase.in_train_phase,
        "in_test_phase": phase.in_test_phase,
        "image_dim_ordering": axes.get,
        "set_image_dim_ordering": axes.set,
        "tf": tf,
    }


def _warning(
    deprecations: DeprecationWarnings, name: str, call: Callable[..., Any], modern: str
) -> Callable[..., Any]:
    def warned(*args: Any, **kwargs: Any) -> Any:
        deprecations.warn_once(f"K.{name}", f"{modern}.")
        return call(*args, **kwargs)

    warned.__name__, warned.__doc__ = name, call.__doc__
    return warned


class _LearningPhase:
    """Keras 2's global switch between training and inference; Keras 3 has an argument instead."""

    _MODERN = "the argument `training` of the layer's call."

    def __init__(self, deprecations: DeprecationWarnings) -> None:
        self._deprecations = deprecations
        self._value = 0

    def get(self) -> int:
        """1 within a layer that is called to train, 0 to infer; elsewhere what was set last."""
        # Not at the top: see the package's docstring.
        from tfddl._src.keras_hooks.training_argument import training_of_call

        self._deprecations.warn_once("K.learning_phase", self._MODERN)
        training = training_of_call()
        return self._value if training is None else int(training)

    def set(self, value: int) -> None:
        """Sets what `get` returns outside of layers; `fit` trains, and `predict` infers, anyway."""
        self._deprecations.warn_once(
            "K.set_learning_phase, which has no effect on layers here,",
            "model(x, training=…); layer.trainable = False freezes a BatchNormalization.",
        )
        self._value = value

    def in_train_phase(self, x: Any, alt: Any, training: Any = None) -> Any:
        """``x`` where a layer trains, otherwise ``alt``; either may be a function of nothing."""
        self._deprecations.warn_once("K.in_train_phase", self._MODERN)
        phase = self.get() if training is None else training
        if isinstance(phase, int | np.bool_):
            return _value_of(x if phase else alt)
        return tf.cond(tf.cast(phase, tf.bool), lambda: _value_of(x), lambda: _value_of(alt))

    def in_test_phase(self, x: Any, alt: Any, training: Any = None) -> Any:
        """``x`` where a layer infers, otherwise ``alt``."""
        return self.in_train_phase(alt, x, training)


def _value_of(x: Any) -> Any:
    return x() if callable(x) else x


class _AxisOrder:
    """The names of Keras 1 for `keras.config.image_data_format`."""

    def __init__(self, deprecations: DeprecationWarnings) -> None:
        self._deprecations = deprecations

    def get(self) -> str:
        """Returns "tf" for channels last, "th" for channels first."""
        modern = "keras.config.image_data_format()."
        self._deprecations.warn_once("K.image_dim_ordering", modern, of="Keras 1")
        found = keras.config.image_data_format()
        return next(old for old, order in _ORDERS.items() if order == found)

    def set(self, order: str) -> None:
        """Takes "tf" or "th"."""
        modern = 'keras.config.set_image_data_format("channels_last").'
        self._deprecations.warn_once("K.set_image_dim_ordering", modern, of="Keras 1")
        if order not in _ORDERS:
            raise UnsupportedError(f"set_image_dim_ordering got {order!r}; expected 'tf' or 'th'.")
        keras.config.set_image_data_format(_ORDERS[order])


def function(
    inputs: Sequence[Any], outputs: Any, updates: Any = None, **kwargs: Any
) -> Callable[[Sequence[Any]], Any]:
    """A function from values of a model's tensors to values of others, as NumPy arrays.

    Args:
        inputs: Symbolic tensors of a model; `K.learning_phase()` may be among them.
        outputs: One symbolic tensor, or several.
        updates: Must be empty.
        **kwargs: Have no effect.

    Raises:
        UnsupportedError: There are ``updates``.
    """
    if updates:
        raise UnsupportedError(
            "K.function(…, updates=…) is of TensorFlow 1's graphs. HINT: a tf.function with "
            "variable.assign(…) in it."
        )
    is_one = not isinstance(outputs, list | tuple)
    is_symbolic = [isinstance(tensor, keras.KerasTensor) for tensor in inputs]
    symbolic = [tensor for tensor, given in zip(inputs, is_symbolic, strict=True) if given]
    model = keras.Model(symbolic, [outputs] if is_one else list(outputs))

    def call(values: Sequence[Any]) -> Any:
        given = [value for value, is_data in zip(values, is_symbolic, strict=True) if is_data]
        phases = [value for value, is_data in zip(values, is_symbolic, strict=True) if not is_data]
        # Of a list of one tensor, Keras returns the tensor.
        found = keras.tree.flatten(model(given, training=any(phases)))
        arrays = [np.asarray(tensor) for tensor in found]
        return arrays[0] if is_one else arrays

    return call


def placeholder(
    shape: Sequence[int | None] | None = None,
    ndim: int | None = None,
    dtype: str | None = None,
    sparse: bool = False,
    name: str | None = None,
) -> Any:
    """A symbolic tensor; ``shape`` includes the batch."""
    shape = tuple(shape) if shape is not None else (None,) * (ndim or 0)
    return keras.Input(batch_shape=shape, dtype=dtype, sparse=sparse, name=name)


def _logsumexp(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return tf.reduce_logsumexp(x, axis, keepdims)


def _print_tensor(x: Any, message: str = "") -> Any:
    tf.print(message, x)
    return x


def _random_binomial(shape: Any, p: float = 0.0, dtype: Any = None, seed: Any = None) -> Any:
    uniform = keras.random.uniform(shape, seed=seed)
    return tf.cast(uniform <= p, dtype or keras.config.floatx())
