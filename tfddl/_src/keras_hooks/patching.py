"""Functions of ours around functions of Keras, and access to what Keras keeps private.

Nothing in Keras promises that a private name stays. So each use is checked: a hook looks at the
name and the parameters that it relies on when it is installed, an attribute is looked up by
`private`. A Keras that has changed raises an `UnsupportedError` that says in what, instead of
training wrongly.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import keras
import tensorflow as tf

from tfddl.errors import UnsupportedError

_ORIGINAL = "_tfddl_original"
"""The attribute of a wrapper that holds what it wraps; also marks what is wrapped already."""

Around = Callable[..., Any]
"""Called as ``around(original, self, *args, **kwargs)``."""


def wrap_method(owner: type, name: str, parameters: tuple[str, ...], around: Around) -> None:
    """Makes calls of ``owner.name`` go through ``around``, for the rest of the process.

    A second call changes nothing.

    Args:
        owner: A class; the method is replaced where it is defined, here or in a base.
        name: The method.
        parameters: The names of its first parameters after self: those that we rely on.
        around: Gets the original method, self, and the arguments of the call.

    Raises:
        UnsupportedError: There is no such method, or its parameters have other names.
    """
    # Where it is defined, and not on the class given: Trainer.compile_from_config
    # (trainers/trainer.py) takes a `compile` that isn't Trainer's for a user's own, and leaves a
    # loaded model uncompiled.
    home = next((base for base in owner.__mro__ if name in vars(base)), None)
    if home is None:
        raise UnsupportedError(changed(f"{owner.__name__}.{name} is gone"))
    _wrap(home, name, ("self", *parameters), around, called=f"{owner.__name__}.{name}")


def wrap_function(
    module: ModuleType, name: str, parameters: tuple[str, ...], around: Around
) -> None:
    """Makes calls of a module's function go through ``around``, for the rest of the process.

    Args:
        module: Where the function lives and is called from.
        name: The function.
        parameters: The names of its first parameters: those that we rely on.
        around: Called as ``around(original, *args, **kwargs)``.

    Raises:
        UnsupportedError: There is no such function, or its parameters have other names.
    """
    _wrap(module, name, parameters, around, called=f"{module.__name__}.{name}")


def private_module(name: str) -> ModuleType:
    """A module under ``keras.src``.

    Raises:
        UnsupportedError: There is none.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnsupportedError(changed(f"{name} is gone")) from error


def private(owner: Any, name: str) -> Any:
    """A private attribute of an object or a class of Keras'.

    Raises:
        UnsupportedError: There is none.
    """
    try:
        return getattr(owner, name)
    except AttributeError:
        kind = owner if inspect.isclass(owner) else type(owner)
        raise UnsupportedError(changed(f"{kind.__name__}.{name} is gone")) from None


def changed(what: str, *, library: ModuleType = keras) -> str:
    """The message for a Keras, or a TensorFlow, that isn't one that tfddl knows.

    Args:
        what: What tfddl relies on and didn't find.
        library: `keras` or `tf`.
    """
    name = {keras: "Keras", tf: "TensorFlow"}[library]
    return (
        f"{name} {library.__version__} has changed where tfddl relies on it: {what}. "
        f"HINT: use a {name} that docs/where-it-runs.md names, or a newer tfddl."
    )


def _wrap(
    home: Any, name: str, parameters: tuple[str, ...], around: Around, *, called: str
) -> None:
    original = getattr(home, name, None)
    if not inspect.isfunction(original):
        raise UnsupportedError(changed(f"{called} is gone"))
    if hasattr(original, _ORIGINAL):
        return
    found = tuple(inspect.signature(original).parameters)[: len(parameters)]
    if found != parameters:
        raise UnsupportedError(
            changed(f"{called} takes ({', '.join(found)}), not ({', '.join(parameters)})")
        )

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(wrapper, _ORIGINAL, original)
    setattr(home, name, wrapper)
