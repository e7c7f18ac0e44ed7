"""`Monitor`: TensorBoard for the whole job."""

import dataclasses
import math
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfddl._src.callbacks.monitor_charts import (
    UpdateInterval,
    rank_values,
    step_values,
    sum_by_rank,
)
from tfddl._src.callbacks.monitor_meter import CounterValues, StepMeter, StepStats
from tfddl._src.callbacks.monitor_picture import draw_ranks
from tfddl._src.callbacks.monitor_tables import counted_table, rank_table, shard_table
from tfddl._src.callbacks.monitor_writer import JOB, TRAIN, VALIDATION, EventWriter
from tfddl._src.collectives import DisplayName, allgather, allgather_object, on_all_ranks
from tfddl._src.comm.native import format_ranks
from tfddl._src.keras_hooks import FitState, JobCallback
from tfddl._src.keras_hooks.optimizer import innermost
from tfddl._src.keras_hooks.step_state import step_state
from tfddl._src.runtime import current
from tfddl._src.storage import make_path
from tfddl.errors import DataError, DisagreementError, UnsupportedError

Predictions = Callable[[keras.Model], Mapping[str, Any]]


class Monitor(JobCallback):
    """Shows a training in TensorBoard: ``tensorboard --logdir LOG_DIR``.

    Give it to `fit` on all ranks, with the same arguments: they measure their steps together, and
    rank 0 writes. There are

    * ``epoch/``: loss and metrics of training and validation, on one chart each,
    * ``step/``: learning rate, and the loss within epochs,
    * ``speed/``: examples per second of the job, time of a step (its median and 95th percentile),
      time in collectives,
    * ``ranks/``: each rank's examples, time of a step, and the time of it outside collectives,
      by which the slowest rank stands out (as lines, as a picture, and as a table),
    * the table of the shards, pictures of what the model predicts, the flags next to the results
      they led to (on the page HPARAMS).

    Epochs count from 1, steps as ``optimizer.iterations`` does; so a training that is resumed
    continues the curves, if it is given the same directory. The first execution of a `fit`, in
    which TensorFlow makes the graph, isn't timed. The time in collectives is not known where
    gradients stay on a GPU.

    It costs one exchange of a few bytes every so many steps and at the end of each epoch.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str],
        *,
        update_every_steps: int = 100,
        hparams: Mapping[str, Any] | None = None,
        predictions: Predictions | None = None,
    ) -> None:
        """Checks the arguments.

        Args:
            log_dir: A directory of this training's own, or its URL, which rank 0 makes and writes.
                To compare trainings, give each a directory, and TensorBoard the one that these are
                in.
            update_every_steps: About how many steps there are between two points of ``step/`` and
                ``speed/``, at least 1. An epoch is cut into about equal parts of about that length.
            hparams: The flags of the training: numbers, booleans, strings; others become strings.
            predictions: Called at the end of each epoch, on rank 0 alone, with the model; returns
                batches of images by name: (n, height, width, 1, 3 or 4), bytes or numbers in 0..1.
                It may call ``model(x, training=False)``, ``model.predict`` and so on, and the
                other ranks wait. For instance, images next to the masks predicted for them::

                    def predictions(model):
                        masks = np.asarray(model(images, training=False))
                        return {"masks": np.concatenate([images / 255, masks], axis=2)}

        Raises:
            UnsupportedError: update_every_steps is not a positive integer, or log_dir is a URL in a
                `pathlib.Path`, which can't hold one.
        """
        super().__init__()
        if not isinstance(update_every_steps, int) or update_every_steps < 1:
            raise UnsupportedError(
                f"update_every_steps is {update_every_steps!r}; expected an integer of at least 1."
            )
        self._log_dir = str(make_path(log_dir))
        self._update_every_steps = update_every_steps
        self._hparams = None if hparams is None else dict(hparams)
        self._predictions = predictions
        self._writer: EventWriter | None = None

    def after_train_begin(self, fit: FitState) -> None:
        """Opens the event files, and starts the clocks.

        Raises:
            DisagreementError: The ranks gave it different arguments.
            DataError: On every rank: the directory can't be written.
        """
        self._hosts = _agree_on_settings(
            _Settings(
                host=socket.gethostname(),
                update_every_steps=self._update_every_steps,
                predicts=self._predictions is not None,
            )
        )
        self._writer = on_all_ranks(self._open, error=DataError)
        self._is_measured = current().instrumentation.measure(True)
        self._pace = UpdateInterval.of_epoch(fit.steps, self._update_every_steps)
        self._meter = StepMeter(lambda: self._read(fit))
        self._has_begun = self._has_shards = self._has_results = False
        if self._writer is not None:
            self._writer.begin(self._hparams)
            if fit.shard is not None:  # Otherwise the first epoch tells.
                self._writer.text("shards", shard_table(fit.shard.plan, self._hosts), 0)
                self._has_shards = True
            self._writer.flush()

    def after_epoch_begin(self, fit: FitState) -> None:
        """Starts to measure the epoch."""
        self._begin_s = time.perf_counter()
        self._works: list[list[StepStats]] = []
        # A checkpoint adds what an earlier run did of the epoch after the first step: the first
        # difference would be too large, and is left out.
        self._loss_before = (0.0, 0.0) if fit.rest_of_epoch is None else None
        self._done = fit.done
        if self._writer is not None and not self._has_begun:
            self._has_begun = True
            self._writer.scalars(JOB, self._learning_rate(), self._iterations())
            self._writer.flush()
        self._meter.resume()

    def after_train_batch(self, fit: FitState, logs: Any) -> None:
        """Measures the steps; now and then, adds a point to the charts."""
        self._meter.step_ended(fit.done - self._done)
        self._done = fit.done
        is_last = fit.model.stop_training or (fit.steps is not None and fit.done >= fit.steps)
        is_due = is_last or self._meter.steps >= self._pace.steps
        if is_due or fit.steps is None:
            self._meter.note()  # Now: validation may follow, and Keras resets the metrics for it.
        if is_due:
            self._update(**self._loss_since())
            self._meter.resume()

    def after_epoch(self, fit: FitState, logs: Any) -> None:
        """Adds a point to the charts of epochs.

        Raises:
            DataError: On every rank: ``predictions`` failed, or returned something else.
        """
        if self._meter.steps:  # The data has ended without its length being known before.
            self._update()
        if self._writer is not None:
            self._write_epoch(self._writer, fit.epoch + 1, dict(logs or {}))
        if self._predictions is not None:
            on_all_ranks(lambda: self._write_predictions(fit.epoch + 1), error=DataError)
        if self._writer is not None:
            self._writer.flush()

    def on_train_end(self, logs: Any = None) -> None:
        """Closes the event files."""
        current().instrumentation.measure(False)
        if self._writer is not None:
            self._writer.end()
            self._writer = None

    def _open(self) -> EventWriter | None:
        return EventWriter(self._log_dir) if current().cluster.rank == 0 else None

    def _read(self, fit: FitState) -> CounterValues:
        # NaN goes through all sums: what isn't known shows nowhere.
        seconds = current().instrumentation.seconds() if self._is_measured else math.nan
        return CounterValues(examples=_examples_done(fit), collective_s=seconds)

    def _update(self, **loss: float) -> None:
        """Adds points to the charts, of what all ranks have done since the last ones."""
        mine = dataclasses.replace(self._meter.take(), **loss)
        # float64 holds all fields exactly, counts included.
        rows = allgather(tf.constant([mine.row()], tf.float64), name=DisplayName("Monitor")).numpy()
        works = [StepStats.of_row(row) for row in rows]
        self._works.append(works)
        if self._writer is not None:
            values = step_values(works) | self._learning_rate()
            self._writer.scalars(JOB, values, self._iterations())
            self._writer.flush()

    def _loss_since(self) -> dict[str, float]:
        """The loss of this rank's examples since the last time: its sum, and their number."""
        tracker = _loss_tracker(self.model)
        if tracker is None:
            return {}
        now = float(tf.convert_to_tensor(tracker.total)), float(tf.convert_to_tensor(tracker.count))
        before, self._loss_before = self._loss_before, now
        if before is None:
            return {}
        return {"loss_total": now[0] - before[0], "loss_count": now[1] - before[1]}

    def _write_epoch(self, writer: EventWriter, epoch: int, logs: dict[str, Any]) -> None:
        results = _results(logs)
        for run, values in results.items():
            writer.scalars(run, values, epoch)
        writer.scalars(JOB, {"epoch/seconds": time.perf_counter() - self._begin_s}, epoch)
        works = sum_by_rank(self._works)
        for run, tag, value in rank_values(works):
            writer.scalars(run, {tag: value}, epoch)
        writer.text("ranks/table", rank_table(works, self._hosts, epoch=epoch), epoch)
        if (picture := draw_ranks(works)) is not None:
            writer.images("ranks/picture", picture[np.newaxis], epoch)
        if not self._has_shards:
            writer.text("shards", counted_table(works, self._hosts), 0)
            self._has_shards = True
        if self._hparams is not None and not self._has_results:
            writer.name_results(self._hparams, {run: list(tags) for run, tags in results.items()})
            self._has_results = True

    def _write_predictions(self, epoch: int) -> None:
        if self._writer is None or self._predictions is None:
            return
        try:
            named = dict(self._predictions(self.model))
        except Exception as error:  # Any of the user's code: otherwise the others wait for ever.
            raise DataError(f"predictions failed: {type(error).__name__}: {error}") from error
        for name, images in named.items():
            self._writer.images(name, _checked(name, images), epoch)

    def _learning_rate(self) -> dict[str, float]:
        rate = tf.convert_to_tensor(innermost(self.model.optimizer).learning_rate)
        return {"step/learning_rate": float(rate)}

    def _iterations(self) -> int:
        return int(tf.convert_to_tensor(innermost(self.model.optimizer).iterations))


def _examples_done(fit: FitState) -> float:
    """This rank's number of examples so far; only differences within an epoch mean anything."""
    if fit.together:
        return float(step_state(fit.model).examples.numpy())
    if fit.shard is not None:
        position = fit.position()
        return position.epoch * fit.shard.plan.num_examples + position.consumed
    tracker = _loss_tracker(fit.model)
    return math.nan if tracker is None else float(tf.convert_to_tensor(tracker.count))


def _loss_tracker(model: Any) -> Any:
    """The metric that sums the losses of the epoch; None where a user's own model has none."""
    tracker = next((metric for metric in model.metrics if metric.name == "loss"), None)
    return tracker if isinstance(tracker, keras.metrics.Mean) else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Settings:
    """What a rank was given."""

    host: str
    update_every_steps: int
    predicts: bool


def _agree_on_settings(mine: _Settings) -> list[str]:
    """Compares the ranks' arguments; returns their hosts, in rank order."""
    everyone = [
        _Settings(**s)
        for s in allgather_object(dataclasses.asdict(mine), name=DisplayName("Monitor"))
    ]
    first = everyone[0]
    others = [
        rank
        for rank, settings in enumerate(everyone)
        if dataclasses.replace(settings, host=first.host) != first
    ]
    if others:
        raise DisagreementError(
            f"{format_ranks(others)} made a Monitor with other arguments than rank 0: "
            f"{_describe(everyone[others[0]])}; rank 0: {_describe(first)}. HINT: give it the same "
            "update_every_steps and predictions on all ranks; rank 0 alone calls predictions."
        )
    return [settings.host for settings in everyone]


def _describe(settings: _Settings) -> str:
    given = "given" if settings.predicts else "None"
    return f"update_every_steps={settings.update_every_steps}, predictions {given}"


def _results(logs: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The logs of an epoch as points of the charts: by run, by tag."""
    results: dict[str, dict[str, float]] = {TRAIN: {}, VALIDATION: {}}
    for name, value in logs.items():
        # The learning rate has a chart over steps; a dictionary or array has none.
        if name == "learning_rate" or np.ndim(value):
            continue
        run = VALIDATION if name.startswith("val_") else TRAIN
        results[run][f"epoch/{name.removeprefix('val_')}"] = float(value)
    return {run: values for run, values in results.items() if values}


def _checked(name: str, images: Any) -> np.ndarray:
    array = np.asarray(images)
    if array.ndim != 4 or array.shape[-1] not in (1, 3, 4) or not array.size:
        raise DataError(
            f"predictions returned {name!r} of shape {array.shape}; expected images, (n, height, "
            "width, channels) with 1, 3 or 4 channels."
        )
    if array.dtype.kind == "f":
        return np.clip(array.astype(np.float32), 0, 1)
    if array.dtype != np.uint8:
        raise DataError(
            f"predictions returned {name!r} of {array.dtype}; expected uint8, or floating point "
            "in 0..1."
        )
    return array
