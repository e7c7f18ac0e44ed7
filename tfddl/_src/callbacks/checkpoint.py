"""`Checkpoint`: saves a training, and resumes it."""

import logging
import math
import os
import sys
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfddl._src.callbacks import snapshots
from tfddl._src.callbacks.background_writer import BackgroundWriter
from tfddl._src.callbacks.preemption import Preemption
from tfddl._src.checkpoint import CheckpointStore, Snapshot
from tfddl._src.collectives import ReduceOp, allgather_object, allreduce, on_all_ranks
from tfddl._src.directory_lock import DirectoryLock
from tfddl._src.heartbeat import SAVED_STATUS
from tfddl._src.keras_hooks import FitState, JobCallback, resume
from tfddl._src.runtime import current
from tfddl._src.storage import RemoteLock, RemotePath, make_path
from tfddl.errors import CheckpointError, DisagreementError, UnsupportedError

_LOG = logging.getLogger("tfddl")
# Parts of names of metrics in lower case: "val_binary_accuracy" has an "acc" in it.
_LARGER_IS_BETTER = (
    *("acc", "auc", "cosine", "dice", "f1", "fbeta", "io_u", "iou", "precision", "psnr"),
    *("r2", "recall", "sensitivity", "specificity", "ssim", "true_"),
)


class Checkpoint(JobCallback):
    """Saves the training, and at its start resumes from the newest valid checkpoint.

    Give it to `fit` on every rank. Rank 0 writes and reads, so that no shared file system is needed
    as long as rank 0 stays on its host. Saved are the weights, the optimizer with its slots and
    step count, the position in the data, what differs between ranks (the random state of dropout,
    other state that isn't trained), the metrics of an epoch that is under way, the history, and
    what Keras' `EarlyStopping`, `ReduceLROnPlateau` and `ModelCheckpoint` remember. So the same
    command resumes where it was stopped, also within an epoch of `tfddl.shard_dataset`, and needs
    no ``initial_epoch``. On CPUs with deterministic ops it ends, bit for bit, in the weights of a
    run that wasn't interrupted; saving changes nothing in the training.

    With another number of workers the rest of the epoch is dealt out again, each remaining example
    once. The learning rate is that of the checkpoint; see `LearningRateScaling`.

    With other data than that of `tfddl.shard_dataset` (arrays, datasets transformed by more than
    `map` and `prefetch`) training resumes at epoch boundaries only: steps since the last one are
    trained again. Draws of the global generators (`tf.random.normal`, a layer without a
    `keras.random.SeedGenerator` of its own) aren't saved.

    A save that fails (a full disk) is logged as an error, and training goes on. Where the loss
    isn't finite nothing is saved, and that is logged.

    All ranks save together: each save waits for the slowest rank, and for rank 0's copy of the
    weights in memory. The copy is written in the background; the next save, and the end of
    training, wait until it is.

    While `fit` runs, SIGTERM to any worker makes all of them save after the next step (or, during
    validation, after it) and end with status 75. The same command resumes from there. It needs
    `fit` to run in the main thread, and a script without a handler of its own for that signal. With
    data that can't be resumed within an epoch, it resumes from the last epoch boundary.

    Where ``tfddlrun --host-discovery-script`` changes the number of workers, all save in the same
    way, but data that can't be resumed within an epoch are trained on up to its end before.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        save_every_steps: int | None = None,
        keep: int = 3,
        monitor: str | None = None,
        mode: str = "auto",
    ) -> None:
        """Checks the arguments; nothing is read or written before training.

        Args:
            directory: The checkpoint directory, made if it isn't there; one for each training.
                While it trains, rank 0 has a lock on it: where another job uses it, training ends
                with a `CheckpointError` that says which. A URL (``gs://bucket/run-1``) is a
                directory in a store that `tf.io.gfile` reaches; rank 0 alone needs access.
            save_every_steps: Also saves within epochs, whenever so many steps have been done since
                the last save; at least 1. None saves at the end of each epoch, after validation.
            keep: How many of the newest checkpoints stay, at least 1. The best one stays besides,
                as ``best.npz``; see `tfddl.load_checkpoint`.
            monitor: The entry of an epoch's logs by which checkpoints are compared. None:
                "val_loss", or "loss" where there is no validation.
            mode: "min", "max", or "auto", which is "max" for metrics of which more is better
                (accuracy, AUC, precision, recall, Dice, IoU, F1).

        Raises:
            CheckpointError: ``keep`` is less than 1.
            UnsupportedError: ``save_every_steps`` or ``mode`` is none of these; or ``directory``
                is a URL in a `pathlib.Path`, which can't hold one.
        """
        super().__init__()
        if save_every_steps is not None and save_every_steps < 1:
            raise UnsupportedError(
                f"save_every_steps is {save_every_steps}; expected at least 1, or None."
            )
        if mode not in ("auto", "min", "max"):
            raise UnsupportedError(f"mode is {mode!r}; expected auto, min or max.")
        self.store = CheckpointStore(make_path(directory), keep)
        self._every = save_every_steps
        self._monitor = monitor
        self._mode = mode
        self._best: float | None = None
        self._best_if_unwritten: float | None = None
        self._best_of: str | None = None
        self._saved_at = 0
        self._saves_within_epochs = False
        self._restored: snapshots.Restored | None = None
        self._writer = BackgroundWriter()
        self._preemption = Preemption()
        self._lock: DirectoryLock | RemoteLock | None = None

    def wait(self) -> None:
        """Waits until the last checkpoint is on the disk, or logs why it isn't; rank 0 writes."""
        error = self._writer.wait()
        if error is None:
            return
        self._best = self._best_if_unwritten
        _LOG.error(
            "a checkpoint could not be saved to %s: %s. Training goes on; the earlier "
            "checkpoints are as they were.",
            self.store.directory,
            error,
        )

    def after_train_begin(self, fit: FitState) -> None:
        """Resumes from the newest valid checkpoint, if there is one.

        Raises:
            CheckpointError: On all ranks: the directory can't be written, or another job has it;
                the checkpoint is of another model, optimizer or data set.
            DisagreementError: Another rank has a checkpoint, and rank 0 has none.
            UnsupportedError: It is within an epoch, where the data can't be resumed.
        """
        optimizer = fit.model.optimizer
        # Its slots are restored, too; by itself it would make them in the first step.
        if not optimizer.built:
            optimizer.build(fit.model.trainable_variables)
        self._best, self._saved_at, self._restored = None, 0, None
        self._saves_within_epochs = fit.has_position
        on_all_ranks(self._prepare, error=CheckpointError)
        found = on_all_ranks(self._newest, error=CheckpointError)
        path = self._compare(found[0] if found else None)
        if path is not None:
            self._restore(fit, found[1] if found else None, path)
        elif self._every and not fit.has_position and current().cluster.rank == 0:
            _LOG.warning(
                "save_every_steps=%d has no effect: the data isn't what tfddl.shard_dataset "
                "returned, and can't be resumed within an epoch. Saving at epoch boundaries only.",
                self._every,
            )
        self._preemption.listen()

    # These two come before the ranks agree on whether to stop, the methods after_… after it.

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Asks all ranks to stop, where this one was asked to save."""
        asked = self._preemption
        # Of the two, SIGTERM alone can't wait for the end of the epoch.
        if asked.got_sigterm or (asked.requested and self._saves_within_epochs):
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Asks all ranks to stop, where this one was asked to save."""
        if self._preemption.requested:
            self.model.stop_training = True

    def on_train_end(self, logs: Any = None) -> None:
        """Waits until the last checkpoint is on the disk."""
        self.wait()

    def after_fit(self) -> None:
        """Gives back thread, signal and lock, however training has ended."""
        self._preemption.stop_listening(handled=False)
        try:
            self.wait()
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def after_epoch_begin(self, fit: FitState) -> None:
        """Starts to count the steps until the next save."""
        self._saved_at = fit.done

    def after_train_batch(self, fit: FitState, logs: Any) -> None:
        """Saves, if it is due or training stops here; ends the process if that was asked for."""
        if self._restored is not None:
            self._restored.add_metrics(fit)
            self._restored = None
        if fit.steps is not None and fit.done >= fit.steps:
            return  # `after_epoch` saves, once the epoch has been validated.
        is_due = self._every is not None and fit.done - self._saved_at >= self._every
        # Where training stops here, the next run takes up this epoch with its metrics.
        if fit.has_position and (is_due or fit.model.stop_training):
            self._saved_at = fit.done
            self.wait()  # One write at a time; also, it may still take the best back.
            self._best_if_unwritten = self._best
            self._save(fit, logs, is_best=False)
        self._exit_if_preempted(fit)

    def after_epoch(self, fit: FitState, logs: Any) -> None:
        """Saves, if the epoch is complete; ends the process if that was asked for."""
        if fit.is_complete:
            self.wait()
            value = self._value(logs or {})
            before = self._best
            is_best = value is not None and (before is None or value < before)
            if is_best:
                self._best = value
            self._best_if_unwritten = before
            if not self._save(fit, logs, is_best=is_best):
                self._best = before
        self._exit_if_preempted(fit)

    def _exit_if_preempted(self, fit: FitState) -> None:
        """Ends the process on all ranks, where they stop because any of them was asked to save."""
        if not fit.model.stop_training:  # The ranks have agreed on it: all of them return, or none.
            return
        preempted = int(self._preemption.requested)
        if fit.together:
            preempted = int(allreduce(tf.constant(preempted), ReduceOp.MAX, name="to save").numpy())
        if not preempted:
            return
        on_all_ranks(self.wait, error=CheckpointError)  # No rank ends before it is written.
        self._preemption.stop_listening(handled=True)
        self._preemption.report()
        why, then = "received SIGTERM", "The same command resumes from there"
        if current().progress_page.save_is_requested:
            why, then = "the hosts of the job change", "tfddlrun resumes from there"
        _print(
            f"tfddl: {why}: saved to {self.store.directory}; ending with status {SAVED_STATUS}. "
            f"{then}"
        )
        raise SystemExit(SAVED_STATUS)

    def _prepare(self) -> None:
        if current().cluster.rank == 0:
            self._lock = self.store.prepare()

    def _newest(self) -> tuple[Path | RemotePath, Snapshot] | None:
        """The newest valid checkpoint, on rank 0."""
        if current().cluster.rank:
            return None
        for path, found in self.store.newest_first():
            if isinstance(found, Snapshot):
                return path, found
            aside = self.store.set_aside(path)
            _LOG.warning("%s; it is now %s, and the one before it is tried", found, aside.name)
        return None

    def _compare(self, mine: Path | RemotePath | None) -> Path | RemotePath | None:
        """The checkpoint that rank 0 resumes from; all ranks must call it together.

        Where the directory isn't shared, and rank 0 has come to another host than before, it finds
        nothing, and would start anew and later overwrite what there is. A store is shared.
        """
        is_shared = isinstance(self.store.directory, RemotePath)
        if current().cluster.rank and not is_shared:  # By now rank 0 has set aside what is damaged.
            mine = next(iter(self.store.files()), None)
        names = allgather_object(None if mine is None else mine.name)
        if names[0] is None and any(names):
            rank = next(rank for rank, name in enumerate(names) if name)
            raise DisagreementError(
                f"Rank {rank} has a checkpoint {names[rank]} in {self.store.directory}, but rank "
                "0, which reads and writes them, has no valid one. HINT: put them on a file system "
                "that all hosts share, or start rank 0 on the host that has them."
            )
        return self.store.directory / names[0] if names[0] else None

    def _restore(self, fit: FitState, snapshot: Snapshot | None, path: Path | RemotePath) -> None:
        self._restored = restored = snapshots.restore(fit, snapshot)
        self._best, self._best_of = restored.best["value"], restored.best["of"]
        position = restored.position
        if restored.finished or position.epoch >= fit.epochs:
            resume.start_at_epoch(fit, fit.epochs)
            how = "an EarlyStopping ended it" if restored.finished else "all its epochs are done"
            _print(
                f"tfddl: {path} is the end of a training ({position.epoch} of {fit.epochs} epochs; "
                f"{how}): nothing is left to train. HINT: give another directory, or more epochs."
            )
            return
        within = ""
        if position.consumed and fit.shard is not None:
            within = f", {position.consumed} of {fit.shard.plan.num_examples} examples of it done"
        _print(f"tfddl: resuming from {path}: epoch {position.epoch + 1} of {fit.epochs}{within}")

    def _save(self, fit: FitState, logs: Any, *, is_best: bool) -> bool:
        """Begins to save; whether there was anything to save. All ranks must call it together."""
        best = {"value": self._best, "of": self._best_of}
        snapshot = snapshots.take(fit, logs, best=best)
        if current().cluster.rank:
            return True
        if snapshot is None:
            _LOG.error(
                "no checkpoint was saved in epoch %d after %d steps: the loss isn't finite, or "
                "data can't be read",
                fit.epoch,
                fit.done,
            )
            return False
        step = snapshot.meta["iterations"]
        self._writer.begin(lambda: self.store.write(snapshot, step=step, is_best=is_best))
        return True

    def _value(self, logs: dict[str, Any]) -> float | None:
        """The value by which checkpoints are compared; less is better. None: not this one."""
        name = self._monitor or ("val_loss" if "val_loss" in logs else "loss")
        if name not in logs:
            _LOG.warning(
                "the logs have no %s, by which the best checkpoint is chosen; they have %s",
                name,
                ", ".join(logs),
            )
            return None
        value = float(logs[name])
        # NaN is neither better nor worse, and infinity would stay the best.
        if not math.isfinite(value):
            return None
        if self._best_of != name:  # An earlier run was given another `monitor`.
            self._best, self._best_of = None, name
        # Of a "dice_loss", less is better.
        more_is_better = self._mode == "max" or (
            self._mode == "auto"
            and any(measure in name.lower() for measure in _LARGER_IS_BETTER)
            and "loss" not in name
        )
        return -value if more_is_better else value


def _print(text: str) -> None:
    if current().cluster.rank == 0:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
