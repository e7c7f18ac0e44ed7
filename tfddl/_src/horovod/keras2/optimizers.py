"""Optimizers: `variables()`, `lr`, `decay`, `get_weights`, and `optimizers.legacy`."""

import functools
import importlib
import inspect
from types import ModuleType
from typing import Any

import keras
import numpy as np

from tfddl._src.horovod.keras2.deprecations import PATCH_MARK, DeprecationWarnings
from tfddl._src.horovod.keras2.prefixes import PREFIXES
from tfddl.errors import UnsupportedError

_LEGACY = "keras.optimizers.legacy"
_LEGACY_NAMES = ("Adagrad", "Adam", "Ftrl", "Optimizer", "RMSprop", "SGD")


def install(deprecations: DeprecationWarnings) -> None:
    """Patches Keras. It is idempotent."""
    for kind in _kinds():
        _make_variables_callable(kind, deprecations)
        _accept_old_arguments(kind, deprecations)
    if not hasattr(keras.optimizers.Optimizer, "lr"):
        keras.optimizers.Optimizer.lr = _lr(deprecations)
    _add_weights(deprecations)
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


def _accept_old_arguments(kind: Any, deprecations: DeprecationWarnings) -> None:
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
        if kwargs.get("epsilon", 0) is None:
            kwargs.pop("epsilon")  # Keras 2's default, for that of the backend.
        if kwargs.pop("schedule_decay", None) is not None:
            deprecations.warn_once("Nadam(schedule_decay=…)", "Nadam(…) without it.")
        decay = kwargs.pop("decay", None)
        original(self, *args, **kwargs)
        if decay:
            deprecations.warn_once(
                "optimizer(decay=…)",
                "learning_rate=keras.optimizers.schedules.InverseTimeDecay(…).",
            )
            self.keras2_decay = decay

    setattr(__init__, PATCH_MARK, True)
    kind.__init__ = __init__
    _decay_by_time(kind)


def _decay_by_time(kind: Any) -> None:
    """Lets steps and the configuration of a class honour ``decay``: lr / (1 + decay * steps).

    Not by a schedule in the place of the learning rate, which callbacks assign.
    """
    original_step, original_config = kind.update_step, kind.get_config

    @functools.wraps(original_step)
    def update_step(self: Any, gradient: Any, variable: Any, learning_rate: Any) -> None:
        decay = getattr(self, "keras2_decay", 0.0)
        if decay:
            rate = keras.ops.convert_to_tensor(learning_rate)
            learning_rate = rate / (1.0 + decay * keras.ops.cast(self.iterations, rate.dtype))
        original_step(self, gradient, variable, learning_rate)

    @functools.wraps(original_config)
    def get_config(self: Any) -> dict[str, Any]:
        config: dict[str, Any] = original_config(self)
        decay = getattr(self, "keras2_decay", 0.0)
        return {**config, "decay": decay} if decay else config

    if "update_step" in vars(kind):
        kind.update_step = update_step
        kind.get_config = get_config


def _add_weights(deprecations: DeprecationWarnings) -> None:
    def get_weights(self: Any) -> list[Any]:
        """The values of all variables, as NumPy arrays."""
        deprecations.warn_once("optimizer.get_weights()", "optimizer.variables, each .numpy().")
        return [np.asarray(variable) for variable in self.variables]

    def set_weights(self: Any, weights: list[Any]) -> None:
        """Assigns the values that `get_weights` returned; the optimizer must be built.

        Raises:
            ValueError: There are more or fewer than the optimizer has variables.
        """
        deprecations.warn_once("optimizer.set_weights(…)", "variable.assign(value), for each.")
        for variable, value in zip(self.variables, weights, strict=True):
            variable.assign(value)

    def weights(self: Any) -> list[Any]:
        deprecations.warn_once("optimizer.weights", "optimizer.variables.")
        return list(self.variables)

    added = {
        "get_weights": get_weights,
        "set_weights": set_weights,
        "weights": property(weights, doc="The name of `variables` in Keras 2."),
    }
    for name, value in added.items():
        if not hasattr(keras.optimizers.Optimizer, name):
            setattr(keras.optimizers.Optimizer, name, value)


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
        if name == "optimizer_v2":
            return _optimizer_v2()
        if name not in _LEGACY_NAMES:
            raise AttributeError(f"module {_LEGACY!r} has no attribute {name!r}")
        deprecations.warn_once(f"keras.optimizers.legacy.{name}", f"keras.optimizers.{name}.")
        return getattr(keras.optimizers, name)

    for prefix in PREFIXES:
        module = importlib.import_module(f"{prefix}.optimizers.legacy")
        for name in _LEGACY_NAMES:
            vars(module).pop(name, None)  # Keras 3's classes of these names only raise.
        module.__getattr__ = legacy  # type: ignore[method-assign]


def _optimizer_v2() -> ModuleType:
    """The module of the base class that optimizers of a script's own had in Keras 2."""
    module = ModuleType(f"{_LEGACY}.optimizer_v2")
    module.OptimizerV2 = OptimizerV2  # type: ignore[attr-defined]
    return module


class OptimizerV2:
    """Can be imported and subclassed; its instances would have Keras 2's slots."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Refuses.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(
            f"{type(self).__name__} is an OptimizerV2 of Keras 2, with _resource_apply_dense and "
            "slots. HINT: subclass keras.optimizers.Optimizer, with update_step(gradient, "
            "variable, learning_rate) and variables made in build."
        )
