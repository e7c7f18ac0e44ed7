"""`compile`, the methods for generators that Keras 3 has dropped, and their arguments."""

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
"""How `fit` reads a generator or a `Sequence`: in Keras 3 attributes of the `PyDataset`."""


def install(deprecations: DeprecationWarnings) -> None:
    """Patches Keras. It is idempotent."""
    _wrap_compile(deprecations)
    for name in _GENERATORS.values():
        _wrap_reader(deprecations, name)
    for old, modern in _GENERATORS.items():
        if not hasattr(keras.Model, old):
            setattr(keras.Model, old, _forwarding(deprecations, old, modern))


def _wrap_compile(deprecations: DeprecationWarnings) -> None:
    # Patched where it is defined (`Trainer`): a `compile` of `keras.Model` itself would look like a
    # user's override, which Keras doesn't call when it loads a model.
    home: Any = next(base for base in keras.Model.__mro__ if "compile" in vars(base))
    original = home.compile
    if hasattr(original, PATCH_MARK):
        return

    @functools.wraps(original)
    def compile(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _DROPPED in kwargs:
            kwargs.pop(_DROPPED)
            deprecations.warn_once(f"compile({_DROPPED}=…)", "compile(…) without it.")
        return original(self, *args, **kwargs)

    _replace_method(home, original, compile)


def _wrap_reader(deprecations: DeprecationWarnings, name: str) -> None:
    home: Any = next(base for base in keras.Model.__mro__ if name in vars(base))
    original = getattr(home, name)
    if hasattr(original, PATCH_MARK):
        return

    @functools.wraps(original)
    def method(self: Any, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        given = {reader: kwargs.pop(reader) for reader in _READERS if reader in kwargs}
        if given:
            modern = "PyDataset(workers=…), as the data's own arguments; generators need none."
            deprecations.warn_once(f"model.{name}(…, {next(iter(given))}=…)", modern)
        if isinstance(x, keras.utils.PyDataset):
            for reader, value in given.items():
                setattr(x, reader, value)
        return original(self, x, *args, **kwargs)

    _replace_method(home, original, method)


def _replace_method(home: Any, original: Any, method: Any) -> None:
    """Replaces a method by one that accepts further keywords."""
    # `keras_hooks` binds arguments by the signature, which must accept these keywords, too.
    signature = inspect.signature(original)
    parameters = list(signature.parameters.values())
    if parameters[-1].kind is not inspect.Parameter.VAR_KEYWORD:
        parameters.append(inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD))
    method.__signature__ = signature.replace(parameters=parameters)
    setattr(method, PATCH_MARK, True)
    setattr(home, original.__name__, method)


def _forwarding(deprecations: DeprecationWarnings, old: str, modern: str) -> Any:
    def method(self: Any, generator: Any, *args: Any, **kwargs: Any) -> Any:
        deprecations.warn_once(f"model.{old}(generator, …)", f"model.{modern}(generator, …).")
        return getattr(self, modern)(generator, *args, **kwargs)

    method.__name__ = old
    method.__doc__ = f"Keras 2's `{old}`: the same as `{modern}`."
    return method
