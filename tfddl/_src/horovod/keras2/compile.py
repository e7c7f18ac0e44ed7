"""`compile`, the methods for generators that Keras 3 has dropped, and what they were told."""

import functools
import inspect
from typing import Any

import keras

from tfddl._src.horovod.keras2.deprecations import PATCH_MARK, DeprecationWarnings

_DROPPED = "experimental_run_tf_function"
_GENERATORS = {
    "fit_generator": "fit",
    "evaluate_generator": "evaluate",
    "predict_generator": "predict",
}
_READERS = ("workers", "use_multiprocessing", "max_queue_size")
"""How `fit` was told to read a generator or a `Sequence`; now the data itself is told."""


def install(telling: DeprecationWarnings) -> None:
    """Puts the compatibility in place."""
    _wrap_compile(telling)
    for name in _GENERATORS.values():
        _wrap_reader(telling, name)
    for old, modern in _GENERATORS.items():
        if not hasattr(keras.Model, old):
            setattr(keras.Model, old, _forwarding(telling, old, modern))


def _wrap_compile(telling: DeprecationWarnings) -> None:
    # Where it is defined: a `compile` of `keras.Model` itself would pass for one of the user's own,
    # which Keras doesn't call when it loads a model.
    home: Any = next(base for base in keras.Model.__mro__ if "compile" in vars(base))
    original = home.compile
    if hasattr(original, PATCH_MARK):
        return

    @functools.wraps(original)
    def compile(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _DROPPED in kwargs:
            kwargs.pop(_DROPPED)
            telling.once(f"compile({_DROPPED}=…)", "compile(…) without it.")
        return original(self, *args, **kwargs)

    _put_in_place(home, original, compile)


def _wrap_reader(telling: DeprecationWarnings, name: str) -> None:
    home: Any = next(base for base in keras.Model.__mro__ if name in vars(base))
    original = getattr(home, name)
    if hasattr(original, PATCH_MARK):
        return

    @functools.wraps(original)
    def method(self: Any, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        told = {reader: kwargs.pop(reader) for reader in _READERS if reader in kwargs}
        if told:
            modern = "PyDataset(workers=…), as the data's own arguments; generators need none."
            telling.once(f"model.{name}(…, {next(iter(told))}=…)", modern)
        if isinstance(x, keras.utils.PyDataset):
            for reader, value in told.items():
                setattr(x, reader, value)
        return original(self, x, *args, **kwargs)

    _put_in_place(home, original, method)


def _put_in_place(home: Any, original: Any, method: Any) -> None:
    """Replaces a method by one that takes any keywords besides."""
    # `tfddl._src.keras_hooks` binds arguments by the signature.
    signature = inspect.signature(original)
    parameters = list(signature.parameters.values())
    if parameters[-1].kind is not inspect.Parameter.VAR_KEYWORD:
        parameters.append(inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD))
    method.__signature__ = signature.replace(parameters=parameters)
    setattr(method, PATCH_MARK, True)
    setattr(home, original.__name__, method)


def _forwarding(telling: DeprecationWarnings, old: str, modern: str) -> Any:
    def method(self: Any, generator: Any, *args: Any, **kwargs: Any) -> Any:
        telling.once(f"model.{old}(generator, …)", f"model.{modern}(generator, …).")
        return getattr(self, modern)(generator, *args, **kwargs)

    method.__name__ = old
    method.__doc__ = f"Keras 2's `{old}`: the same as `{modern}`."
    return method
