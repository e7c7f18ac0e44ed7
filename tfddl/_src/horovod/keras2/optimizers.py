"""Optimizers: `variables()`, `lr`, and `optimizers.legacy`."""

import functools
import importlib
import inspect
from typing import Any

import keras

from tfddl._src.horovod.keras2.deprecations import PATCH_MARK, DeprecationWarnings

# Different module objects, though they export the same.
_LEGACY = ("keras.optimizers.legacy", "tensorflow.keras.optimizers.legacy")
_LEGACY_NAMES = ("Adagrad", "Adam", "Ftrl", "Optimizer", "RMSprop", "SGD")


def install(deprecations: DeprecationWarnings) -> None:
    """Patches Keras. It is idempotent."""
    for kind in _kinds():
        _make_variables_callable(kind, deprecations)
        _accept_lr(kind, deprecations)
    if not hasattr(keras.optimizers.Optimizer, "lr"):
        keras.optimizers.Optimizer.lr = _lr(deprecations)
    _bring_back_legacy(deprecations)


def _kinds() -> list[Any]:
    """Keras' own classes of optimizers."""
    kinds = [kind for kind in vars(keras.optimizers).values() if inspect.isclass(kind)]
    return [kind for kind in kinds if issubclass(kind, keras.optimizers.Optimizer)]


class _Variables(list[Any]):
    """A list of variables that can be called: in Keras 2, `variables` was a method."""

    def __init__(self, variables: list[Any], deprecations: DeprecationWarnings) -> None:
        super().__init__(variables)
        self._deprecations = deprecations

    def __call__(self) -> "_Variables":
        self._deprecations.warn_once(
            "optimizer.variables()", "optimizer.variables, without the brackets."
        )
        return self


def _make_variables_callable(kind: Any, deprecations: DeprecationWarnings) -> None:
    # Where it is defined: what is set on `kind` would miss its siblings.
    home = next(base for base in kind.__mro__ if "variables" in vars(base))
    original = vars(home)["variables"]
    if not isinstance(original, property) or hasattr(original.fget, PATCH_MARK):
        return

    @functools.wraps(original.fget)  # type: ignore[arg-type]
    def variables(self: Any) -> _Variables:
        return _Variables(original.fget(self), deprecations)  # type: ignore[misc]

    setattr(variables, PATCH_MARK, True)
    home.variables = property(variables)


def _accept_lr(kind: Any, deprecations: DeprecationWarnings) -> None:
    original = kind.__init__
    if (
        hasattr(original, PATCH_MARK)
        or "learning_rate" not in inspect.signature(original).parameters
    ):
        return

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if "lr" in kwargs:
            deprecations.warn_once("optimizer(lr=…)", "optimizer(learning_rate=…).")
            kwargs["learning_rate"] = kwargs.pop("lr")
        original(self, *args, **kwargs)

    setattr(__init__, PATCH_MARK, True)
    kind.__init__ = __init__


def _lr(deprecations: DeprecationWarnings) -> property:
    modern = "optimizer.learning_rate."

    def get(self: Any) -> Any:
        deprecations.warn_once("optimizer.lr", modern)
        return self.learning_rate

    def put(self: Any, value: Any) -> None:
        deprecations.warn_once("optimizer.lr", modern)
        self.learning_rate = value

    return property(get, put, doc="The name of `learning_rate` in Keras 2.")


def _bring_back_legacy(deprecations: DeprecationWarnings) -> None:
    """Makes ``optimizers.legacy.Adam`` Keras 3's Adam."""

    def legacy(name: str) -> Any:
        if name not in _LEGACY_NAMES:
            raise AttributeError(f"module {_LEGACY[0]!r} has no attribute {name!r}")
        deprecations.warn_once(f"keras.optimizers.legacy.{name}", f"keras.optimizers.{name}.")
        return getattr(keras.optimizers, name)

    for path in _LEGACY:
        module = importlib.import_module(path)
        for name in _LEGACY_NAMES:
            vars(module).pop(name, None)  # Keras 3's classes of these names only raise.
        module.__getattr__ = legacy  # type: ignore[method-assign]
