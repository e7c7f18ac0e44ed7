"""Models and layers: `predict_classes`, `predict_proba`, `apply`, shapes, a Sequential's ends."""

import functools
from collections.abc import Callable
from typing import Any

import keras

from tfddl._src.horovod.keras2.deprecations import PATCH_MARK, DeprecationWarnings
from tfddl.errors import UnsupportedError


def install(deprecations: DeprecationWarnings) -> None:
    """Patches Keras. It is idempotent."""
    added: dict[str, Callable[..., Any]] = {
        "predict_classes": _predict_classes(deprecations),
        "predict_proba": _predict_proba(deprecations),
    }
    for name, method in added.items():
        if not hasattr(keras.Sequential, name):
            setattr(keras.Sequential, name, method)
    for side in ("input", "output"):
        if side not in vars(keras.Sequential):
            setattr(keras.Sequential, side, _tensor(side))
    if not hasattr(keras.layers.Layer, "output_shape"):
        # Not `input_shape`: Sequential takes a layer that has one for a model (sequential.py).
        keras.layers.Layer.output_shape = _output_shape(deprecations)
    if not hasattr(keras.layers.Layer, "apply"):
        keras.layers.Layer.apply = _apply(deprecations)
    if not hasattr(keras.Model.__init__, PATCH_MARK):
        model: Any = keras.Model
        model.__init__ = _refusing_keras_1(keras.Model.__init__)


def _refusing_keras_1(original: Callable[..., None]) -> Callable[..., None]:
    # What Keras makes of (inputs, outputs) is another class (`Model.__new__`), which it makes of
    # no other names.
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if {"input", "output"} & set(kwargs):
            raise UnsupportedError(
                "Model(input=…, output=…) is of Keras 1. HINT: Model(inputs=…, outputs=…)."
            )
        original(self, *args, **kwargs)

    setattr(__init__, PATCH_MARK, True)
    return __init__


def _predict_classes(deprecations: DeprecationWarnings) -> Callable[..., Any]:
    def predict_classes(self: Any, x: Any, batch_size: int = 32, verbose: int = 0) -> Any:
        """The most probable class of each example; 0 or 1 where the model has one output."""
        deprecations.warn_once("model.predict_classes(x)", "model.predict(x).argmax(axis=-1).")
        found = self.predict(x, batch_size=batch_size, verbose=verbose)
        return found.argmax(axis=-1) if found.shape[-1] > 1 else (found > 0.5).astype("int32")

    return predict_classes


def _predict_proba(deprecations: DeprecationWarnings) -> Callable[..., Any]:
    def predict_proba(self: Any, x: Any, batch_size: int = 32, verbose: int = 0) -> Any:
        """The same as `predict`."""
        deprecations.warn_once("model.predict_proba(x)", "model.predict(x).")
        return self.predict(x, batch_size=batch_size, verbose=verbose)

    return predict_proba


def _output_shape(deprecations: DeprecationWarnings) -> property:
    def output_shape(self: Any) -> Any:
        deprecations.warn_once("layer.output_shape", "layer.output.shape.")
        return keras.tree.map_structure(lambda tensor: tuple(tensor.shape), self.output)

    return property(output_shape, doc="The shape of the layer's output, the batch included.")


def _apply(deprecations: DeprecationWarnings) -> Callable[..., Any]:
    def apply(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The same as to call the layer."""
        deprecations.warn_once("layer.apply(x)", "layer(x).")
        return self(inputs, *args, **kwargs)

    return apply


def _tensor(side: str) -> property:
    """`model.input` of a Sequential, for which Keras 3 has `inputs` only."""
    inherited = getattr(keras.Sequential, side)

    def tensor(self: Any) -> Any:
        tensors = getattr(self, f"{side}s", None)
        return tensors[0] if tensors else inherited.fget(self)

    return property(tensor, doc=f"The model's symbolic {side}.")
