"""Trainings on the tasks of Spark: ``pip install '.[spark]'`` in a checkout.

Usage::

    import tfddl.spark

    results = tfddl.spark.run(train, args=(3,), num_proc=4)  # in the order of ranks

    estimator = tfddl.spark.KerasEstimator(
        model=model, optimizer="adam", loss="mse", feature_cols=["features"], label_cols=["y"]
    )
    predicted = estimator.fit(df).transform(df)
"""

import importlib
from typing import TYPE_CHECKING, Any

from tfddl._src.engines.spark import run as run
from tfddl.errors import LaunchError

if TYPE_CHECKING:
    from tfddl._src.estimator.estimator import KerasEstimator
    from tfddl._src.estimator.model import KerasModel
    from tfddl._src.estimator.store import (
        DBFSLocalStore,
        FilesystemStore,
        HDFSStore,
        LocalStore,
        Store,
    )

__all__ = [
    "DBFSLocalStore",
    "FilesystemStore",
    "HDFSStore",
    "KerasEstimator",
    "KerasModel",
    "LocalStore",
    "Store",
    "run",
]

_MODULES = {
    "estimator": ("KerasEstimator",),
    "model": ("KerasModel",),
    "store": ("DBFSLocalStore", "FilesystemStore", "HDFSStore", "LocalStore", "Store"),
}


if not TYPE_CHECKING:  # `run` loads neither pyspark nor Keras; estimators are classes of pyspark's.

    def __getattr__(name: str) -> Any:
        for module, names in _MODULES.items():
            if name in names:
                try:
                    found = importlib.import_module(f"tfddl._src.estimator.{module}")
                except ImportError as error:
                    raise LaunchError(
                        f"tfddl.spark.{name} needs pyspark, pyarrow and pandas, and one can't be "
                        f"imported here. HINT: pip install 'tfddl[spark]' ({error})"
                    ) from None
                return getattr(found, name)
        raise AttributeError(f"module 'tfddl.spark' has no attribute {name!r}")
