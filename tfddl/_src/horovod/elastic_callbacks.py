"""Callbacks that keep and commit an elastic state in `fit` (horovod/_keras/elastic.py)."""

from typing import Any

import keras

from tfddl._src.horovod.elastic_states import State


class CommitStateCallback(keras.callbacks.Callback):
    """Commits the state after some batches, and at the end of each epoch."""

    def __init__(self, state: State, batches_per_commit: int = 1) -> None:
        """Commits ``state`` every ``batches_per_commit`` batches."""
        super().__init__()
        self._state = state
        self._every = batches_per_commit
        self._since = 0

    def on_train_begin(self, logs: Any = None) -> None:
        # All ranks count from here, and so commit at the same steps.
        self._since = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._since += 1
        if self._since >= self._every:
            self._since = 0
            self._state.commit()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._state.commit()


class UpdateBatchStateCallback(keras.callbacks.Callback):
    """Keeps ``state.batch``: the last completed batch of the epoch; 0 at its end.

    As with Horovod on TensorFlow 2.2 and newer, training resumes at the beginning of the epoch,
    with the weights of the commit. `tfddl.callbacks.Checkpoint` resumes in mid-epoch.
    """

    def __init__(self, state: State) -> None:
        super().__init__()
        self._state: Any = state

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._state.batch = batch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._state.batch = 0


class UpdateEpochStateCallback(keras.callbacks.Callback):
    """Keeps ``state.epoch``: the number of completed epochs, over all restarts."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self._state: Any = state
        self._before = state.epoch  # type: ignore[attr-defined]
        self._first: int | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        self._before = self._state.epoch
        self._first = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._first is None:  # `fit(initial_epoch=…)` may count from elsewhere than the state.
            self._first = epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._state.epoch = self._before + epoch - (self._first or 0) + 1
