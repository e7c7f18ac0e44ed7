"""Keras' own callbacks in a job: files written by rank 0, and atomically; what they remember."""

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras

from tfddl._src.keras_hooks.fit_state import current_fit
from tfddl._src.keras_hooks.patching import private, wrap_method
from tfddl._src.keras_hooks.rank_zero import OnRankZero, is_tracker
from tfddl._src.runtime import current
from tfddl.errors import UnsupportedError

_WRITERS = (
    keras.callbacks.CSVLogger,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
)

# Undocumented attributes, set in __init__ or on_train_begin (keras/src/callbacks/early_stopping.py,
# reduce_lr_on_plateau.py, model_checkpoint.py, monitor_callback.py; Keras 3.11 to 3.15).
_SCALARS: dict[type, tuple[str, ...]] = {
    keras.callbacks.EarlyStopping: ("wait", "stopped_epoch", "best", "best_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "cooldown_counter", "best"),
    keras.callbacks.ModelCheckpoint: ("best",),
}
"""What Keras' callbacks decide by, and forget in `on_train_begin`."""


def install() -> None:
    """Hooks into `ModelCheckpoint`."""
    # The one place where ModelCheckpoint calls model.save or model.save_weights.
    wrap_method(
        keras.callbacks.ModelCheckpoint, "_save_model", ("epoch", "batch", "logs"), _save_model
    )


def select_for_rank(callbacks: Any) -> Any:
    """The callbacks that run on this rank: those that write files or report only on rank 0.

    Args:
        callbacks: As `fit` takes them. A CallbackList is changed and returned.

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
                "BackupAndRestore can't be used by several workers: it saves in place, its "
                "directory ends in weights of zero where ranks share it, and it trains batches "
                "twice. HINT: "
                f"use tfddl.callbacks.Checkpoint({callback.backup_dir!r}) on every rank, which "
                "resumes within an epoch too."
            )
    if current().cluster.rank == 0:
        return [_on_rank_zero(callback) for callback in listed]
    alone = (OnRankZero, *_WRITERS)
    return [one for one in listed if not isinstance(one, alone) and not is_tracker(one)]


def _on_rank_zero(callback: Any) -> Any:
    """A callback as it runs on rank 0."""
    if isinstance(callback, OnRankZero) and isinstance(callback.callback, _WRITERS):
        return callback.callback  # It may have a state, which checkpoints look for.
    if isinstance(callback, (OnRankZero, *_WRITERS)) or not is_tracker(callback):
        return callback
    return OnRankZero(callback)


def flatten_callbacks(callbacks: Any) -> list[Any]:
    """The callbacks in what `fit` takes: None, one, nested lists, a CallbackList."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    return [callback for callback in keras.tree.flatten(callbacks) if callback is not None]


def get_states(callbacks: Sequence[Any]) -> list[dict[str, Any]]:
    """What Keras' callbacks remember of the epochs so far, in their order; fit for JSON."""
    found = []
    for kind, names, callback in _stateful(callbacks):
        values = {name: private(callback, name) for name in names}
        plain = {n: v if v is None or isinstance(v, int) else float(v) for n, v in values.items()}
        found.append({"class": kind.__name__, **plain})
    return found


def get_best_weights(callbacks: Sequence[Any]) -> list[list[Any]]:
    """The weights that each EarlyStopping keeps; empty where it keeps none."""
    return [private(callback, "best_weights") or [] for callback in _stoppers(callbacks)]


def restore_states(
    callbacks: Sequence[Any], states: list[dict[str, Any]], best_weights: list[list[Any]]
) -> None:
    """Gives the callbacks what those of an earlier run remembered, class by class in order.

    Args:
        callbacks: Of this run; there may be others than before, or in another order.
        states: What `get_states` returned.
        best_weights: What `get_best_weights` returned.
    """
    left = list(states)
    for kind, names, callback in _stateful(callbacks):
        known = next((entry for entry in left if entry["class"] == kind.__name__), None)
        if known is not None:
            left.remove(known)
            for name in names:
                setattr(callback, name, known[name])
    for callback, weights in zip(_stoppers(callbacks), best_weights, strict=False):
        callback.best_weights = weights or None


def stopped_early(callbacks: Sequence[Any]) -> bool:
    """Whether an EarlyStopping ended the training."""
    return any(callback.stopped_epoch for callback in _stoppers(callbacks))


def _stateful(callbacks: Sequence[Any]) -> Iterator[tuple[type, tuple[str, ...], Any]]:
    for callback in callbacks:
        for kind, names in _SCALARS.items():
            if isinstance(callback, kind):
                yield kind, names, callback


def _stoppers(callbacks: Sequence[Any]) -> list[Any]:
    return [c for c in callbacks if isinstance(c, keras.callbacks.EarlyStopping)]


def _save_model(
    original: Callable[..., Any], self: Any, epoch: int, batch: int | None, logs: Any
) -> Any:
    if current_fit() is None:
        return original(self, epoch, batch, logs)
    with _atomic_saves(self.model):
        return original(self, epoch, batch, logs)


@contextlib.contextmanager
def _atomic_saves(model: Any) -> Iterator[None]:
    """Files that the model saves get their names when they are complete."""
    names = ("save", "save_weights")
    for name in names:
        setattr(model, name, functools.partial(_save, getattr(model, name)))
    try:
        yield
    finally:
        for name in names:
            delattr(model, name)


def _save(original: Callable[..., Any], filepath: Any, overwrite: bool = True) -> None:
    if "://" in str(filepath):  # Object stores show an upload when it is complete.
        original(filepath, overwrite=overwrite)
        return
    path = Path(filepath)
    is_folder = path.is_dir()
    # The same ending, by which Keras tells the format. In the same directory: os.replace is atomic
    # only within a file system (rename(2)), and a folder may be one of its own.
    temporary = (path if is_folder else path.parent) / f".writing-{path.name}"
    try:
        original(str(temporary), overwrite=overwrite)
        if is_folder and temporary.is_dir():
            _move_into(path, temporary)
        else:
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def _move_into(folder: Path, new: Path) -> None:
    """Moves a folder's files into one that there is, whose other files may be of anything.

    Each file is whole at any time, all together aren't: rename(2) replaces only empty directories.
    """
    for directory, _, names in os.walk(new):
        target = folder / Path(directory).relative_to(new)
        target.mkdir(parents=True, exist_ok=True)
        for name in names:
            os.replace(Path(directory, name), target / name)
