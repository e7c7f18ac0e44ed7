"""A training that is struck: a worker's side. It writes down what it trains on."""

import contextlib
import dataclasses
import itertools
import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfddl
from tfddl._src.checkpoint import CheckpointStore, Snapshot
from tfddl._src.keras_hooks.fit_state import current_fit
from tfddl.bench import blows, namespaces
from tfddl.bench.blows import Act, Blow, Place, Trouble

_FEATURES = 5
_PIECE = b"\0" * 4096
_SMALL_DISK_BYTES = 64 << 20


def train(  # noqa: PLR0913
    directory: Path,
    blow: Blow | None,
    *,
    like_sizes: bool,
    epochs: int,
    pause_s: float,
    start: str,
) -> None:
    """Trains, and is struck as the case says. All ranks must call it together.

    Args:
        directory: Where checkpoints, notes and the final weights are written.
        blow: The case; None is an undisturbed training.
        like_sizes: Whether to train as where the number of workers changes: without randomness.
        epochs: How long.
        pause_s: Seconds that each step takes longer.
        start: The name of this start of the job.
    """
    keras.utils.set_random_seed(3)
    tf.config.experimental.enable_op_determinism()
    notes = Notes(directory, blow, pause_s=pause_s, start=start)
    changes_size = like_sizes or (blow is not None and blow.is_repeated)
    model = _model(notes, is_random=not changes_size)
    optimizer = tfddl.DistributedOptimizer(keras.optimizers.Adam(0.01))
    model.compile(optimizer, loss="binary_crossentropy", metrics=["accuracy"])
    x, y = _examples(blows.EXAMPLES)
    size = tfddl.size()
    data = tfddl.shard_dataset(x, y, batch_size=_batch_size(size, changes_size), seed=1)
    checkpoint = tfddl.callbacks.Checkpoint(
        directory / "checkpoints", save_every_steps=blows.SAVE_EVERY
    )
    checkpoint.store = _store(checkpoint.store, notes)
    notes.checkpoint = checkpoint
    validation = _examples(40)
    model.fit(
        data, epochs=epochs, validation_data=validation, callbacks=[checkpoint, notes], verbose=0
    )
    if tfddl.rank() == 0:
        np.savez(directory / "weights.npz", *[np.asarray(w) for w in model.weights])


def _batch_size(size: int, changes_size: bool) -> int:
    """As many examples in a step, whatever the number of workers, where that changes."""
    return 24 // size if changes_size else blows.GLOBAL_BATCH // size


def _examples(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Examples, shape (count, 1 + features), whose first column is their number, and labels."""
    rng = np.random.default_rng(count)
    x = rng.normal(size=(count, _FEATURES)).astype("float32")
    y = (x.sum(axis=1, keepdims=True) > 0).astype("float32")
    return np.concatenate([np.arange(count, dtype="float32")[:, None], x], axis=1), y


def _model(notes: "Notes", *, is_random: bool) -> keras.Model:
    inputs = keras.Input((1 + _FEATURES,))
    hidden = keras.layers.Dense(16, activation="tanh")(_Recorder(notes)(inputs))
    if is_random:
        hidden = keras.layers.BatchNormalization()(hidden)
        hidden = keras.layers.Dropout(0.3)(hidden)
    return keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(hidden))


class Notes(keras.callbacks.Callback):
    """What a worker writes down, and the hand that strikes it."""

    def __init__(self, directory: Path, blow: Blow | None, *, pause_s: float, start: str) -> None:
        super().__init__()
        self.checkpoint: Any = None
        self._directory, self._blow, self._pause_s = directory, blow, pause_s
        self._rank, self._epoch, self._step = tfddl.rank(), 0, 0
        self._validating = False
        self._filler: _Filler | None = None
        self._start = start
        self._marker = directory / f"struck.{self._rank}"
        self._has_stepped = False
        # Its line is written by one call, so that none is cut by the death of the process.
        self._seen = (directory / f"seen.{self._rank}").open("a", buffering=1)
        self._note(
            "starts", {"pid": os.getpid(), "sessions": [os.getsid(0), os.getsid(os.getppid())]}
        )

    def _note(self, name: str, what: Mapping[str, Any]) -> None:
        with (self._directory / f"{name}.{self._rank}").open("a") as file:
            file.write(json.dumps({**what, "start": self._start}) + "\n")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes the epoch, and where the start goes on."""
        self._epoch = epoch
        if not self._has_stepped:
            fit = current_fit()
            assert fit is not None
            position = fit.position()
            self._note("from", {"epoch": position.epoch, "consumed": position.consumed})

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Notes the step; makes room on the disk again."""
        self._step = batch
        if self._filler is not None:
            self.checkpoint.wait()
            self._filler.empty()
            self._filler = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Notes the first step of a start; fills the disk when it is time."""
        if not self._has_stepped:
            self._has_stepped = True
            self._note("first", {"time": time.time()})
        if self._is_time(blows.FILL_STEP) and self._has_trouble(Trouble.FULL_DISK):
            self.checkpoint.wait()
            self._filler = _Filler(self._directory / "checkpoints" / "filler")

    def on_test_begin(self, logs: Any = None) -> None:
        """Notes that validation has begun."""
        self._validating = True

    def on_test_end(self, logs: Any = None) -> None:
        """Notes that it has ended."""
        self._validating = False

    def record(self, ids: np.ndarray, training: bool) -> np.ndarray:
        """Notes a batch, from within the step; and strikes, when it is time."""
        if training:
            line = {"epoch": self._epoch, "step": self._step}
            known = {**line, "start": self._start, "ids": ids.astype(int).tolist()}
            self._seen.write(json.dumps(known) + "\n")
            time.sleep(self._pause_s)
            if self._blow is not None and self._blow.place is Place.STEP:
                self._strike_if(self._is_time(self._blow.step))
        elif self._validating and self._blow is not None:
            in_it = self._blow.place is Place.VALIDATION and self._epoch == blows.EPOCH
            self._strike_if(in_it)
        return np.zeros((), np.int32)

    def strike_while_writing(self) -> bool:
        """Whether the file that is about to be written is to be the last."""
        blow = self._blow
        in_it = blow is not None and blow.place is Place.WRITING and self._rank in blow.ranks
        return in_it and self._epoch == blows.EPOCH and not self._marker.exists()

    def strike(self) -> None:
        """Strikes now."""
        assert self._blow is not None
        self._marker.write_text(repr(time.time()))
        _ACTS[self._blow.act]()

    def _strike_if(self, is_time: bool) -> None:
        blow = self._blow
        if not is_time or blow is None or self._rank not in blow.ranks:
            return
        if blow.is_repeated and tfddl.size() < blow.num_workers:
            return
        if self._marker.exists() and not blow.is_repeated:
            return
        if blow.trouble is Trouble.DAMAGED:
            self.checkpoint.wait()
            _damage(self.checkpoint.store.files()[0])
        self.strike()

    def _is_time(self, step: int) -> bool:
        return (self._epoch, self._step) == (blows.EPOCH, step)

    def _has_trouble(self, trouble: Trouble) -> bool:
        here = self._rank == 0 and not (self._directory / "struck.1").exists()
        return here and self._blow is not None and self._blow.trouble is trouble


class _Recorder(keras.layers.Layer):
    """Takes the example's number off the input, and has it written down."""

    def __init__(self, notes: Notes) -> None:
        super().__init__()
        self._notes = notes

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Writes down within the step, before anything else of it is done."""
        arguments = [inputs[:, 0], tf.constant(bool(training))]
        done = tf.numpy_function(self._notes.record, arguments, tf.int32)
        with tf.control_dependencies([done]):
            return tf.identity(inputs[:, 1:])

    def compute_output_shape(self, input_shape: Any) -> Any:
        """One column less."""
        return (input_shape[0], _FEATURES)


def _store(store: CheckpointStore, notes: Notes) -> CheckpointStore:
    """The same store, whose files may be the last that are written."""

    @dataclasses.dataclass(frozen=True)
    class Struck(CheckpointStore):
        def write(self, snapshot: Snapshot, *, step: int, is_best: bool = False) -> Path:
            if notes.strike_while_writing():
                bomb: Any = _Bomb(notes)
                snapshot = Snapshot(snapshot.meta, {**snapshot.arrays, "last": bomb})
            return super().write(snapshot, step=step, is_best=is_best)

    return Struck(store.directory, store.keep)


class _Bomb:
    """Looks like an array, and strikes when its turn to be written has come."""

    dtype = np.dtype("float32")

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        self._notes.strike()
        return np.zeros(1, np.float32)


class _Filler:
    """A disk that is full for a while.

    A small one is filled; where there is none, files that are written may not grow.
    """

    def __init__(self, path: Path) -> None:
        room = os.statvfs(path.parent)
        self._path = path if room.f_bavail * room.f_frsize < _SMALL_DISK_BYTES else None
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if self._path is None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, self._limits[1]))
            return
        with self._path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(_PIECE)

    def empty(self) -> None:
        """There is room again."""
        if self._path is not None:
            self._path.unlink()
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)


def _damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _stop() -> None:
    # To this thread: sent to the process, another might take it while this one goes on.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def _hang() -> None:
    for _ in itertools.count():
        time.sleep(0.01)


def _crash() -> None:
    raise RuntimeError("struck")


def _tfddlrun() -> int:
    """The process that the user has started: its child is what has started this one."""
    text = Path(f"/proc/{os.getppid()}/stat").read_text()
    return int(text.rpartition(")")[2].split()[1])


_ACTS: Mapping[Act, Callable[[], None]] = {
    Act.KILL: lambda: os.kill(os.getpid(), signal.SIGKILL),
    Act.STOP: _stop,
    Act.TERM: lambda: os.kill(os.getpid(), signal.SIGTERM),
    Act.HANG: _hang,
    Act.CRASH: _crash,
    Act.KILL_LAUNCHER: lambda: os.kill(_tfddlrun(), signal.SIGKILL),
    Act.TERM_LAUNCHER: lambda: os.kill(_tfddlrun(), signal.SIGTERM),
    Act.CUT_OFF: lambda: namespaces.cut_off(None),
}
