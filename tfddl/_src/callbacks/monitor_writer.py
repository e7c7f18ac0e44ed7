"""Event files for TensorBoard: scalars, texts, images, hyperparameters."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hp

from tfddl._src.callbacks.monitor_charts import DESCRIPTIONS
from tfddl.errors import DataError

JOB = "."
"""The run of charts that are of the whole job."""

TRAIN, VALIDATION = "train", "validation"


class EventWriter:
    """Writes the event files of one training: in ``job``, and in a directory in that for each run.

    TensorBoard draws what has the same tag in several runs on one chart. It looks for the results
    that belong to flags in the runs below that of the flags, unless that is the log directory
    itself; hence ``job``.
    """

    def __init__(self, log_dir: str) -> None:
        """Makes the directories and an event file.

        Args:
            log_dir: Any path that TensorFlow can write to.

        Raises:
            DataError: The directory can't be written.
        """
        self._folder = tf.io.gfile.join(log_dir, "job")
        self._writers: dict[str, Any] = {}
        self._hparams: Any = None
        self._has_more = self._has_warned = False
        try:
            tf.io.gfile.makedirs(self._folder)
            probe = tf.io.gfile.join(self._folder, ".tfddl_can_write")
            # An empty file needs no space on the disk; a byte does.
            with tf.io.gfile.GFile(probe, "w") as file:
                file.write("?")
            tf.io.gfile.remove(probe)
            self._run(JOB)
        except tf.errors.OpError as error:
            raise DataError(
                f"Monitor can't write to log_dir {log_dir!r}: {error.message} HINT: give it a "
                "directory that rank 0 may write to, with space on its disk."
            ) from error
        self._bytes = self._bytes_on_disk()
        self._has_more = False

    def scalars(self, run: str, values: Mapping[str, float], step: int) -> None:
        """Adds a point to several charts."""
        with self._run(run).as_default(step):
            for tag, value in values.items():
                tf.summary.scalar(tag, value, description=DESCRIPTIONS.get(tag))

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Adds Markdown text, for TensorBoard's text plugin."""
        with self._run(JOB).as_default(step):
            tf.summary.text(tag, markdown)

    def images(self, tag: str, images: np.ndarray, step: int) -> None:
        """Adds images: (n, height, width, channels), bytes or numbers in 0..1."""
        with self._run(JOB).as_default(step):
            tf.summary.image(tag, images, max_outputs=len(images))  # By default it writes 3.

    def begin(self, hparams: Mapping[str, Any] | None) -> None:
        """Notes that training begins, with these flags."""
        if hparams is not None:
            plain = {name: _plain(value) for name, value in hparams.items()}
            # Used for its two events alone: it is the plugin's public way to write when a training
            # has begun, with which flags, and when it has ended.
            self._hparams = hp.KerasCallback(self._run(JOB), plain)
            self._hparams.on_train_begin()

    def end(self) -> None:
        """Notes that training has ended as it should, and closes the files."""
        if self._hparams is not None:
            self._hparams.on_train_end()
        self.flush()
        for writer in self._writers.values():
            writer.close()

    def name_results(self, hparams: Mapping[str, Any], results: Mapping[str, list[str]]) -> None:
        """Sets what the page HPARAMS shows: the flags, and these charts' last values.

        Args:
            hparams: The flags.
            results: Tags, by run.
        """
        with self._run(JOB).as_default(0):
            hp.hparams_config(
                hparams=[hp.HParam(name) for name in hparams],
                metrics=[
                    hp.Metric(tag, group=run, display_name=f"{run} {tag.split('/')[-1]}")
                    for run, tags in results.items()
                    for tag in tags
                ],
            )

    def flush(self) -> None:
        """Puts everything on disk, where a killed job leaves it.

        Warns, once, if the job's file hasn't grown although something was added to it.
        """
        # TensorFlow's summary writer says nothing where the disk is full.
        for writer in self._writers.values():
            writer.flush()
        before, self._bytes = self._bytes, self._bytes_on_disk()
        expected, self._has_more = self._has_more, False
        if expected and self._bytes <= before and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"Monitor's event file in {self._folder!r} no longer grows; is the disk full? "
                "Training goes on, but TensorBoard won't show the rest of it.",
                RuntimeWarning,
                stacklevel=2,
            )

    def _run(self, run: str) -> Any:
        self._has_more |= run == JOB
        if run not in self._writers:
            path = self._folder if run == JOB else tf.io.gfile.join(self._folder, run)
            self._writers[run] = tf.summary.create_file_writer(path)
        return self._writers[run]

    def _bytes_on_disk(self) -> int:
        files = tf.io.gfile.glob(tf.io.gfile.join(self._folder, "events.out.tfevents.*"))
        return sum(tf.io.gfile.stat(file).length for file in files)


def _plain(value: Any) -> Any:
    """What the page HPARAMS can show: numbers, booleans, and strings of the rest."""
    return value if isinstance(value, bool | int | float | str | np.generic) else str(value)
