"""Functions of ours around functions of Keras."""

import functools
import inspect
from collections.abc import Callable
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
        raise UnsupportedError(_changed(owner, name, "is gone"))
    if hasattr(original, _MARK):
        return
    found = tuple(inspect.signature(original).parameters)[1 : 1 + len(parameters)]
    if found != parameters:
        raise UnsupportedError(
            _changed(owner, name, f"takes ({', '.join(found)}), not ({', '.join(parameters)})")
        )

    @functools.wraps(original)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(original, self, *args, **kwargs)

    setattr(wrapper, _MARK, original)
    setattr(home, name, wrapper)


def _changed(owner: type, name: str, what: str) -> str:
    return (
        f"Keras {keras.__version__} has changed in a way that tfddl doesn't know: "
        f"{owner.__name__}.{name} {what}. Use a Keras that tfddl's README names, or a newer tfddl."
    )
