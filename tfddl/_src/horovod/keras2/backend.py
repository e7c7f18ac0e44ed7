"""`K.get_value`, `K.set_value` and `K.set_session`."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfddl._src.horovod.keras2.deprecations import PATCH_MARK, DeprecationWarnings
from tfddl.errors import UnsupportedError

_MODULES = ("keras.backend", "tensorflow.keras.backend")


def install(deprecations: DeprecationWarnings) -> None:
    """Patches `keras.backend` and `tf.keras.backend`, which are different modules."""
    for name in _MODULES:
        module: Any = importlib.import_module(name)
        original_get = getattr(module, "get_value", None)
        original_set = getattr(module, "set_value", None)
        if not hasattr(original_get, PATCH_MARK):
            module.get_value = _get_value(deprecations, original_get)
            module.set_value = _set_value(deprecations, original_set)
        if not hasattr(module, "set_session"):
            module.set_session = _set_session


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


def _set_session(session: Any) -> None:
    """Not supported: TensorFlow 2 has no sessions.

    Raises:
        UnsupportedError: Always.
    """
    raise UnsupportedError(
        "K.set_session is of TensorFlow 1. HINT: leave it out; hvd.init() lets GPU memory grow and "
        "gives each local rank a GPU of its own."
    )
