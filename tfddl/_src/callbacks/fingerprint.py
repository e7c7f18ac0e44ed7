"""`fingerprint`: records a training as digests."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfddl._src import fingerprints
from tfddl._src.collectives import allgather_object
from tfddl._src.keras_hooks import FitState, JobCallback, virtual_fit
from tfddl._src.runtime import current
from tfddl.errors import UnsupportedError


class Fingerprint(JobCallback):
    """Records digests of a training's variables, step by step; see `tfddl.debug.fingerprint`."""

    def __init__(self, path: Path, *, every: int) -> None:
        """Nothing is written yet.

        Args:
            path: Of the file, which rank 0 appends to.
            every: Records each step whose number within the epoch it divides.

        Raises:
            UnsupportedError: ``every`` is less than 1.
        """
        super().__init__()
        if every < 1:
            raise UnsupportedError(f"every is {every}; expected at least 1.")
        self._path, self._every = path, every
        # Not _model: Keras' own Callback keeps the model there.
        self._observed: FitState | None = None
        self._seen: dict[str, dict[str, str]] = {}

    def after_train_begin(self, fit: FitState) -> None:
        """Makes the file, on rank 0; asks for gradients and batches where they can be had."""
        if current().cluster.rank == 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
        if virtual_fit.virtual_workers_of(fit.model) is not None:
            virtual_fit.training_step(fit.model).observer = self._observe
            self._observed = fit

    def after_train_batch(self, fit: FitState, logs: Any) -> None:
        """Writes a line, if this step is recorded."""
        if fit.done % self._every:
            return
        model = fit.model
        digests = dict(self._seen)
        if "batches" in digests:
            names: dict[str, str] = {}
            for own in allgather_object(digests["batches"]):
                names |= own
            digests["batches"] = names
        if current().cluster.rank:
            return
        digests["variables"] = {
            f"{i} {variable.path}": fingerprints.digest(np.asarray(variable))
            for i, variable in enumerate([*model.weights, *model.optimizer.variables])
        }
        with self._path.open("a") as file:
            file.write(fingerprints.render((fit.epoch, fit.done), digests))

    def after_fit(self) -> None:
        """Forgets what was seen last."""
        self._seen = {}
        if self._observed is not None:
            virtual_fit.training_step(self._observed.model).observer = None
            self._observed = None

    def _observe(
        self,
        workers: Sequence[int],
        batches: Sequence[Any],
        gradients: Callable[[], Sequence[tuple[str, Any]]],
    ) -> None:
        """Digests of a step's batches, of each virtual worker, and of the sums of gradients."""
        if not self._is_recorded_next():
            return
        self._seen = {
            "batches": {
                f"virtual worker {worker}, tensor {i}": fingerprints.digest(np.asarray(leaf))
                for worker, batch in zip(workers, batches, strict=True)
                for i, leaf in enumerate(tf.nest.flatten(batch))
            },
            "gradients": {
                f"{i} {name}": " ".join(
                    fingerprints.digest(np.asarray(part))
                    for part in tf.nest.flatten(gradient, expand_composites=True)
                )
                for i, (name, gradient) in enumerate(gradients())
                if gradient is not None
            },
        }

    def _is_recorded_next(self) -> bool:
        """Whether a line is written at the end of the steps that Keras is executing at once."""
        fit = self._observed
        assert fit is not None
        end = fit.done + fit.model.steps_per_execution
        return (end if fit.steps is None else min(end, fit.steps)) % self._every == 0
