"""`horovod.spark.keras`: Horovod's estimator, whose learning rate grows with the workers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras

from tfddl._src.estimator import estimator, model
from tfddl._src.estimator.params import with_params
from tfddl._src.estimator.training import Trained, train
from tfddl._src.horovod.compression import Compression
from tfddl._src.horovod.keras_wrappers import DistributedOptimizer
from tfddl._src.horovod.spark_backend import Backend
from tfddl.errors import UnsupportedError

# Of Petastorm's readers, in whose place is tfddl.open_parquet.
_NO_EFFECT = {
    "shuffle_buffer_size": "rows in a buffer",
    "partitions_per_process": "files per worker",
    "compress_sparse_cols": "whether sparse vectors are stored as such, which they are",
    "train_reader_num_workers": "threads that read",
    "val_reader_num_workers": "threads that read",
    "reader_pool_type": "how they read",
    "inmemory_cache_all": "whether data stays in memory",
    "mp_start_method": "how processes start",
}
_REFUSED = {
    "transformation_fn": "a function of batches",
    "transformation_edit_fields": "its new columns",
    "transformation_removed_fields": "its columns that are gone",
    "data_module": "how data is read",
}


class KerasModel(model.KerasModel):
    """`tfddl.spark.KerasModel`; where a label is of integers, a single prediction is rounded."""

    __module__ = "tfddl.horovod.spark.keras"
    _rounds_integers = True


@with_params(
    {
        **{name: (doc, None) for name, doc in {**_NO_EFFECT, **_REFUSED}.items()},
        "backend": ("what runs the workers", None),
        "checkpoint_callback": ("the callback whose last model is the result", None),
    }
)
class KerasEstimator(estimator.KerasEstimator):
    """`tfddl.spark.KerasEstimator` with Horovod's parameters, by name.

    As Horovod's, it trains with the optimizer's learning rate times the number of workers, and the
    model that it returns has the optimizer's again.
    """

    __module__ = "tfddl.horovod.spark.keras"
    _model_class = KerasModel
    _scales_learning_rate = True
    _as_horovod = True

    def __init__(
        self,
        *,
        backend: Backend | None = None,
        checkpoint_callback: keras.callbacks.ModelCheckpoint | None = None,
        **params: Any,
    ) -> None:
        """Keeps the parameters.

        Args:
            backend: A `SparkBackend`, or what else runs a function on workers; besides it there is
                no num_proc.
            checkpoint_callback: A `ModelCheckpoint`, whose file is in the store; the model that it
                has saved last is the result.
            **params: Those of `tfddl.spark.KerasEstimator`. Of Horovod's others, those of
                Petastorm's readers have no effect, and transformation_fn and data_module are
                errors.

        Raises:
            UnsupportedError: One of these, or both backend and num_proc.
        """
        own = {name: params.pop(name, None) for name in (*_NO_EFFECT, *_REFUSED)}
        for name in _REFUSED:
            if own[name] is not None:
                raise UnsupportedError(
                    f"KerasEstimator(…, {name}=…) isn't supported: workers read the columns as "
                    "Spark has written them. HINT: transform the DataFrame before fit"
                )
        if backend is not None and params.get("num_proc") is not None:
            raise UnsupportedError(
                "both backend and num_proc are given; expected one of the two. HINT: "
                "SparkBackend(num_proc=…)"
            )
        defaults = {"batch_size": 32, "epochs": 1, "verbose": 1}
        params |= {n: value for n, value in defaults.items() if params.get(n) is None}
        super().__init__(**params)
        own |= {"backend": backend, "checkpoint_callback": checkpoint_callback}
        self._setDefault(**dict.fromkeys(own))
        self._set(**own)

    def _count_workers(self) -> int:
        backend = self.getOrDefault("backend")
        if backend is None:
            return super()._count_workers()
        size: int = backend.num_processes()
        return size

    def _run(self, data: bytes, size: int) -> Trained:
        backend = self.getOrDefault("backend")
        if backend is None:
            return super()._run(data, size)
        found: Trained = backend.run(train, args=(data,), env=self._environment())[0]
        return found

    def _wrapper(self) -> Callable[[Any], Any]:
        compression = self.getOrDefault("gradient_compression") or Compression.none
        return functools.partial(DistributedOptimizer, compression=compression)

    def _checkpoint_callback(self) -> keras.callbacks.ModelCheckpoint | None:
        return self.getOrDefault("checkpoint_callback")
