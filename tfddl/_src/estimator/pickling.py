"""Keras objects as bytes: a model with its layers' own classes, optimizers, losses, metrics.

cloudpickle carries the classes and functions that a script or notebook defines, so that they need
neither be registered with Keras nor installed on the executors.
"""

from __future__ import annotations

import copyreg
import io
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import keras

from tfddl._src.remote_call.pickling import find_unpicklable
from tfddl.errors import LaunchError


def dumps(parts: Mapping[str, Any], classes: Mapping[str, Any] | None = None) -> bytes:
    """The bytes of named objects.

    Args:
        parts: What is pickled.
        classes: Classes and functions by the names that Keras has for them, besides those that are
            found without.

    Raises:
        LaunchError: One of them can't be pickled; the message has its name and type.
    """
    try:
        return _dump(dict(parts), classes or {})
    except Exception:  # An object's own methods may raise anything.
        for name, part in parts.items():
            try:
                _dump(part, classes or {})
            except Exception as error:
                where, found = find_unpicklable(name, part)
                kind = f"{type(found).__module__}.{type(found).__qualname__}"
                raise LaunchError(
                    f"{where} can't be pickled for the workers: it is of type "
                    f"{kind.removeprefix('builtins.')}: {error}. HINT: leave open files, locks, "
                    "connections and Spark's own objects out of models and callbacks; make them in "
                    "on_train_begin"
                ) from error
        raise


def loads(data: bytes) -> dict[str, Any]:
    """The objects of `dumps`."""
    found: dict[str, Any] = cloudpickle.loads(data)
    return found


class _Pickler(cloudpickle.Pickler):
    def __init__(self, file: io.BytesIO, classes: Mapping[str, Any]) -> None:
        super().__init__(file)
        self._known = dict(keras.saving.get_custom_objects()) | dict(classes)

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, keras.Model):
            return _load_model, (_save_model(obj), _own_classes(obj) | self._known)
        if isinstance(obj, keras.optimizers.Optimizer | keras.Metric):
            # Without their variables, which have no values before training.
            return _from_config, (type(obj), obj.get_config(), self._known)
        if isinstance(obj, keras.Loss):
            # Keras' own __reduce__ is for what can be saved as a .keras file.
            return copyreg.__newobj__, (type(obj),), dict(vars(obj))  # type: ignore[attr-defined]
        return super().reducer_override(obj)


def _dump(value: Any, classes: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    _Pickler(file, classes).dump(value)
    return file.getvalue()


def _save_model(model: keras.Model) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "model.keras")
        model.save(path)
        return path.read_bytes()


def _load_model(data: bytes, classes: Mapping[str, Any]) -> keras.Model:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "model.keras")
        path.write_bytes(data)
        # Pickles run code anyway, so that Lambda layers add no danger.
        return keras.saving.load_model(
            path, custom_objects=dict(classes), compile=False, safe_mode=False
        )


def _from_config(kind: Any, config: dict[str, Any], classes: Mapping[str, Any]) -> Any:
    with keras.saving.custom_object_scope(dict(classes)):
        return kind.from_config(config)


def _own_classes(model: keras.Model) -> dict[str, Any]:
    """The classes of layers, in which Keras doesn't find by itself those of a script."""
    kinds = {type(layer).__name__: type(layer) for layer in _layers(model)}
    return {n: kind for n, kind in kinds.items() if not kind.__module__.startswith("keras.")}


def _layers(layer: Any) -> Iterator[Any]:
    yield layer
    attributes = (v for v in vars(layer).values() if isinstance(v, keras.layers.Layer))
    for inner in (*getattr(layer, "layers", ()), *attributes):
        yield from _layers(inner)
