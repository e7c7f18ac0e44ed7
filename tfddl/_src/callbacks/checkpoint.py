"""Saves the training, and goes on from what was saved."""

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
from tfddl._src.heartbeat import SAVED_STATUS, WorkerFlags
from tfddl._src.keras_hooks import FitState, JobCallback, resume
from tfddl._src.runtime import current
from tfddl.errors import CheckpointError, DisagreementError, UnsupportedError

_LOG = logging.getLogger("tfddl")
_LARGER_IS_BETTER = (
    *("acc", "auc", "cosine", "dice", "f1", "fbeta", "io_u", "iou", "precision", "psnr"),
    *("r2", "recall", "sensitivity", "specificity", "ssim", "true_"),
)


class Checkpoint(JobCallback):
    """Saves the training, and at its start goes on from the newest valid checkpoint.

    Goes on every rank; rank 0 writes and reads, so that no shared file system is needed as long as
    rank 0 stays on its host. Saved are the weights, the optimizer with its slots and step count,
    the position in the data, what differs between ranks (the random state of dropout, other state
    that isn't trained), the metrics of an epoch that is under way, the history, and what Keras'
    `EarlyStopping`, `ReduceLROnPlateau` and `ModelCheckpoint` remember. So the same command goes on
    where it was stopped, also within an epoch of `tfddl.shard_dataset`, and needs no
    ``initial_epoch``. On CPUs with deterministic ops it ends, bit for bit, in the weights of a run
    that wasn't interrupted; saving changes nothing in the training.

    With another number of workers the rest of the epoch is dealt out anew, each remaining example
    once. The learning rate comes from the checkpoint, as it was; see `LearningRateScaling`.

    Other data than that of `tfddl.shard_dataset` (arrays, datasets transformed by more than `map`
    and `prefetch`) can be gone on with at the beginnings of epochs only; then steps since the last
    one are trained again from there. Draws of the global generators (`tf.random.normal`, a layer
    that keeps no `keras.random.SeedGenerator` of its own) aren't saved.

    A save that fails (a full disk) is logged as an error, and training goes on; so it is where the
    loss isn't finite, which is nothing to go on from.

    All ranks save together: each save waits for the slowest rank, and for rank 0's copy of the
    weights in memory. What is copied is written in the background; the next save, and the end of
    training, wait for that.

    While `fit` runs, SIGTERM to any of the workers makes all of them save after the next step (or,
    within validation, after that) and end with status 75. The same command goes on from there. It
    needs the main thread, and a script without a handler of its own for that signal; data that
    can't be entered within an epoch is gone on with from the last end of one.
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
        """Looks at the arguments; nothing is read or written before training.

        Args:
            directory: The folder, made if it isn't there; one for each training. As long as it
                trains, rank 0 has a lock on it: where another job has the same folder, training
                ends with a `CheckpointError` that says which.
            save_every_steps: Also saves within epochs, whenever so many steps have been done since
                the last save; at least 1. None saves at the end of each epoch, after validation.
            keep: How many of the newest checkpoints stay, at least 1. The best one stays besides,
                as ``best.npz``; see `tfddl.load_checkpoint`.
            monitor: By which entry of an epoch's logs the best is told. None: "val_loss", or "loss"
                where there is no validation.
            mode: "min", "max", or "auto", which is "max" for the names of measures of which more is
                better (accuracy, AUC, precision, recall, Dice, IoU, F1).

        Raises:
            CheckpointError: ``keep`` is less than 1.
            UnsupportedError: ``save_every_steps`` or ``mode`` is none of these.
        """
        super().__init__()
        if save_every_steps is not None and save_every_steps < 1:
            raise UnsupportedError(
                f"save_every_steps is {save_every_steps}; it must be at least 1, or None."
            )
        if mode not in ("auto", "min", "max"):
            raise UnsupportedError(f"mode is {mode!r}; it must be auto, min or max.")
        self.store = CheckpointStore(Path(directory), keep)
        self._every = save_every_steps
        self._monitor = monitor
        self._mode = mode
        self._best: float | None = None
        self._best_if_unwritten: float | None = None
        self._best_of: str | None = None
        self._saved_at = 0
        self._restored: snapshots.Restored | None = None
        self._writer = BackgroundWriter()
        self._preemption = Preemption()
        self._lock: DirectoryLock | None = None

    def wait(self) -> None:
        """Waits until what was saved last is on the disk; only rank 0 ever has to."""
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
        """Goes on from the newest valid checkpoint, if there is one."""
        optimizer = fit.model.optimizer
        if not optimizer.built:
            optimizer.build(fit.model.trainable_variables)
        self._best, self._saved_at, self._restored = None, 0, None
        on_all_ranks(self._prepare, error=CheckpointError)
        found = on_all_ranks(self._newest, error=CheckpointError)
        path = self._compare(found[0] if found else None)
        if path is not None:
            self._go_on(fit, found[1] if found else None, path)
        elif self._every and not fit.has_position and current().cluster.rank == 0:
            _LOG.warning(
                "save_every_steps=%d has no effect: the data isn't what tfddl.shard_dataset "
                "returned, and can't be entered within an epoch. Saving at the ends of epochs.",
                self._every,
            )
        self._preemption.listen()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Asks all ranks to stop, where this one was asked to."""
        if self._preemption.asked:
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Asks all ranks to stop, where this one was asked to."""
        if self._preemption.asked:
            self.model.stop_training = True

    def on_train_end(self, logs: Any = None) -> None:
        """Waits for the disk."""
        self.wait()

    def after_fit(self) -> None:
        """Lets go of thread and signal, however training has ended."""
        self._preemption.stop_listening(answered=False)
        try:
            self.wait()
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def after_epoch_begin(self, fit: FitState) -> None:
        """Counts the steps until the next save from here."""
        self._saved_at = fit.done

    def after_train_batch(self, fit: FitState, logs: Any) -> None:
        """Saves, if so many steps have been done since the last time."""
        if self._restored is not None:
            self._restored.add_metrics(fit)
            self._restored = None
        if fit.steps is not None and fit.done >= fit.steps:
            return
        is_due = self._every is not None and fit.done - self._saved_at >= self._every
        # Where training stops here, callbacks and metrics of this epoch go on in the next run.
        if fit.has_position and (is_due or fit.model.stop_training):
            self._saved_at = fit.done
            self.wait()
            self._best_if_unwritten = self._best
            self._save(fit, logs, is_best=False)
        self._leave_if_asked(fit)

    def after_epoch(self, fit: FitState, logs: Any) -> None:
        """Saves, where the epoch is complete."""
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
        self._leave_if_asked(fit)

    def _leave_if_asked(self, fit: FitState) -> None:
        """Ends the process on all ranks, once they stop because one of them was asked to."""
        if not fit.model.stop_training:  # All ranks have agreed on it, so all come here or none.
            return
        asked = int(self._preemption.asked)
        if fit.together:
            asked = int(allreduce(tf.constant(asked), ReduceOp.MAX, name="SIGTERM").numpy())
        if not asked:
            return
        on_all_ranks(self.wait, error=CheckpointError)  # Nobody leaves before it is written.
        self._preemption.stop_listening(answered=True)
        current().board.set_flags(WorkerFlags.PREEMPTED)
        _say(
            f"tfddl: SIGTERM has come: saved to {self.store.directory}; ending with status "
            f"{SAVED_STATUS}, and the same command goes on from there"
        )
        raise SystemExit(SAVED_STATUS)

    def _prepare(self) -> None:
        if current().cluster.rank == 0:
            self._lock = self.store.prepare()

    def _newest(self) -> tuple[Path, Snapshot] | None:
        """The newest valid checkpoint, on rank 0."""
        if current().cluster.rank:
            return None
        for path, found in self.store.newest_first():
            if isinstance(found, Snapshot):
                return path, found
            aside = self.store.set_aside(path)
            _LOG.warning("%s; it is now %s, and the one before it is looked at", found, aside.name)
        return None

    def _compare(self, mine: Path | None) -> Path | None:
        """What rank 0 goes on from; other ranks must not have one where it has none."""
        if current().cluster.rank:  # By now rank 0 has set aside what is damaged.
            mine = next(iter(self.store.files()), None)
        names = allgather_object(None if mine is None else mine.name)
        if names[0] is None and any(names):
            rank = next(rank for rank, name in enumerate(names) if name)
            raise DisagreementError(
                f"Rank {rank} has a checkpoint {names[rank]} in {self.store.directory}, but rank "
                "0, which reads and writes them, has no valid one. Put them on a file system that "
                "all hosts share, or start rank 0 on the host that has them."
            )
        return self.store.directory / names[0] if names[0] else None

    def _go_on(self, fit: FitState, snapshot: Snapshot | None, path: Path) -> None:
        self._restored = restored = snapshots.restore(fit, snapshot)
        self._best, self._best_of = restored.best["value"], restored.best["of"]
        position = restored.position
        if restored.finished or position.epoch >= fit.epochs:
            resume.start_at_epoch(fit, fit.epochs)
            how = "an EarlyStopping ended it" if restored.finished else "all its epochs are done"
            _say(
                f"tfddl: {path} is the end of a training ({position.epoch} of {fit.epochs} epochs; "
                f"{how}): nothing is left to train. Give another folder, or more epochs."
            )
            return
        within = ""
        if position.consumed:
            within = f", {position.consumed} of {fit.share.plan.num_examples} examples of it done"
        _say(f"tfddl: going on from {path}: epoch {position.epoch + 1} of {fit.epochs}{within}")

    def _save(self, fit: FitState, logs: Any, *, is_best: bool) -> bool:
        """Begins to save, and says on rank 0 whether that is going well."""
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
        """What the best is told by; less is better."""
        name = self._monitor or ("val_loss" if "val_loss" in logs else "loss")
        if name not in logs:
            _LOG.warning(
                "the logs have no %s to tell the best checkpoint by; they have %s",
                name,
                ", ".join(logs),
            )
            return None
        value = float(logs[name])
        if not math.isfinite(value):
            return None
        if self._best_of != name:  # An earlier run was told another one.
            self._best, self._best_of = None, name
        more_is_better = self._mode == "max" or (
            self._mode == "auto"
            and any(measure in name.lower() for measure in _LARGER_IS_BETTER)
            and "loss" not in name
        )
        return -value if more_is_better else value


def _say(text: str) -> None:
    if current().cluster.rank == 0:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
