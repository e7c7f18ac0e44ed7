"""`load_checkpoint`: the weights of a checkpoint, for what comes after training."""

import os
from typing import Any, Literal

import keras

from tfddl._src.callbacks import snapshots
from tfddl._src.checkpoint import CheckpointStore, Snapshot
from tfddl._src.collectives import broadcast_object, broadcast_variables, on_all_ranks
from tfddl._src.runtime import current
from tfddl._src.storage import make_path
from tfddl.errors import CheckpointError, UnsupportedError


def load_checkpoint(
    directory: str | os.PathLike[str],
    model: keras.Model,
    *,
    which: Literal["newest", "best"] = "newest",
) -> dict[str, Any]:
    """Gives a model the weights of a checkpoint. All ranks must call it together.

    Rank 0 reads. A `tfddl.callbacks.Checkpoint` restores by itself; this is for what comes after
    training: predictions, a model to keep.

    Args:
        directory: The directory that `tfddl.callbacks.Checkpoint` was given, or its URL.
        model: The model that was trained, built; it need not be compiled.
        which: The newest valid checkpoint, or the best.

    Returns:
        "epoch" and "consumed" (the position that it was saved at), "iterations", "best" (its
        "value", negated where more is better, "of" which entry of the logs), "history".

    Raises:
        CheckpointError: On all ranks: there is none, it is damaged, or of another model.
        UnsupportedError: ``which`` is neither.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    if which not in ("newest", "best"):
        raise UnsupportedError(f"which is {which!r}; expected newest or best.")
    store = CheckpointStore(make_path(directory))

    def find() -> Snapshot | None:
        if current().cluster.rank:
            return None
        if which == "best":
            return store.best()
        for _, found in store.newest_first():
            if isinstance(found, Snapshot):
                return found
        raise CheckpointError(
            f"There is no valid checkpoint in {store.directory}. HINT: give the directory that "
            "tfddl.callbacks.Checkpoint was given."
        )

    snapshot = on_all_ranks(find, error=CheckpointError)
    meta: dict[str, Any] = broadcast_object(None if snapshot is None else dict(snapshot.meta))
    snapshots.check_model(model, meta)  # On all ranks, so that all raise.
    if snapshot is not None:
        snapshots.assign(model.variables, snapshot.arrays, "model")
    broadcast_variables(model.variables)
    return {name: meta[name] for name in ("epoch", "consumed", "iterations", "best", "history")}
