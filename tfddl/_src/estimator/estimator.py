"""`KerasEstimator`: trains a Keras model on a DataFrame."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
from pyspark.ml import Estimator

from tfddl._src.engines.spark import call_on_tasks, find_context, wait_for_slots
from tfddl._src.estimator import pickling
from tfddl._src.estimator.dataset import Columns, Dataset, Split, describe, write
from tfddl._src.estimator.model import KerasModel
from tfddl._src.estimator.params import BOOL, FLOATS, INT, STRING, STRINGS, with_params
from tfddl._src.estimator.persistence import Persistent
from tfddl._src.estimator.store import Store
from tfddl._src.estimator.training import (
    Trained,
    Training,
    check_columns,
    compile_for_one_process,
    scale_learning_rate,
    train,
    values_of,
)
from tfddl._src.keras_hooks.optimizer import DistributedOptimizer
from tfddl._src.remote_call.pickling import Call
from tfddl.errors import LaunchError, UnsupportedError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_LOG = logging.getLogger("tfddl")


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """A training, and its bytes."""

    training: Training
    data: bytes
    label_kinds: tuple[str, ...]


@with_params(
    {
        "model": ("the Keras model", None),
        "optimizer": ("the optimizer of one process", None),
        "loss": ("the loss, or one for each output", None),
        "loss_weights": ("weights of the losses", FLOATS),
        "metrics": ("metrics of Keras", None),
        "feature_cols": ("columns that are the inputs of the model", STRINGS),
        "label_cols": ("columns that it learns", STRINGS),
        "sample_weight_col": ("the column with the weight of each row", STRING),
        "label_shapes": ("shapes of a row of each label", None),
        "validation": ("a part of the rows, or the column that says which", None),
        "batch_size": ("rows per worker and step", INT),
        "val_batch_size": ("rows per worker and step of validation", INT),
        "epochs": ("how often all rows are trained on", INT),
        "train_steps_per_epoch": ("steps of an epoch", INT),
        "validation_steps_per_epoch": ("steps of a validation", INT),
        "shuffle": ("whether each epoch has an order of its own", BOOL),
        "random_seed": ("the seed of order, weights and dropout", INT),
        "callbacks": ("callbacks of Keras, on all workers", None),
        "custom_objects": ("classes and functions by name, for Keras", None),
        "gradient_compression": ("how gradients travel", None),
        "num_proc": ("the number of workers", INT),
        "store": ("where data, checkpoints and logs are", None),
        "run_id": ("the name of the training in the store", STRING),
        "save_every_steps": ("how often a checkpoint is saved within an epoch", INT),
        "max_restarts": ("how often all start again after a failure", INT),
        "start_timeout": ("seconds that executors and workers have to start", None),
        "backend_env": ("environment variables of the workers", None),
        "use_gpu": ("whether workers use the GPUs that Spark gives to tasks", BOOL),
        "verbose": ("as of fit; its output is in the logs of the executors", INT),
    }
)
class KerasEstimator(Estimator, Persistent):
    """An Estimator of Spark ML that trains a Keras model on a DataFrame by several workers.

    ``fit(df)`` writes the columns to the store as Parquet, once, and trains on them as
    `tfddl.spark.run` does: one worker per task of a barrier stage, each of which reads its shard
    by `tfddl.open_parquet`. It returns a `tfddl.spark.KerasModel`, a Transformer. N workers compute
    what one would with a batch of N times the size; the learning rate is that of the optimizer.

    Columns are numbers, arrays of numbers, or vectors of Spark ML, dense or sparse; rows get the
    shape and the dtype that the model's inputs have, so that a vector of 784 numbers is an image of
    (28, 28, 1). Floating-point labels and weights are read as float32. Nulls are an error.

    After a failure (``max_restarts``), and where ``fit`` is called again with the ``run_id`` of a
    training that has failed, it resumes from the newest checkpoint in the store. When it has
    succeeded its checkpoints are removed, and a training of that name begins anew.

    Each parameter also has a getter and a setter (``getBatchSize``, ``setBatchSize``), and can be
    given to ``fit(df, {estimator.batch_size: 64})``.
    """

    # Under this name Spark's own files, such as those of a Pipeline, find the class again.
    __module__ = "tfddl.spark"
    _model_class: type[KerasModel] = KerasModel
    _scales_learning_rate = False
    _as_horovod = False

    def __init__(  # noqa: PLR0913 - the parameters of a training, by keyword
        self,
        *,
        model: keras.Model | None = None,
        optimizer: keras.optimizers.Optimizer | str | None = None,
        loss: Any = None,
        loss_weights: Sequence[float] | None = None,
        metrics: Sequence[Any] | None = None,
        feature_cols: Sequence[str] | None = None,
        label_cols: Sequence[str] | None = None,
        sample_weight_col: str | None = None,
        label_shapes: Sequence[Sequence[int] | None] | None = None,
        validation: float | str | None = None,
        batch_size: int = 32,
        val_batch_size: int | None = None,
        epochs: int = 1,
        train_steps_per_epoch: int | None = None,
        validation_steps_per_epoch: int | None = None,
        shuffle: bool = True,
        random_seed: int | None = None,
        callbacks: Sequence[keras.callbacks.Callback] | None = None,
        custom_objects: Mapping[str, Any] | None = None,
        gradient_compression: Any = None,
        num_proc: int | None = None,
        store: Store | None = None,
        run_id: str | None = None,
        save_every_steps: int | None = None,
        max_restarts: int = 0,
        start_timeout: float | None = None,
        backend_env: Mapping[str, str] | None = None,
        use_gpu: bool = True,
        verbose: int = 2,
    ) -> None:
        """Keeps the parameters; `fit` checks them.

        Args:
            model: A Keras model. One that isn't built yet is built on the workers.
            optimizer: Its optimizer; None is that with which the model was compiled.
            loss: As of `compile`; None is that with which the model was compiled.
            loss_weights: As of `compile`.
            metrics: As of `compile`.
            feature_cols: A column for each input of the model, in their order.
            label_cols: A column for each output.
            sample_weight_col: The weight of each row.
            label_shapes: For each label the shape of a row, or None as it is stored.
            validation: The part of the rows that is drawn for validation, above 0 and below 1, or
                the column that is true, or 1, for these rows.
            batch_size: Rows per worker and step.
            val_batch_size: Of validation; None is ``batch_size``.
            epochs: How often all rows are trained on.
            train_steps_per_epoch: As ``steps_per_epoch`` of `fit`; None is all rows.
            validation_steps_per_epoch: As ``validation_steps`` of `fit`.
            shuffle: Whether each epoch has an order of its own; False keeps that of the DataFrame.
            random_seed: Of the order of rows, the draw for validation, weights and dropout; None is
                0 for the first two, and leaves the others random.
            callbacks: Of Keras, as on all workers of `fit`. `TensorBoard` writes to the store's
                logs; one is added where there is none.
            custom_objects: For Keras. Classes and functions of a script or notebook, and what is
                registered with Keras, are found without it.
            gradient_compression: As of `tfddl.DistributedOptimizer`.
            num_proc: The number of workers; None is one for each slot.
            store: Where data, checkpoints and logs are; None is a temporary directory, with a local
                master only.
            run_id: The name of the training in the store; None is a new one.
            save_every_steps: Also saves a checkpoint within epochs, after so many steps.
            max_restarts: As of `tfddl.spark.run`.
            start_timeout: As of `tfddl.spark.run`.
            backend_env: Environment variables for the workers.
            use_gpu: False hides all GPUs from the workers.
            verbose: As of `fit`.
        """
        super().__init__()
        given = {name: value for name, value in locals().items() if self.hasParam(name)}
        self._setDefault(**dict.fromkeys(given))
        self._set(**given)

    def get_state(self) -> dict[str, Any]:
        """The parameters; optimizer and loss also where the model was compiled with them."""
        state = super().get_state()
        compiled = ((n, getattr(state["model"], n, None)) for n in ("optimizer", "loss"))
        return state | {name: value for name, value in compiled if state[name] is None}

    def fit_on_parquet(self, params: dict[Any, Any] | None = None) -> KerasModel:
        """Trains on Parquet files that are there already, those of the store's paths.

        They are `Store.get_train_data_path` and, if it is there, `Store.get_val_data_path`; vectors
        of Spark ML in them are fine. ``validation`` must be None.

        Args:
            params: Parameters for this training, as of `fit`.

        Raises:
            DataError: A column is missing, or can't be read.
            LaunchError: As of `tfddl.spark.run`.
        """
        this = self.copy(params) if params else self
        this._check()
        store = this.getOrDefault("store")
        if store is None or this.getOrDefault("validation") is not None:
            raise UnsupportedError(
                "fit_on_parquet reads the training and validation data of a store: expected store, "
                "and no validation. HINT: Store.create(path, train_path=…, val_path=…)"
            )
        size = this._count_workers()
        path = store.get_val_data_path()
        validation = path if store.exists(path) else None
        dataset = Dataset(this._columns(), store.get_train_data_path(), validation)
        run_id = this._choose_run_id()
        return this._train(this._prepare(dataset, store, run_id, size), store, run_id, size)

    def _fit(self, df: DataFrame) -> KerasModel:
        self._check()
        size = self._count_workers()
        run_id = self._choose_run_id()
        with self._open_store() as store:
            path = store.get_train_data_path(run_id)
            split = Split(self.getOrDefault("validation"), self._data_seed())
            is_named = self.getOrDefault("run_id") is not None
            keeps = is_named and store.exists(f"{path}/_SUCCESS")
            try:
                if keeps:
                    # Of a call that has failed: what Spark computes anew may be in another order.
                    _LOG.warning(
                        "resuming %s with the rows that it has begun with: %s", run_id, path
                    )
                    dataset = describe(self._columns(), path, split)
                else:
                    dataset = write(df, self._columns(), path, split)
                prepared = self._prepare(dataset, store, run_id, size)
                keeps = is_named  # From here on a training of this name can be resumed.
                model = self._train(prepared, store, run_id, size)
            except BaseException:
                if not keeps:
                    store.remove([path])
                raise
            store.remove([path])
            return model

    def _prepare(self, dataset: Dataset, store: Store, run_id: str, size: int) -> _Prepared:
        """All that can fail before workers start."""
        label_kinds = dataset.check(size)
        check_columns(dataset, self.getOrDefault("model"))
        training = self._make_training(dataset, store, run_id)
        return _Prepared(training, training.dumps(), label_kinds)

    def _train(self, prepared: _Prepared, store: Store, run_id: str, size: int) -> KerasModel:
        training = prepared.training
        trained = self._run(prepared.data, size)
        model = self._model_class(
            history=trained.history,
            model=self._load(trained, training),
            feature_columns=training.dataset.columns.features,
            label_columns=training.dataset.columns.labels,
            label_kinds=prepared.label_kinds,
            custom_objects=self.getOrDefault("custom_objects"),
            compile_args=training.compile_args,
            run_id=run_id,
        )
        if training.checkpoints is not None:  # Otherwise the next run of this name has ended, too.
            store.remove([training.checkpoints])
        return model

    def _run(self, data: bytes, size: int) -> Trained:
        found: Trained = call_on_tasks(
            Call(train, (data,), {}),
            num_proc=size,
            env=self._environment(),
            max_restarts=self.getOrDefault("max_restarts"),
            start_timeout=self.getOrDefault("start_timeout"),
            as_horovod=self._as_horovod,
        )[0]
        return found

    def _load(self, trained: Trained, training: Training) -> keras.Model:
        """The trained model, compiled for one process."""
        model = pickling.loads(trained.model)["model"]
        given = {"optimizer": training.optimizer, "args": training.compile_args}
        copied = pickling.loads(pickling.dumps(given, training.custom_objects))
        compile_for_one_process(
            model, copied["optimizer"], trained.optimizer_values, copied["args"]
        )
        if training.scales_learning_rate:
            scale_learning_rate(model.optimizer, 1 / trained.size)
        return model

    def _make_training(self, dataset: Dataset, store: Store, run_id: str) -> Training:
        get = self.getOrDefault
        model = get("model")
        optimizer = model.optimizer if get("optimizer") is None else get("optimizer")
        optimizer = keras.optimizers.get(optimizer)
        compile_args = {
            "loss": model.loss if get("loss") is None else get("loss"),
            "loss_weights": get("loss_weights"),
            "metrics": get("metrics"),
        }
        fit_args = {
            "epochs": get("epochs"),
            "steps_per_epoch": get("train_steps_per_epoch"),
            "validation_steps": get("validation_steps_per_epoch"),
            "verbose": get("verbose"),
        }
        return Training(
            model=model,
            optimizer=optimizer,
            optimizer_values=values_of(optimizer),
            wrap=self._wrapper(),
            scales_learning_rate=self._scales_learning_rate,
            compile_args=compile_args,
            fit_args=fit_args,
            callbacks=list(get("callbacks") or ()),
            custom_objects=dict(get("custom_objects") or {}),
            best=self._checkpoint_callback(),
            dataset=dataset,
            batch_size=get("batch_size"),
            val_batch_size=get("val_batch_size") or get("batch_size"),
            seed=get("random_seed"),
            shuffle_seed=self._data_seed() if get("shuffle") else None,
            run_path=store.get_run_path(run_id),
            checkpoints=store.get_checkpoint_path(run_id),
            save_every_steps=get("save_every_steps"),
            logs=store.get_logs_path(run_id),
        )

    def _checkpoint_callback(self) -> keras.callbacks.ModelCheckpoint | None:
        return None  # Horovod's estimator has one.

    def _wrapper(self) -> Callable[[Any], Any]:
        compression = self.getOrDefault("gradient_compression")
        if compression is None:
            return DistributedOptimizer
        return functools.partial(DistributedOptimizer, compression=compression)

    def _check(self) -> None:
        get = self.getOrDefault
        missing = [name for name in ("model", "feature_cols", "label_cols") if not get(name)]
        model = get("model")
        if model is not None:
            compiled = {"optimizer": "optimizer", "loss": "loss"}
            missing += [n for n in compiled if get(n) is None and getattr(model, n, None) is None]
        if missing:
            raise UnsupportedError(
                f"KerasEstimator needs {', '.join(missing)}. HINT: KerasEstimator(model=…, "
                "optimizer=…, loss=…, feature_cols=[…], label_cols=[…])"
            )
        if not isinstance(model, keras.Model):
            raise UnsupportedError(
                f"model is of type {type(model).__module__}.{type(model).__qualname__}; expected a "
                "keras.Model"
            )

    def _columns(self) -> Columns:
        get = self.getOrDefault
        shapes = tuple(s if s is None else tuple(s) for s in get("label_shapes") or ())
        return Columns(
            tuple(get("feature_cols")), tuple(get("label_cols")), get("sample_weight_col"), shapes
        )

    def _count_workers(self) -> int:
        """Before anything is written: whether there are slots for them."""
        timeout_s = self.getOrDefault("start_timeout")
        return wait_for_slots(find_context(None), self.getOrDefault("num_proc"), timeout_s)

    def _environment(self) -> dict[str, str]:
        variables = dict(self.getOrDefault("backend_env") or {})
        if not self.getOrDefault("use_gpu"):
            variables["CUDA_VISIBLE_DEVICES"] = "-1"
        return variables

    def _data_seed(self) -> int:
        return self.getOrDefault("random_seed") or 0

    def _choose_run_id(self) -> str:
        given: str | None = self.getOrDefault("run_id")
        return given or f"keras_{time.strftime('%Y%m%d_%H%M%S')}_{secrets.token_hex(4)}"

    @contextlib.contextmanager
    def _open_store(self) -> Iterator[Store]:
        store = self.getOrDefault("store")
        if store is not None:
            yield store
            return
        master = find_context(None).master
        if not master.startswith("local") or master.startswith("local-cluster"):
            raise LaunchError(
                f"there is no store, and {master} has executors on other hosts, perhaps. HINT: "
                "store=Store.create(path), a directory that they and this process reach"
            )
        with tempfile.TemporaryDirectory(prefix="tfddl-store-") as directory:
            yield Store.create(directory)
