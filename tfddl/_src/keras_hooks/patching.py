"""Functions of ours around functions of Keras."""

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import keras

from tfddl.errors import UnsupportedError

_MARK = "_tfddl_original"

Around = Callable[..., Any]
"""Called as ``around(original, self, *args, **kwargs)``."""


def wrap_method(owner: type, name: str, parameters: tuple[str, ...], around: Around) -> None:
    """Makes calls of ``owner.name`` go through ``around``, once and for all.

    Args:
        owner: A class; the method is replaced where it is defined, here or in a base.
        name: The method.
        parameters: What its first parameters after self have to be called: what we rely on.
        around: Gets the original method, self, and the arguments of the call.

    Raises:
        UnsupportedError: There is no such method, or its parameters are others.
    """
    home = next((base for base in owner.__mro__ if name in vars(base)), None)
    original = None if home is None else vars(home)[name]
    if home is None or not inspect.isfunction(original):
        raise UnsupportedError(changed(f"{owner.__name__}.{name} is gone"))
    if hasattr(original, _MARK):
        return
    _check_parameters(f"{owner.__name__}.{name}", original, ("self", *parameters))

    @functools.wraps(original)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(original, self, *args, **kwargs)

    setattr(wrapper, _MARK, original)
    setattr(home, name, wrapper)


def wrap_function(
    module: ModuleType, name: str, parameters: tuple[str, ...], around: Around
) -> None:
    """Makes calls of a module's function go through ``around``, once and for all.

    Args:
        module: Where the function lives and is called from.
        name: The function.
        parameters: What its first parameters have to be called: what we rely on.
        around: Called as ``around(original, *args, **kwargs)``.

    Raises:
        UnsupportedError: There is no such function, or its parameters are others.
    """
    original = getattr(module, name, None)
    if not inspect.isfunction(original):
        raise UnsupportedError(changed(f"{module.__name__}.{name} is gone"))
    if hasattr(original, _MARK):
        return
    _check_parameters(f"{module.__name__}.{name}", original, parameters)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(wrapper, _MARK, original)
    setattr(module, name, wrapper)


def changed(what: str) -> str:
    """The message for a Keras that isn't the one we know."""
    return (
        f"Keras {keras.__version__} has changed in a way that tfddl doesn't know: {what}. Use a "
        "Keras that tfddl's README names, or a newer tfddl."
    )


def _check_parameters(name: str, function: Any, parameters: tuple[str, ...]) -> None:
    found = tuple(inspect.signature(function).parameters)[: len(parameters)]
    if found != parameters:
        raise UnsupportedError(
            changed(f"{name} takes ({', '.join(found)}), not ({', '.join(parameters)})")
        )
