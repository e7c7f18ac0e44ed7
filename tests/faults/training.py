"""The training that faults are injected into: it records what it trains on, and fails by itself."""

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
from tests import namespaces
from tests.faults import cases
from tests.faults.cases import Action, Fault, Point, Precondition
from tfddl._src.checkpoint import CheckpointStore, Snapshot
from tfddl._src.keras_hooks.fit_state import current_fit
from tfddl._src.runtime import current

_FEATURES = 5
_PIECE = b"\0" * 4096
_DAMAGED_BYTES = 256
_SMALL_DISK_BYTES = 64 << 20
_REQUEST_S = 60.0


def train(  # noqa: PLR0913
    directory: Path,
    fault: Fault | None,
    *,
    resizable: bool,
    epochs: int,
    pause_s: float,
    start: str,
) -> None:
    """Trains with the fault of a case. All ranks must call it together.

    Args:
        directory: Where checkpoints, records and the final weights are written.
        fault: The case; None for the reference training.
        resizable: Train as where the number of workers changes: without randomness.
        epochs: Number of epochs.
        pause_s: Seconds that are added to each step.
        start: Identifies this start of the job in the records.
    """
    keras.utils.set_random_seed(3)
    tf.config.experimental.enable_op_determinism()
    recorder = Recorder(directory, fault, pause_s=pause_s, start=start)
    changes_size = resizable or (fault is not None and fault.is_repeated)
    model = _model(recorder, is_random=not changes_size)
    optimizer = tfddl.DistributedOptimizer(keras.optimizers.Adam(0.01))
    model.compile(optimizer, loss="binary_crossentropy", metrics=["accuracy"])
    x, y = _examples(cases.EXAMPLES)
    size = tfddl.size()
    data = tfddl.shard_dataset(x, y, batch_size=_batch_size(size, changes_size), seed=1)
    checkpoint = tfddl.callbacks.Checkpoint(
        directory / "checkpoints", save_every_steps=cases.SAVE_EVERY
    )
    checkpoint.store = _store(checkpoint.store, recorder)
    recorder.checkpoint = checkpoint
    validation = _examples(40)
    model.fit(
        data, epochs=epochs, validation_data=validation, callbacks=[checkpoint, recorder], verbose=0
    )
    if tfddl.rank() == 0:
        np.savez(directory / "weights.npz", *[np.asarray(w) for w in model.weights])


def _batch_size(size: int, changes_size: bool) -> int:
    """Where the number of workers changes, the global batch stays the same."""
    return 24 // size if changes_size else cases.GLOBAL_BATCH // size


def _examples(count: int) -> tuple[np.ndarray, np.ndarray]:
    """x of shape (count, 1 + features), first the example's number; y of shape (count, 1)."""
    rng = np.random.default_rng(count)
    x = rng.normal(size=(count, _FEATURES)).astype("float32")
    y = (x.sum(axis=1, keepdims=True) > 0).astype("float32")
    return np.concatenate([np.arange(count, dtype="float32")[:, None], x], axis=1), y


def _model(recorder: "Recorder", *, is_random: bool) -> keras.Model:
    inputs = keras.Input((1 + _FEATURES,))
    hidden = keras.layers.Dense(16, activation="tanh")(_RecordingLayer(recorder)(inputs))
    if is_random:
        hidden = keras.layers.BatchNormalization()(hidden)
        hidden = keras.layers.Dropout(0.3)(hidden)
    return keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(hidden))


class Recorder(keras.callbacks.Callback):
    """Records what a worker trains on, and injects the fault."""

    def __init__(self, directory: Path, fault: Fault | None, *, pause_s: float, start: str) -> None:
        super().__init__()
        self.checkpoint: Any = None
        self._directory, self._fault, self._pause_s = directory, fault, pause_s
        self._rank, self._epoch, self._step = tfddl.rank(), 0, 0
        self._validating = False
        self._filler: _Filler | None = None
        self._start = start
        self._marker = directory / f"injected.{self._rank}"
        self._has_stepped = False
        # Each line is one write(), so that the death of the process cuts none.
        self._seen = (directory / f"seen.{self._rank}").open("a", buffering=1)
        self._append(
            "starts", {"pid": os.getpid(), "sessions": [os.getsid(0), os.getsid(os.getppid())]}
        )

    def _append(self, name: str, what: Mapping[str, Any]) -> None:
        with (self._directory / f"{name}.{self._rank}").open("a") as file:
            file.write(json.dumps({**what, "start": self._start}) + "\n")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch
        if not self._has_stepped:
            fit = current_fit()
            assert fit is not None
            position = fit.position()
            self._append("from", {"epoch": position.epoch, "consumed": position.consumed})

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._step = batch
        if self._filler is not None:
            self.checkpoint.wait()
            self._filler.empty()
            self._filler = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not self._has_stepped:
            self._has_stepped = True
            self._append("first", {"time": time.time()})
        if self._is_time(cases.FILL_STEP) and self._has_precondition(Precondition.FULL_DISK):
            self.checkpoint.wait()
            self._filler = _Filler(self._directory / "checkpoints" / "filler")

    def on_test_begin(self, logs: Any = None) -> None:
        self._validating = True

    def on_test_end(self, logs: Any = None) -> None:
        self._validating = False

    def record(self, ids: np.ndarray, training: bool) -> np.ndarray:
        """Records a batch, from within the step, and injects the fault when it is due."""
        if training:
            line = {"epoch": self._epoch, "step": self._step}
            known = {**line, "start": self._start, "ids": ids.astype(int).tolist()}
            self._seen.write(json.dumps(known) + "\n")
            time.sleep(self._pause_s)
            if self._fault is not None and self._fault.action is Action.RESIZE:
                self._resize_if_due()
            elif self._fault is not None and self._fault.point is Point.STEP:
                self._inject_if(self._is_time(self._fault.step))
        elif self._validating and self._fault is not None:
            in_it = self._fault.point is Point.VALIDATION and self._epoch == cases.EPOCH
            self._inject_if(in_it)
        return np.zeros((), np.int32)

    def fails_while_writing(self) -> bool:
        """Whether the fault comes while the next file is written."""
        fault = self._fault
        in_it = fault is not None and fault.point is Point.CHECKPOINT and self._rank in fault.ranks
        return in_it and self._epoch == cases.EPOCH and not self._marker.exists()

    def inject(self) -> None:
        assert self._fault is not None
        self._marker.write_text(repr(time.time()))
        _ACTIONS[self._fault.action]()

    def _inject_if(self, is_time: bool) -> None:
        fault = self._fault
        if not is_time or fault is None or self._rank not in fault.ranks:
            return
        if fault.is_repeated and tfddl.size() < fault.num_workers:
            return
        if self._marker.exists() and not fault.is_repeated:
            return
        if fault.precondition is Precondition.DAMAGED:
            self.checkpoint.wait()
            _damage(self.checkpoint.store.files()[0])
        self.inject()

    def _resize_if_due(self) -> None:
        """Changes what the host discovery script prints, and stays in the step until that shows."""
        step, workers = cases.RESIZES.get(tfddl.size(), (-1, 0))
        if self._rank or not self._is_time(step):
            return
        new = self._directory / "hosts.new"
        new.write_text(f"localhost:{workers}\n")
        new.rename(self._directory / "hosts")
        self.inject()
        end_s = time.monotonic() + _REQUEST_S
        while not current().progress_page.save_is_requested:
            if time.monotonic() > end_s:
                raise TimeoutError(f"no request to save within {_REQUEST_S:.0f} s")
            time.sleep(0.01)

    def _is_time(self, step: int) -> bool:
        return (self._epoch, self._step) == (cases.EPOCH, step)

    def _has_precondition(self, precondition: Precondition) -> bool:
        here = self._rank == 0 and not (self._directory / "injected.1").exists()
        return here and self._fault is not None and self._fault.precondition is precondition


class _RecordingLayer(keras.layers.Layer):
    """Takes the example's number off the input, and has it recorded."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Records within the step, before anything else of it is done."""
        arguments = [inputs[:, 0], tf.constant(bool(training))]
        done = tf.numpy_function(self._recorder.record, arguments, tf.int32)
        with tf.control_dependencies([done]):
            return tf.identity(inputs[:, 1:])

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (input_shape[0], _FEATURES)


def _store(store: CheckpointStore, recorder: Recorder) -> CheckpointStore:
    """The same store; the fault may come while it writes."""

    @dataclasses.dataclass(frozen=True)
    class FailingStore(CheckpointStore):
        def write(self, snapshot: Snapshot, *, step: int, is_best: bool = False) -> Any:
            if recorder.fails_while_writing():
                array: Any = _FailingArray(recorder)
                snapshot = Snapshot(snapshot.meta, {**snapshot.arrays, "last": array})
            return super().write(snapshot, step=step, is_best=is_best)

    return FailingStore(store.directory, store.keep)


class _FailingArray:
    """Looks like an array, and injects the fault when it is written."""

    dtype = np.dtype("float32")

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        self._recorder.inject()
        return np.zeros(1, np.float32)


class _Filler:
    """A full disk, until `empty`: a small one is filled, otherwise RLIMIT_FSIZE is set."""

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
        if self._path is not None:
            self._path.unlink()
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)


def _damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    # So many that data is among them: a single one may be the date in a header of the archive.
    for i in range(len(data) // 2, len(data) // 2 + _DAMAGED_BYTES):
        data[i] ^= 1
    path.write_bytes(data)


def _stop() -> None:
    # To this thread: sent to the process, another might take it while this one goes on.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def _hang() -> None:
    for _ in itertools.count():
        time.sleep(0.01)


def _crash() -> None:
    raise RuntimeError("injected")


def _tfddlrun() -> int:
    """The pid of the process that the user started: the parent of the one that started this one."""
    text = Path(f"/proc/{os.getppid()}/stat").read_text()
    return int(text.rpartition(")")[2].split()[1])


_ACTIONS: Mapping[Action, Callable[[], None]] = {
    Action.KILL: lambda: os.kill(os.getpid(), signal.SIGKILL),
    Action.STOP: _stop,
    Action.TERM: lambda: os.kill(os.getpid(), signal.SIGTERM),
    Action.HANG: _hang,
    Action.CRASH: _crash,
    Action.KILL_LAUNCHER: lambda: os.kill(_tfddlrun(), signal.SIGKILL),
    Action.TERM_LAUNCHER: lambda: os.kill(_tfddlrun(), signal.SIGTERM),
    Action.DISCONNECT: lambda: namespaces.disconnect(None),
    Action.RESIZE: lambda: None,
}
