"""Files of models and weights under the names that Keras 2 gave them."""

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import keras

from tfddl._src.horovod.keras2.deprecations import PATCH_MARK, DeprecationWarnings
from tfddl._src.horovod.keras2.prefixes import PREFIXES

MODEL_ENDINGS = (".keras", ".h5", ".hdf5")
"""Those by which `model.save` of Keras 3 knows its format."""

WEIGHTS_ENDINGS = (".weights.h5", ".weights.json")
"""Those of `model.save_weights`."""


def install(deprecations: DeprecationWarnings) -> None:
    """Patches Keras. It is idempotent."""
    if hasattr(keras.Model.save, PATCH_MARK):
        return
    keras.Model.save = _save(deprecations, keras.Model.save)
    keras.Model.save_weights = _save_weights(deprecations, keras.Model.save_weights)
    keras.Model.load_weights = _load_weights(keras.Model.load_weights)
    load = _load_model(keras.models.load_model)
    for prefix in PREFIXES:
        for name in ("models", "saving"):
            module: Any = importlib.import_module(f"{prefix}.{name}")
            module.load_model, module.save_model = load, save_model


def _save(deprecations: DeprecationWarnings, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def save(self: Any, filepath: Any, overwrite: bool = True, *args: Any, **kwargs: Any) -> Any:
        if kwargs.pop("save_format", None) is not None:
            deprecations.warn_once("model.save(save_format=…)", "the ending of the file's name.")
        if args or "zipped" in kwargs or str(filepath).endswith(MODEL_ENDINGS):
            return original(self, filepath, overwrite, *args, **kwargs)
        kwargs.pop("include_optimizer", None)
        # Keras 3 loads such a directory; it has no SavedModels that it can train.
        deprecations.warn_once(
            'model.save("folder")',
            'model.save("model.keras"), or model.export("folder") for a SavedModel.',
        )
        return original(self, filepath, overwrite, zipped=False, **kwargs)

    setattr(save, PATCH_MARK, True)
    return save


def save_model(model: Any, filepath: Any, overwrite: bool = True, **kwargs: Any) -> Any:
    """The same as ``model.save``."""
    return model.save(filepath, overwrite, **kwargs)


def _save_weights(
    deprecations: DeprecationWarnings, original: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(original)
    def save_weights(self: Any, filepath: Any, overwrite: bool = True, **kwargs: Any) -> Any:
        if kwargs.pop("save_format", None) is not None:
            deprecations.warn_once("save_weights(save_format=…)", "the ending of the file's name.")
        if kwargs or str(filepath).endswith(WEIGHTS_ENDINGS):
            return original(self, filepath, overwrite, **kwargs)
        old = f'save_weights("…{Path(filepath).suffix}")'
        deprecations.warn_once(old, 'save_weights("….weights.h5").')
        if not overwrite and Path(filepath).exists():
            raise FileExistsError(f"{filepath} is there already, and overwrite is False")
        return _hdf5().save_weights(self, filepath)

    return save_weights


def _load_weights(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_weights(self: Any, filepath: Any, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs.get("skip_mismatch") or not _is_unknown_hdf5(filepath):
            return original(self, filepath, *args, **kwargs)
        return _hdf5().load_weights(self, filepath, by_name=bool(kwargs.get("by_name")))

    return load_weights


def _load_model(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_model(filepath: Any, *args: Any, **kwargs: Any) -> Any:
        if args or not _is_unknown_hdf5(filepath):
            return original(filepath, *args, **kwargs)
        return _hdf5().load_model(filepath, **kwargs)

    return load_model


def _is_unknown_hdf5(filepath: Any) -> bool:
    """Whether it is an HDF5 file that Keras 3 doesn't take for one, by its name."""
    path = Path(filepath)
    return not path.name.endswith(MODEL_ENDINGS) and path.is_file() and h5py.is_hdf5(path)


def _hdf5() -> ModuleType:
    """Imported when it is needed: see the package's docstring."""
    return importlib.import_module("tfddl._src.keras_hooks.hdf5")
