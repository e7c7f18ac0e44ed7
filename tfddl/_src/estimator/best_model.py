"""What a `ModelCheckpoint` has saved last, in the store: a start after a failure finds it there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import tensorflow as tf


class BestModel(keras.callbacks.Callback):
    """Copies the file of a `ModelCheckpoint` to the store; on rank 0, after it in `fit`.

    Where `ModelCheckpoint` remembers its best value over a failure, its file has to be there too.
    """

    def __init__(
        self,
        callback: keras.callbacks.ModelCheckpoint,
        directory: str,
        *,
        stored: str | None,
        resumes: bool,
    ) -> None:
        """Gives the callback its file, with what is in the store.

        Args:
            callback: Whose file it is.
            directory: Of this process.
            stored: A directory that TensorFlow reaches; None keeps the file nowhere else.
            resumes: Whether what is there is of this training; otherwise it is removed.
        """
        super().__init__()
        name = "best.weights.h5" if callback.save_weights_only else "best.keras"
        self.path = Path(directory, name)
        callback.filepath = str(self.path)
        self._stored = None if stored is None else f"{stored}/{name}"
        self._copied: int | None = None
        if self._stored is not None and tf.io.gfile.exists(self._stored):
            if resumes:
                tf.io.gfile.copy(self._stored, str(self.path))
                self._copied = self.path.stat().st_mtime_ns
            else:
                tf.io.gfile.remove(self._stored)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Copies what was saved in a step, which ``save_freq`` may ask for."""
        self._copy()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Copies what was saved at the end of an epoch, before a `Checkpoint` is."""
        self._copy()

    def _copy(self) -> None:
        if self._stored is None or not self.path.exists():
            return
        written = self.path.stat().st_mtime_ns
        if written == self._copied:
            return
        tf.io.gfile.makedirs(self._stored.rpartition("/")[0])
        tf.io.gfile.copy(str(self.path), f"{self._stored}.new", overwrite=True)
        tf.io.gfile.rename(f"{self._stored}.new", self._stored, overwrite=True)
        self._copied = written
