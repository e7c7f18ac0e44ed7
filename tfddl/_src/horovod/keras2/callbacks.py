"""Keras' callbacks with Keras 2's arguments, and metrics by their old names in what they are told.

Keras before 2.3 logged the accuracy as `acc`, and the learning rate as `lr`.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras

from tfddl._src.horovod.keras2.deprecations import PATCH_MARK, DeprecationWarnings
from tfddl._src.horovod.keras2.saving import WEIGHTS_ENDINGS

_DROPPED = ("batch_size", "write_grads", "embeddings_layer_names", "embeddings_data")
"""Arguments of `TensorBoard` that Keras 3 has nothing for."""

_MONITORS = (
    keras.callbacks.EarlyStopping,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.ReduceLROnPlateau,
)


def install(deprecations: DeprecationWarnings) -> None:
    """Patches Keras. It is idempotent."""
    callbacks: Any = keras.callbacks
    if hasattr(callbacks.CallbackList.on_epoch_end, PATCH_MARK):
        return
    for kind in _MONITORS:
        _wrap(kind, "on_epoch_end", _find_mode(deprecations))
    _wrap(callbacks.ModelCheckpoint, "__init__", _accept_any_file(deprecations))
    _wrap(callbacks.ModelCheckpoint, "on_epoch_end", _save_every_period)
    _wrap(callbacks.ReduceLROnPlateau, "__init__", _accept_epsilon(deprecations))
    _wrap(callbacks.TensorBoard, "__init__", _drop_arguments(deprecations))
    _wrap(callbacks.History, "__init__", _keep_old_names(deprecations))
    _wrap(callbacks.CallbackList, "on_epoch_end", _tell_old_names(deprecations))


_Around = Callable[..., Any]
"""Called as ``around(original, self, *args, **kwargs)``."""


def _wrap(kind: Any, name: str, around: _Around) -> None:
    original = getattr(kind, name)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(original, self, *args, **kwargs)

    setattr(method, PATCH_MARK, True)
    setattr(kind, name, method)


class OldNames(dict[str, Any]):
    """Logs that also answer to Keras 2's names, which aren't among its keys."""

    def __init__(self, logs: Any, deprecations: DeprecationWarnings) -> None:
        super().__init__(logs or {})
        self._deprecations = deprecations

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        """Pickles a plain dictionary: who reads it may have no Keras."""
        return dict, (dict(self),)

    def __missing__(self, name: str) -> Any:
        known = self._known(name)
        if known is None:
            raise KeyError(name)
        return self[known]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or self._known(name) is not None

    def get(self, name: str, default: Any = None) -> Any:
        """As that of a dict; an old name counts as its new one."""
        return self[name] if name in self else default

    def _known(self, name: object) -> str | None:
        known = modern_name(name) if isinstance(name, str) else None
        if known is None or not super().__contains__(known):
            return None
        self._deprecations.warn_once(f"logs[{name!r}]", f"logs[{known!r}].")
        return known


def modern_name(name: str) -> str | None:
    """What Keras 3 logs a metric as that Keras 2 logged as ``name``; None if it is the same."""
    if name == "lr":
        return "learning_rate"
    is_accuracy = name == "acc" or name.endswith("_acc")
    return f"{name}uracy" if is_accuracy else None


def _tell_old_names(deprecations: DeprecationWarnings) -> _Around:
    def on_epoch_end(original: Any, self: Any, epoch: int, logs: Any = None) -> None:
        callbacks = self.callbacks
        # CallbackList makes a plain dictionary of whatever it gets, for all of them.
        self.callbacks = [_Told(callback, deprecations) for callback in callbacks]
        try:
            original(self, epoch, logs)
        finally:
            self.callbacks = callbacks

    return on_epoch_end


class _Told:
    """Hands the end of an epoch on to a callback, with the old names."""

    def __init__(self, callback: Any, deprecations: DeprecationWarnings) -> None:
        self._callback = callback
        self._deprecations = deprecations

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        told = OldNames(logs, self._deprecations)
        self._callback.on_epoch_end(epoch, told)
        logs.update(told)  # Callbacks add to what later ones get.


def _keep_old_names(deprecations: DeprecationWarnings) -> _Around:
    def __init__(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.history = OldNames(self.history, deprecations)

    return __init__


def _find_mode(deprecations: DeprecationWarnings) -> _Around:
    """Keras 3 asks the metric for its direction, which a function has none of: Keras 2's rule."""

    def on_epoch_end(original: Any, self: Any, epoch: int, logs: Any = None) -> None:
        # Not at the top: see the package's docstring.
        from tfddl._src.keras_hooks.monitor_direction import finds_direction

        if self.mode == "auto" and self.monitor_op is None and not finds_direction(self):
            is_up = "acc" in self.monitor or self.monitor.startswith("fmeasure")
            self.mode = "max" if is_up else "min"
            deprecations.warn_once(
                f"{type(self).__name__}(monitor={self.monitor!r}) without mode",
                f"mode={self.mode!r}.",
            )
        original(self, epoch, logs)

    return on_epoch_end


def _accept_any_file(deprecations: DeprecationWarnings) -> _Around:
    def __init__(original: Any, self: Any, filepath: Any, *args: Any, **kwargs: Any) -> None:
        self.keras2_period, self.keras2_epochs = kwargs.pop("period", 1), 0
        if self.keras2_period != 1:
            deprecations.warn_once("ModelCheckpoint(period=…)", "save_freq=…, in batches.")
        bound = inspect.signature(original).bind(self, filepath, *args, **kwargs)
        weights_only = bound.arguments.get("save_weights_only", False)
        path = str(filepath)
        endings = WEIGHTS_ENDINGS if weights_only else (".keras", ".h5")
        # Keras 3 checks the ending in its constructor only.
        accepted = path if path.endswith(endings) else f"{path}{endings[0]}"
        original(self, accepted, *args, **kwargs)
        self.filepath = path

    return __init__


def _save_every_period(original: Any, self: Any, epoch: int, logs: Any = None) -> None:
    self.keras2_epochs += 1
    if self.keras2_epochs < self.keras2_period:
        return
    self.keras2_epochs = 0
    if isinstance(logs, OldNames):  # A file's name may have {val_acc} in it.
        old = {name: name.replace("accuracy", "acc") for name in logs if "accuracy" in name}
        logs = {**{old[name]: logs[name] for name in old if modern_name(old[name]) == name}, **logs}
    original(self, epoch, logs)


def _accept_epsilon(deprecations: DeprecationWarnings) -> _Around:
    def __init__(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        if "epsilon" in kwargs:  # Keras 3 takes any keyword, and ignores it.
            deprecations.warn_once("ReduceLROnPlateau(epsilon=…)", "min_delta=….")
            kwargs["min_delta"] = kwargs.pop("epsilon")
        original(self, *args, **kwargs)

    return __init__


def _drop_arguments(deprecations: DeprecationWarnings) -> _Around:
    def __init__(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        for name in _DROPPED:
            if name in kwargs:
                kwargs.pop(name)
                deprecations.warn_once(f"TensorBoard({name}=…)", "TensorBoard(…) without it.")
        original(self, *args, **kwargs)

    return __init__
