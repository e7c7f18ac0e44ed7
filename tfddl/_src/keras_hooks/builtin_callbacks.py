"""Keras' own callbacks in a job: files are written by rank 0, and whole."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras

from tfddl._src.keras_hooks.fit_state import current_fit
from tfddl._src.keras_hooks.patching import wrap_method
from tfddl._src.runtime import current
from tfddl.errors import UnsupportedError

_WRITERS = (
    keras.callbacks.CSVLogger,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
)

_SCALARS: dict[type, tuple[str, ...]] = {
    keras.callbacks.EarlyStopping: ("wait", "stopped_epoch", "best", "best_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "cooldown_counter", "best"),
    keras.callbacks.ModelCheckpoint: ("best",),
}
"""What the decisions of Keras' callbacks rest on, and `on_train_begin` forgets."""


def install() -> None:
    """Puts the hook in place."""
    wrap_method(
        keras.callbacks.ModelCheckpoint, "_save_model", ("epoch", "batch", "logs"), _save_model
    )


def select_for_rank(callbacks: Any) -> Any:
    """The callbacks that run on this rank: those that write files run on rank 0 only.

    Args:
        callbacks: As `fit` takes them.

    Raises:
        UnsupportedError: There is a BackupAndRestore.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks.callbacks = select_for_rank(callbacks.callbacks)
        return callbacks
    listed = flatten_callbacks(callbacks)
    for callback in listed:
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            raise UnsupportedError(
                "BackupAndRestore can't be used by several workers: it saves in place, its folder "
                "ends in weights of zero where ranks share it, and it trains batches twice. Write "
                f"tfddl.callbacks.Checkpoint({callback.backup_dir!r}) instead, on every rank; it "
                "goes on in the middle of an epoch too."
            )
    if current().cluster.rank == 0:
        return listed
    return [callback for callback in listed if not isinstance(callback, _WRITERS)]


def flatten_callbacks(callbacks: Any) -> list[Any]:
    """The callbacks in what `fit` takes: none, one, a list of lists, a CallbackList."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    return [callback for callback in keras.tree.flatten(callbacks) if callback is not None]


def get_states(callbacks: Any) -> list[dict[str, Any]]:
    """What Keras' callbacks remember of the epochs so far, in their order; JSON can hold it."""
    found = []
    for kind, names, callback in _remembering(callbacks):
        values = {name: getattr(callback, name) for name in names}
        plain = {n: v if v is None or isinstance(v, int) else float(v) for n, v in values.items()}
        found.append({"class": kind.__name__, **plain})
    return found


def get_best_weights(callbacks: Any) -> list[list[Any]]:
    """The weights that each EarlyStopping keeps; empty where it keeps none."""
    return [callback.best_weights or [] for callback in _stoppers(callbacks)]


def restore_states(
    callbacks: Any, memory: list[dict[str, Any]], best_weights: list[list[Any]]
) -> None:
    """Gives the callbacks what an earlier run's remembered, kind by kind in their order."""
    left = list(memory)
    for kind, names, callback in _remembering(callbacks):
        known = next((entry for entry in left if entry["class"] == kind.__name__), None)
        if known is not None:
            left.remove(known)
            for name in names:
                setattr(callback, name, known[name])
    for callback, weights in zip(_stoppers(callbacks), best_weights, strict=False):
        callback.best_weights = weights or None


def stopped_early(callbacks: Any) -> bool:
    """Whether an EarlyStopping ended the training."""
    return any(callback.stopped_epoch for callback in _stoppers(callbacks))


def _remembering(callbacks: Any) -> Iterator[tuple[type, tuple[str, ...], Any]]:
    for callback in callbacks.callbacks:
        for kind, names in _SCALARS.items():
            if isinstance(callback, kind):
                yield kind, names, callback


def _stoppers(callbacks: Any) -> list[Any]:
    return [c for c in callbacks.callbacks if isinstance(c, keras.callbacks.EarlyStopping)]


def _save_model(
    original: Callable[..., Any], self: Any, epoch: int, batch: int | None, logs: Any
) -> Any:
    if current_fit() is None:
        return original(self, epoch, batch, logs)
    with _whole_files(self.model):
        return original(self, epoch, batch, logs)


@contextlib.contextmanager
def _whole_files(model: Any) -> Iterator[None]:
    """What the model saves gets its name when it is complete."""
    names = ("save", "save_weights")
    for name in names:
        setattr(model, name, functools.partial(_save, getattr(model, name)))
    try:
        yield
    finally:
        for name in names:
            delattr(model, name)


def _save(original: Callable[..., Any], filepath: Any, overwrite: bool = True) -> None:
    if "://" in str(filepath):  # An object store takes files whole anyway.
        original(filepath, overwrite=overwrite)
        return
    path = Path(filepath)
    # Keras tells the format from the ending.
    temporary = path.with_name(f".writing-{path.name}")
    try:
        original(str(temporary), overwrite=overwrite)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
