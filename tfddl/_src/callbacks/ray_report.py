"""`ReportCheckpoint`: checkpoints of a training that are Ray Train's."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tfddl._src.callbacks.checkpoint import Checkpoint
from tfddl._src.collectives import broadcast_object
from tfddl._src.engines.ray_options import import_ray, import_ray_train
from tfddl._src.keras_hooks import FitState
from tfddl._src.runtime import current
from tfddl.errors import CheckpointError


class ReportCheckpoint(Checkpoint):
    """Saves the training as a checkpoint of Ray Train, and resumes from Ray's newest.

    A `tfddl.callbacks.Checkpoint` whose files are in ``RunConfig(storage_path=…)``, kept as
    `ray.train.CheckpointConfig` says; give it to `fit` on every rank, in a function that
    `tfddl.ray.TfddlTrainer` runs. At each save all ranks call `ray.train.report` together, rank 0
    with the checkpoint; training goes on when it is stored. The metrics are those of the logs that
    are numbers, with "epoch" (from 0) and "steps" (those of the epoch that are done): at the end of
    an epoch the job's, within one what rank 0 knows so far.

    After a failure, or with another number of workers, Ray starts the function again, and `fit`
    resumes from the newest checkpoint, within the epoch, as from a `Checkpoint`.

    After training, `tfddl.load_checkpoint` loads what ``result.checkpoint.to_directory()`` returns.
    """

    def __init__(self, *, save_every_steps: int | None = None) -> None:
        """Checks the arguments; nothing is read or written before training.

        Args:
            save_every_steps: Also saves within epochs, whenever so many steps have been done since
                the last save; at least 1. None saves at the end of each epoch, after validation.

        Raises:
            LaunchError: ray isn't installed.
            RuntimeError: This is no worker of Ray Train.
            UnsupportedError: ``save_every_steps`` is less than 1.
        """
        self._ray_train = import_ray_train()
        self._directory = Path(tempfile.gettempdir(), f"tfddl-ray-{self._run_id()}")
        super().__init__(self._directory, save_every_steps=save_every_steps, keep=1)

    def after_fit(self) -> None:
        """Removes the local files, however training has ended."""
        is_mine = self._lock is not None
        if is_mine:
            self.wait()
            self._empty()
        super().after_fit()
        if is_mine:
            with contextlib.suppress(OSError):  # By now another process may have it.
                self._directory.rmdir()

    def _run_id(self) -> str:
        """The same in each start of a run on a node: what Ray kills can't remove its files."""
        context = import_ray().get_runtime_context()
        # Names may be the same in several storages.
        run_path = self._ray_train.get_context().get_storage().experiment_fs_path
        run = f"{context.get_node_id()} {context.get_job_id()} {run_path}"
        return hashlib.sha256(run.encode()).hexdigest()[:16]

    def _prepare(self) -> None:
        super()._prepare()
        if current().cluster.rank:
            return
        self._empty()
        found = self._ray_train.get_checkpoint()
        if found is not None:
            try:
                # Where it fails, Ray removes the directory, the lock with it.
                with tempfile.TemporaryDirectory(dir=self._directory) as directory:
                    found.to_directory(directory)
                    for file in Path(directory).iterdir():
                        os.replace(file, self._directory / file.name)
            except OSError as error:
                raise CheckpointError(f"Ray's checkpoint {found} can't be read: {error}") from error
            if not self.store.files():
                raise CheckpointError(
                    f"Ray's checkpoint {found} isn't one of ReportCheckpoint's. HINT: leave "
                    "reports with other checkpoints out, or resume from them yourself"
                )

    def _empty(self) -> None:
        """Removes what an earlier start has left, but not the lock."""
        for path in self._directory.glob("[!.]*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _compare(self, mine: Any) -> Any:
        # Ray has what counts: on other ranks' disks may be what an earlier rank 0 has left there.
        name = broadcast_object(None if mine is None else mine.name)
        return self._directory / name if name else None

    def _save(self, fit: FitState, logs: Any, *, is_best: bool) -> bool:
        saved = super()._save(fit, logs, is_best=is_best)
        metrics = {name: float(value) for name, value in (logs or {}).items() if not np.ndim(value)}
        metrics |= {"epoch": fit.epoch, "steps": fit.done}
        if current().cluster.rank or not saved:
            self._ray_train.report(metrics)
            return saved
        self.wait()
        files = sorted(self._directory.glob("step-*.npz"))
        if not files:  # It couldn't be written, which is logged.
            self._ray_train.report(metrics)
            return saved
        with tempfile.TemporaryDirectory(dir=self._directory) as directory:
            # Moved: a write that fails next time must not report this one again.
            os.replace(files[-1], Path(directory, files[-1].name))
            checkpoint = self._ray_train.Checkpoint.from_directory(directory)
            self._ray_train.report(metrics, checkpoint=checkpoint)
        return saved
