"""`keras.backend`: the functions that Keras 3 has dropped, or has in `tf.keras.backend` only."""

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import keras
import numpy as np

from tfddl._src.horovod.keras2 import dropped_backend, sessions
from tfddl._src.horovod.keras2.deprecations import PATCH_MARK, DeprecationWarnings
from tfddl._src.horovod.keras2.prefixes import PREFIXES

_MODERN = {
    "batch_dot": "keras.ops.einsum",
    "batch_flatten": "keras.ops.reshape(x, [len(x), -1])",
    "batch_get_value": "[variable.numpy() for variable in variables]",
    "batch_set_value": "variable.assign(value), for each",
    "bias_add": "x + bias",
    "cast_to_floatx": "keras.ops.cast(x, keras.config.floatx())",
    "constant": "keras.ops.convert_to_tensor",
    "count_params": "math.prod(x.shape)",
    "dropout": "keras.random.dropout",
    "eval": "keras.ops.convert_to_numpy",
    "flatten": "keras.ops.reshape(x, [-1])",
    "gradients": "tf.GradientTape",
    "int_shape": "tuple(x.shape)",
    "l2_normalize": "keras.ops.normalize",
    "permute_dimensions": "keras.ops.transpose",
    "pow": "keras.ops.power",
    "random_bernoulli": "keras.random.binomial",
    "random_normal": "keras.random.normal",
    "random_uniform": "keras.random.uniform",
    "resize_images": "keras.ops.image.resize",
    "rnn": "keras.layers.RNN",
    "switch": "keras.ops.cond, or keras.ops.where",
    "truncated_normal": "keras.random.truncated_normal",
    "update": "variable.assign",
    "update_add": "variable.assign_add",
    "update_sub": "variable.assign_sub",
    "variable": "keras.Variable",
}
"""What replaces a function of which `keras.ops` has none of the same name."""


def install(deprecations: DeprecationWarnings) -> None:
    """Patches `keras.backend` and `tf.keras.backend`, which are different modules."""
    dropped = {**dropped_backend.functions(deprecations), **sessions.functions(deprecations)}
    modules: list[Any] = [importlib.import_module(f"{prefix}.backend") for prefix in PREFIXES]
    for module in modules:
        original_get = getattr(module, "get_value", None)
        original_set = getattr(module, "set_value", None)
        if not hasattr(original_get, PATCH_MARK):
            module.get_value = _get_value(deprecations, original_get)
            module.set_value = _set_value(deprecations, original_set)
        for old, function in dropped.items():
            if old not in vars(module):
                setattr(module, old, function)
    _fall_back_on_tf_keras(deprecations, *modules[:2])


def _fall_back_on_tf_keras(
    deprecations: DeprecationWarnings, module: ModuleType, complete: ModuleType
) -> None:
    """Lets `keras.backend` find what only `tf.keras.backend` has."""

    def __getattr__(name: str) -> Any:
        if name.startswith("_") or name not in vars(complete):
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        same = hasattr(keras.ops, name)
        modern = _MODERN.get(name, f"keras.ops.{name}" if same else f"tf.keras.backend.{name}")
        deprecations.warn_once(f"K.{name}", f"{modern}.")
        return getattr(complete, name)

    module.__getattr__ = __getattr__  # type: ignore[method-assign]


def _get_value(
    deprecations: DeprecationWarnings, original: Callable[..., Any] | None
) -> Callable[..., Any]:
    def get_value(x: Any) -> Any:
        """The value of a variable, as a NumPy array or number."""
        deprecations.warn_once("K.get_value(variable)", "variable.numpy(), or float(variable).")
        if original is not None and not isinstance(x, keras.Variable):
            return original(x)
        return np.asarray(x)[()] if hasattr(x, "shape") else x

    setattr(get_value, PATCH_MARK, True)
    return get_value


def _set_value(
    deprecations: DeprecationWarnings, original: Callable[..., Any] | None
) -> Callable[..., Any]:
    def set_value(x: Any, value: Any) -> None:
        """Assigns a value to a variable."""
        deprecations.warn_once("K.set_value(variable, value)", "variable.assign(value).")
        if original is not None and not isinstance(x, keras.Variable):
            original(x, value)
        else:
            x.assign(value)

    return functools.wraps(original)(set_value) if original is not None else set_value
