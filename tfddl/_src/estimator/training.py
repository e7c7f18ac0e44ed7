"""What each worker of a `KerasEstimator` does."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfddl._src import api
from tfddl._src.callbacks import Checkpoint
from tfddl._src.data import ParquetColumn, open_parquet, shard_dataset
from tfddl._src.estimator import pickling
from tfddl._src.estimator.best_model import BestModel
from tfddl._src.estimator.dataset import Columns, Dataset
from tfddl._src.estimator.store import local_path
from tfddl.errors import DataError, UnsupportedError

_LOG = logging.getLogger("tfddl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """A training, as all workers get it.

    Attributes:
        model: not compiled.
        optimizer: of one process.
        optimizer_values: of its variables; empty where it has none yet.
        wrap: makes the optimizer average gradients.
        scales_learning_rate: by the number of workers, as Horovod's estimator does.
        compile_args: further arguments of `compile`.
        fit_args: further arguments of `fit`.
        callbacks: of the user.
        custom_objects: classes and functions by name, for Keras.
        best: a callback whose last saved weights are the result.
        dataset: what is read.
        batch_size: rows per worker and step.
        val_batch_size: the same, of validation.
        seed: of weights and dropout; None leaves them random.
        shuffle_seed: of the order of rows; None keeps it.
        run_path: a directory of this training.
        checkpoints: a directory's path; None saves nothing.
        save_every_steps: as of `Checkpoint`.
        logs: of TensorBoard; None writes none.
    """

    model: keras.Model
    optimizer: Any
    optimizer_values: Sequence[np.ndarray]
    wrap: Callable[[Any], Any]
    scales_learning_rate: bool
    compile_args: dict[str, Any]
    fit_args: dict[str, Any]
    callbacks: Sequence[keras.callbacks.Callback]
    custom_objects: dict[str, Any]
    best: keras.callbacks.ModelCheckpoint | None
    dataset: Dataset
    batch_size: int
    val_batch_size: int
    seed: int | None
    shuffle_seed: int | None
    run_path: str
    checkpoints: str | None
    save_every_steps: int | None
    logs: str | None

    def dumps(self) -> bytes:
        """The bytes of this training.

        Raises:
            LaunchError: A part of it can't be pickled; the message says which.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return pickling.dumps(fields, self.custom_objects)


@dataclasses.dataclass(frozen=True)
class Trained:
    """What comes of a training.

    Attributes:
        model: its bytes, by `pickling`, of the one entry "model".
        optimizer_values: of the optimizer's variables.
        history: of `fit`.
        size: the number of workers.
    """

    model: bytes
    optimizer_values: list[np.ndarray]
    history: dict[str, list[float]]
    size: int


def train(data: bytes) -> Trained | None:
    """Trains; called on all workers together.

    Args:
        data: Of `Training.dumps`.

    Returns:
        On rank 0 what came of it.
    """
    api.init()
    training = Training(**pickling.loads(data))
    if training.seed is not None:
        keras.utils.set_random_seed(training.seed)
    model, dataset = training.model, training.dataset
    validation = None
    if dataset.validation is not None:
        validation = _read(training, dataset.validation, training.val_batch_size, None)
    keeps_run = training.checkpoints is not None and _is_writable(training.run_path)
    with (
        keras.saving.custom_object_scope(training.custom_objects),
        _best_model(training, keeps_run) as best,
    ):
        _compile(training)
        history = model.fit(
            _read(training, dataset.train, training.batch_size, training.shuffle_seed),
            validation_data=validation,
            callbacks=_callbacks(training, best, keeps_run),
            **training.fit_args,
        )
        if best is not None and best.path.exists():
            model.load_weights(best.path)
    if api.rank() != 0:
        return None
    return Trained(
        pickling.dumps({"model": model}, training.custom_objects),
        values_of(model.optimizer),
        {name: [float(v) for v in values] for name, values in history.history.items()},
        api.size(),
    )


def _compile(training: Training) -> None:
    """Compiles with an optimizer that averages, and has the values that it had."""
    optimizer = training.wrap(training.optimizer)
    restore(optimizer, training.model, training.optimizer_values)
    if training.scales_learning_rate:
        scale_learning_rate(optimizer, api.size())
    training.model.compile(optimizer, **training.compile_args)


def restore(optimizer: Any, model: keras.Model, values: Sequence[np.ndarray]) -> None:
    """Gives an optimizer's variables values, those of its slots included."""
    if values:
        optimizer.build(model.trainable_variables)
        for variable, value in zip(optimizer.variables, values, strict=True):
            variable.assign(value)


def values_of(optimizer: Any) -> list[np.ndarray]:
    """Of all variables, those of slots included; empty where it has no slots yet."""
    return [np.asarray(value) for value in optimizer.variables] if optimizer.built else []


def compile_for_one_process(
    model: keras.Model, optimizer: Any, values: Sequence[np.ndarray], arguments: dict[str, Any]
) -> None:
    """Compiles a trained model with the optimizer's state, so that it can be trained further."""
    model.compile(optimizer, **arguments)
    # Not the one above: with mixed_float16 compile has put another around it.
    restore(model.optimizer, model, values)


def scale_learning_rate(optimizer: Any, factor: float) -> None:
    """Multiplies the learning rate.

    Raises:
        UnsupportedError: It is a schedule.
    """
    innermost = getattr(optimizer, "inner_optimizer", optimizer)
    if isinstance(innermost.get_config()["learning_rate"], dict):
        raise UnsupportedError(
            "the optimizer's learning rate is a schedule, which can't be multiplied by the number "
            "of workers. HINT: tfddl.spark.KerasEstimator doesn't multiply it"
        )
    innermost.learning_rate = float(np.asarray(innermost.learning_rate)) * factor


def check_columns(dataset: Dataset, model: keras.Model) -> None:
    """Reads the first row of each column, before any worker starts.

    Raises:
        DataError: A column can't be read, or doesn't fit the model's input.
    """
    for path in (dataset.train, dataset.validation):
        if path is not None:
            found = open_parquet(local_path(path), dataset.columns.names)
            _features(found, dataset.columns, model)
            _labels(found, dataset.columns)


def fit_input(column: ParquetColumn, tensor: Any) -> ParquetColumn:
    """A column with the dtype, and the shape of a row, that an input of the model has.

    Args:
        column: Of numbers.
        tensor: The input; None where the model says nothing of it.
    """
    if tensor is None:
        is_double = column.dtype == np.float64
        return column.astype(keras.config.floatx()) if is_double else column
    return column.astype(tensor.dtype).reshape(*row_shape(column.shape[1:], tensor.shape[1:]))


def row_shape(stored: tuple[int, ...], wanted: Sequence[int | None]) -> tuple[int, ...]:
    """The shape that stored rows get: the wanted one, if it has as many values.

    Args:
        stored: Of a row.
        wanted: Of a row, None where any number fits.
    """
    known = math.prod(size for size in wanted if size is not None)
    if sum(size is None for size in wanted) != 1:
        return stored if None in wanted else tuple(map(int, wanted))  # type: ignore[arg-type]
    free = math.prod(stored) // known
    return tuple(free if size is None else int(size) for size in wanted)


def model_inputs(model: keras.Model) -> list[Any]:
    """The inputs of a functional model; empty where it has none, or isn't built."""
    # Sequential raises where it isn't built, other models may not have the attribute.
    return keras.tree.flatten(getattr(model, "inputs", ())) if model.built else []


def _read(training: Training, path: str, batch_size: int, seed: int | None) -> tf.data.Dataset:
    columns = training.dataset.columns
    found = open_parquet(local_path(path), columns.names)
    y = _labels(found, columns)
    weight = columns.sample_weight and found[columns.sample_weight].astype("float32")
    x = _features(found, columns, training.model)
    return shard_dataset(x, y, weight, batch_size=batch_size, seed=seed)


def _features(found: dict[str, ParquetColumn], columns: Columns, model: keras.Model) -> Any:
    tensors = model_inputs(model) or [None] * len(columns.features)
    if len(tensors) != len(columns.features):
        raise DataError(
            f"the model has {len(tensors)} inputs, and there are {len(columns.features)} "
            f"feature_cols: {', '.join(columns.features)}; expected one for each input. HINT: "
            "VectorAssembler makes one column of several"
        )
    parts = [fit_input(found[n], t) for n, t in zip(columns.features, tensors, strict=True)]
    return parts[0] if len(parts) == 1 else tuple(parts)


def _labels(found: dict[str, ParquetColumn], columns: Columns) -> Any:
    parts = []
    for i, name in enumerate(columns.labels):
        column = fit_input(found[name], None)
        shape = columns.label_shapes[i] if columns.label_shapes else None
        parts.append(
            column if shape is None else column.reshape(*row_shape(column.shape[1:], shape))
        )
    return parts[0] if len(parts) == 1 else tuple(parts)


def _callbacks(
    training: Training, best: BestModel | None, keeps_run: bool
) -> list[keras.callbacks.Callback]:
    callbacks = list(training.callbacks)
    if best is not None:
        callbacks += [training.best, best]
    if training.logs is not None:
        boards = [c for c in callbacks if isinstance(c, keras.callbacks.TensorBoard)]
        if not keeps_run:
            callbacks = [c for c in callbacks if c not in boards]
        elif not boards:
            boards = [keras.callbacks.TensorBoard()]
            callbacks += boards
        for board in boards:
            board.log_dir = local_path(training.logs)
    if training.checkpoints is not None and keeps_run:
        callbacks.append(
            Checkpoint(local_path(training.checkpoints), save_every_steps=training.save_every_steps)
        )
    return callbacks


@contextlib.contextmanager
def _best_model(training: Training, keeps_run: bool) -> Iterator[BestModel | None]:
    """On rank 0, which alone saves, the file of `Training.best`; it is removed afterwards."""
    if training.best is None or api.rank() != 0:
        yield None
        return
    stored = local_path(training.run_path) if keeps_run else None
    # Without checkpoints it begins anew, and a run of the same name may have left a file.
    resumes = keeps_run and tf.io.gfile.exists(local_path(str(training.checkpoints)))
    with tempfile.TemporaryDirectory(prefix="tfddl-best-") as directory:
        yield BestModel(training.best, directory, stored=stored, resumes=resumes)


def _is_writable(path: str) -> bool:
    """Whether TensorFlow reaches a path: Spark and pyarrow reach more file systems than it does."""
    scheme = path.partition("://")[0] if "://" in path else ""
    if scheme in tf.io.gfile.get_registered_schemes():
        return True
    if api.rank() == 0:
        _LOG.warning(
            "TensorFlow can't write to %s:// here: there are neither checkpoints nor TensorBoard's "
            "logs, and a training that fails begins anew. HINT: a store that is mounted, or gs://; "
            "or tensorflow-io",
            scheme,
        )
    return False
