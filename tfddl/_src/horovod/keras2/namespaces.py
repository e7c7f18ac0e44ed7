"""Modules and names of Keras 2 that Keras 3 has elsewhere, or only in `tf.keras`."""

import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import keras
import tensorflow as tf

from tfddl._src.horovod.keras2.deprecations import (
    PATCH_MARK,
    DeprecationWarnings,
    is_called_by_script,
)
from tfddl._src.horovod.keras2.prefixes import PREFIXES
from tfddl.errors import UnsupportedError

_LAYERS = """
    advanced_activations convolutional convolutional_recurrent core cudnn_recurrent embeddings
    experimental experimental.preprocessing local merge noise normalization pooling recurrent
    wrappers
""".split()
_UTILS = (
    "conv_utils data_utils generic_utils io_utils layer_utils np_utils training_utils vis_utils"
)
_ENGINE = "base_layer input_layer network sequential topology training"

_MODULES: dict[str, tuple[str, ...]] = {
    "backend.tensorflow_backend": ("backend",),
    "callbacks.callbacks": ("callbacks",),
    "engine": ("layers", "models", "utils"),
    **{f"engine.{name}": ("layers", "models", "utils") for name in _ENGINE.split()},
    **{f"layers.{name}": ("layers",) for name in _LAYERS},
    "objectives": ("losses",),
    "optimizers.adam_v2": ("optimizers",),
    "optimizers.gradient_descent_v2": ("optimizers",),
    "optimizers.optimizer_v2": ("optimizers",),
    "optimizers.optimizer_v2.optimizer_v2": ("optimizers",),
    "optimizers.rmsprop_v2": ("optimizers",),
    "preprocessing.text": ("preprocessing.text",),
    **{f"utils.{name}": ("utils", "saving") for name in _UTILS.split()},
}
"""Modules of Keras 2, and where their names are now."""

_INCOMPLETE = "layers losses metrics preprocessing.image preprocessing.sequence".split()
"""Modules of which `keras` and `tf.keras` have different names."""

_MODERN = {
    "ImageDataGenerator": "keras.utils.image_dataset_from_directory, and layers that augment",
    "TimeseriesGenerator": "keras.utils.timeseries_dataset_from_array",
}
_LOSSES = {
    "absolute_difference": "MeanAbsoluteError()",
    "hinge_loss": "Hinge()",
    "huber_loss": "Huber()",
    "log_loss": "BinaryCrossentropy()",
    "sigmoid_cross_entropy": "BinaryCrossentropy(from_logits=True)",
    "softmax_cross_entropy": "CategoricalCrossentropy(from_logits=True)",
    "sparse_softmax_cross_entropy": "SparseCategoricalCrossentropy(from_logits=True)",
}
"""Losses of TensorFlow 1 that `tf.losses` had, and Keras' own. They work eagerly, too.

They return the mean. Keras' losses return a value for each example, which `fit` weights.
"""

_SCIKIT_LEARN = {"KerasClassifier": "SKLearnClassifier", "KerasRegressor": "SKLearnRegressor"}
_CUDNN = {"CuDNNLSTM": "LSTM", "CuDNNGRU": "GRU"}


def install(deprecations: DeprecationWarnings) -> None:
    """Adds the modules, and the names. It is idempotent."""
    for prefix in PREFIXES:
        for name, homes in _MODULES.items():
            _add_module(deprecations, prefix, name, homes)
        for name in _INCOMPLETE:
            module = importlib.import_module(f"{prefix}.{name}")
            others = [importlib.import_module(f"{p}.{name}") for p in PREFIXES[:2] if p != prefix]
            library = "keras" if prefix == "keras" else "tf.keras"
            _fall_back(deprecations, module, f"{library}.{name}", _lookup(others))
        for name in ("optimizers", "utils"):
            module = importlib.import_module(f"{prefix}.{name}")
            lookup = _lower_case if name == "optimizers" else _multi_gpu_model
            _fall_back(deprecations, module, f"keras.{name}", lookup)
        _accept_grayscale(deprecations, prefix)
        _add_scikit_learn(prefix)
    # A module of its own (KerasLazyLoader in tensorflow/python/util/lazy_loader.py): when it is
    # first asked for a name it takes over those of tf.keras.losses, the fallback too.
    assert tf.losses.mse
    _fall_back(deprecations, tf.losses, "tf.losses", _losses_of_tensorflow_1)
    iterator: Any = tf.keras.preprocessing.image.Iterator
    if not hasattr(iterator, "next"):
        iterator.next = lambda self: next(self)
    tf.compat.v1.keras = tf.keras
    for name, module in list(sys.modules.items()):
        if name == "tensorflow.keras" or name.startswith("tensorflow.keras."):
            sys.modules.setdefault(name.replace("tensorflow", "tensorflow.compat.v1", 1), module)
            _replace_private(
                deprecations, name.replace("tensorflow", "tensorflow.python", 1), module
            )


def _add_scikit_learn(prefix: str) -> None:
    name = f"{prefix}.wrappers.scikit_learn"
    module = ModuleType(name, "Its classes are errors that name today's.")
    for old, new in _SCIKIT_LEARN.items():
        setattr(module, old, _scikit_learn_error(old, new))
    sys.modules.setdefault(name, module)
    importlib.import_module(f"{prefix}.wrappers").scikit_learn = module  # type: ignore[attr-defined]


def _scikit_learn_error(old: str, new: str) -> Callable[..., None]:
    def wrapper(*args: Any, **kwargs: Any) -> None:
        raise UnsupportedError(
            f"{old}(build_fn=…) is of Keras 2. HINT: keras.wrappers.{new}(model, fit_kwargs=…), "
            f"which takes a compiled model or a function of (X, y); or {old} of the package "
            "scikeras."
        )

    return wrapper


def _accept_grayscale(deprecations: DeprecationWarnings, prefix: str) -> None:
    for name in ("preprocessing.image", "utils"):
        module: Any = importlib.import_module(f"{prefix}.{name}")
        if hasattr(module.load_img, PATCH_MARK):
            continue
        module.load_img = _load_img(deprecations, module.load_img)


def _load_img(
    deprecations: DeprecationWarnings, original: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_img(path: Any, *args: Any, **kwargs: Any) -> Any:
        if "grayscale" in kwargs:
            deprecations.warn_once("load_img(grayscale=…)", 'load_img(color_mode="grayscale").')
            if kwargs.pop("grayscale"):
                kwargs["color_mode"] = "grayscale"
        return original(path, *args, **kwargs)

    setattr(load_img, PATCH_MARK, True)
    return load_img


def _add_module(
    deprecations: DeprecationWarnings, prefix: str, name: str, homes: Sequence[str]
) -> None:
    full = f"{prefix}.{name}"
    parent_name, _, last = full.rpartition(".")
    parent = importlib.import_module(parent_name)
    if hasattr(parent, last):
        return
    # Of the same prefix where it has them: what `keras` lacks, `tf.keras` has.
    found = [importlib.import_module(f"{prefix}.{home}") for home in homes if home != name]
    found += [importlib.import_module(f"tensorflow.keras.{home}") for home in homes]
    library = "tf.keras" if name in homes else "keras"
    modern = " or ".join(f"{library}.{home}" for home in homes)
    module = _forwarding(deprecations, full, f"keras.{name}", found, modern)
    sys.modules[full] = module
    setattr(parent, last, module)


def _replace_private(deprecations: DeprecationWarnings, name: str, home: ModuleType) -> None:
    """Puts `tf.keras` in the place of TensorFlow's own remains of Keras 2.

    Scripts of 2018 and 2019 import ``tensorflow.python.keras``. It is still there, for the parts of
    TensorFlow that are built on it, and imported by them with TensorFlow itself; its models can't
    be trained with Keras 3's optimizers.
    """
    private = "tensorflow.python.keras"
    if getattr(sys.modules.get(name), PATCH_MARK, False):
        return
    module = _forwarding(deprecations, name, private, [home], "tf.keras")
    setattr(module, PATCH_MARK, True)
    sys.modules[name] = module
    if name == private:
        sys.modules["tensorflow.python"].keras = module  # type: ignore[attr-defined]


def _forwarding(
    deprecations: DeprecationWarnings,
    full: str,
    old: str,
    homes: Sequence[ModuleType],
    modern: str,
) -> ModuleType:
    """A module whose names are those of others, with a warning."""
    module = ModuleType(full, f"Its names are those of {modern}.")
    module.__path__ = []

    def __getattr__(name: str) -> Any:
        home = next((home for home in homes if hasattr(home, name)), None)
        if name.startswith("__") or home is None:
            raise AttributeError(f"module {full!r} has no attribute {name!r}. HINT: see {modern}.")
        if is_called_by_script():
            deprecations.warn_once(old, f"{modern}.")
        return getattr(home, name)

    module.__getattr__ = __getattr__  # type: ignore[method-assign]
    return module


_Lookup = Callable[[str], tuple[Any, str] | None]
"""Finds a name: what it is, and the modern line."""


def _fall_back(
    deprecations: DeprecationWarnings, module: ModuleType, path: str, lookup: _Lookup
) -> None:
    def __getattr__(name: str) -> Any:
        found = None if name.startswith("_") or not is_called_by_script() else lookup(name)
        if found is None:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        value, modern = found
        deprecations.warn_once(f"{path}.{name}", f"{modern}.")
        return value

    module.__getattr__ = __getattr__  # type: ignore[method-assign]


def _lookup(others: Sequence[ModuleType]) -> _Lookup:
    """Finds what a module of `keras` lacks in that of `tf.keras`, and the other way round."""

    def lookup(name: str) -> tuple[Any, str] | None:
        for other in others:
            if name in _CUDNN and hasattr(other, _CUDNN[name]):
                return getattr(other, _CUDNN[name]), f"keras.layers.{_CUDNN[name]}"
            if name == "huber_loss" and other.__name__.endswith("losses"):
                return keras.losses.huber, "keras.losses.huber"
            if name in vars(other):
                value = vars(other)[name]
                return value, _MODERN.get(name) or _long_name(other, name, value)
        return None

    return lookup


def _losses_of_tensorflow_1(name: str) -> tuple[Any, str] | None:
    if name in _LOSSES:
        return getattr(tf.compat.v1.losses, name), f"keras.losses.{_LOSSES[name]}"
    return _lookup([keras.losses])(name)


def _long_name(module: ModuleType, name: str, value: Any) -> str:
    """Where something is: losses by their long names, which are the functions' own."""
    own = getattr(value, "__name__", name)
    if hasattr(keras.losses, own):
        return f"keras.losses.{own}"
    return f"{module.__name__.replace('tensorflow', 'tf', 1)}.{name}"


def _lower_case(name: str) -> tuple[Any, str] | None:
    """Keras 2 had its optimizers in lower case, too."""
    for known, kind in vars(keras.optimizers).items():
        if isinstance(kind, type) and known.lower() == name:
            return kind, f"keras.optimizers.{known}"
    return None


def _multi_gpu_model(name: str) -> tuple[Any, str] | None:
    return (multi_gpu_model, "tfddlrun -np N") if name == "multi_gpu_model" else None


def multi_gpu_model(model: Any, gpus: Any = None, *args: Any, **kwargs: Any) -> None:
    """Not supported: each worker has one GPU.

    Raises:
        UnsupportedError: Always.
    """
    raise UnsupportedError(
        f"multi_gpu_model(model, gpus={gpus}) is of Keras 2: one process with several GPUs. HINT: "
        "leave it out, wrap the optimizer in hvd.DistributedOptimizer, and start a worker for each "
        "GPU: tfddlrun --horovod -np N python script.py."
    )
