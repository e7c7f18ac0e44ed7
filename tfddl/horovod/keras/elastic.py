"""`horovod.keras.elastic`: states and callbacks for scripts that call `fit`."""

from typing import Any

import keras

from tfddl._src.horovod.elastic_states import State, TensorFlowKerasState
from tfddl._src.horovod.elastic_states import run as run


class KerasState(TensorFlowKerasState):
    """A model, its optimizer, and values; see `elastic_states.TensorFlowKerasState`."""

    def __init__(self, model: keras.Model, optimizer: Any = None, **kwargs: Any) -> None:
        """Takes the model, and values by name such as ``batch=0, epoch=0``."""
        super().__init__(model, optimizer, **kwargs)


class CommitStateCallback(keras.callbacks.Callback):
    """Commits the state after some batches, and at the end of each epoch."""

    def __init__(self, state: State, batches_per_commit: int = 1) -> None:
        """Takes the state, and after how many batches it is committed."""
        super().__init__()
        self._state = state
        self._every = batches_per_commit
        self._since = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """All ranks count alike from here on."""
        self._since = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Commits when it is time."""
        self._since += 1
        if self._since >= self._every:
            self._since = 0
            self._state.commit()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Commits."""
        self._state.commit()


class UpdateBatchStateCallback(keras.callbacks.Callback):
    """Keeps ``state.batch``: the last batch that was done, 0 when an epoch has ended.

    As with Horovod on TensorFlow 2.2 and newer, an epoch that is gone on with is begun again, with
    the weights of the commit. `tfddl.callbacks.Checkpoint` goes on in the middle of an epoch.
    """

    def __init__(self, state: State) -> None:
        """Takes the state."""
        super().__init__()
        self._state: Any = state

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Notes the batch."""
        self._state.batch = batch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """The next epoch begins with batch 0."""
        self._state.batch = 0


class UpdateEpochStateCallback(keras.callbacks.Callback):
    """Keeps ``state.epoch``: how many epochs have been done, over all starts."""

    def __init__(self, state: State) -> None:
        """Takes the state."""
        super().__init__()
        self._state: Any = state
        self._before = state.epoch  # type: ignore[attr-defined]
        self._first: int | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Notes where this `fit` takes up."""
        self._before = self._state.epoch
        self._first = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes which epoch this `fit` begins with, by its own count."""
        if self._first is None:
            self._first = epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """One more."""
        self._state.epoch = self._before + epoch - (self._first or 0) + 1
