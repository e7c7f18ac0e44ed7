"""`compile`, and the methods for generators that Keras 3 has dropped."""

import functools
import inspect
from typing import Any

import keras

from tfddl.horovod.keras2.telling import MARK, Telling

_DROPPED = "experimental_run_tf_function"
_GENERATORS = {
    "fit_generator": "fit",
    "evaluate_generator": "evaluate",
    "predict_generator": "predict",
}


def install(telling: Telling) -> None:
    """Puts the compatibility in place."""
    _wrap_compile(telling)
    for old, modern in _GENERATORS.items():
        if not hasattr(keras.Model, old):
            setattr(keras.Model, old, _forwarding(telling, old, modern))


def _wrap_compile(telling: Telling) -> None:
    # Where it is defined: a `compile` of `keras.Model` itself would pass for one of the user's own,
    # which Keras doesn't call when it loads a model.
    home: Any = next(base for base in keras.Model.__mro__ if "compile" in vars(base))
    original = home.compile
    if hasattr(original, MARK):
        return

    @functools.wraps(original)
    def compile(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _DROPPED in kwargs:
            kwargs.pop(_DROPPED)
            telling.once(f"compile({_DROPPED}=…)", "compile(…) without it.")
        return original(self, *args, **kwargs)

    # `tfddl.keras_hooks` binds arguments by the signature.
    signature = inspect.signature(original)
    more = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)
    parameters = [*signature.parameters.values(), more]
    compile.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    setattr(compile, MARK, True)
    home.compile = compile


def _forwarding(telling: Telling, old: str, modern: str) -> Any:
    def method(self: Any, generator: Any, *args: Any, **kwargs: Any) -> Any:
        telling.once(f"model.{old}(generator, …)", f"model.{modern}(generator, …).")
        return getattr(self, modern)(generator, *args, **kwargs)

    method.__name__ = old
    method.__doc__ = f"Keras 2's `{old}`: the same as `{modern}`."
    return method
