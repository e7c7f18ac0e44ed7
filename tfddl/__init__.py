"""Horovod's way of distributed deep learning on TensorFlow's own runtime.

Every process runs the same script on its own shard of the data, and N workers compute what one
process would.

Usage::

    import keras
    import tfddl

    tfddl.init()  # before any TensorFlow operation
    optimizer = keras.optimizers.Adam(1e-3 * tfddl.size())
    model.compile(tfddl.DistributedOptimizer(optimizer), loss="mse")
    model.fit(tfddl.shard_dataset(x, y, batch_size=12, seed=1), epochs=10)

`import tfddl` loads no TensorFlow; the first use of a name does.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tfddl import errors

if TYPE_CHECKING:
    from tfddl import callbacks, debug
    from tfddl._src.api import (
        cross_rank,
        cross_size,
        init,
        is_initialized,
        local_rank,
        local_size,
        rank,
        shutdown,
        size,
        strategy,
    )
    from tfddl._src.callbacks import load_checkpoint
    from tfddl._src.collectives import (
        ProcessSet,
        ReduceOp,
        allgather,
        allgather_object,
        allreduce,
        alltoall,
        barrier,
        broadcast,
        broadcast_object,
        broadcast_variables,
        global_process_set,
        grouped_allgather,
        grouped_allreduce,
        grouped_broadcast,
        grouped_reducescatter,
        join,
        reducescatter,
        start_timeline,
        stop_timeline,
    )
    from tfddl._src.data import open_parquet, open_tfrecords, shard_dataset
    from tfddl._src.gradients import Compression, DistributedGradientTape, loss_count
    from tfddl._src.keras_hooks import sync_moving_statistics
    from tfddl._src.keras_hooks.optimizer import DistributedOptimizer
    from tfddl._src.keras_hooks.virtual_loop import VirtualTrainStep
    from tfddl._src.remote_call.run import run
    from tfddl._src.sharding import Order, shard_range

__version__ = "0.1.0"

__all__ = [
    "Compression",
    "DistributedGradientTape",
    "DistributedOptimizer",
    "Order",
    "ProcessSet",
    "ReduceOp",
    "VirtualTrainStep",
    "allgather",
    "allgather_object",
    "allreduce",
    "alltoall",
    "barrier",
    "broadcast",
    "broadcast_object",
    "broadcast_variables",
    "callbacks",
    "cross_rank",
    "cross_size",
    "debug",
    "errors",
    "global_process_set",
    "grouped_allgather",
    "grouped_allreduce",
    "grouped_broadcast",
    "grouped_reducescatter",
    "init",
    "is_initialized",
    "join",
    "load_checkpoint",
    "local_rank",
    "local_size",
    "loss_count",
    "open_parquet",
    "open_tfrecords",
    "rank",
    "reducescatter",
    "run",
    "shard_dataset",
    "shard_range",
    "shutdown",
    "size",
    "start_timeline",
    "stop_timeline",
    "strategy",
    "sync_moving_statistics",
]

_MODULES = {
    "api": (
        "cross_rank",
        "cross_size",
        "init",
        "is_initialized",
        "local_rank",
        "local_size",
        "rank",
        "shutdown",
        "size",
        "strategy",
    ),
    "callbacks": ("load_checkpoint",),
    "collectives": (
        "ProcessSet",
        "ReduceOp",
        "allgather",
        "allgather_object",
        "allreduce",
        "alltoall",
        "barrier",
        "broadcast",
        "broadcast_object",
        "broadcast_variables",
        "global_process_set",
        "grouped_allgather",
        "grouped_allreduce",
        "grouped_broadcast",
        "grouped_reducescatter",
        "join",
        "reducescatter",
        "start_timeline",
        "stop_timeline",
    ),
    "data": ("open_parquet", "open_tfrecords", "shard_dataset"),
    "remote_call.run": ("run",),
    "keras_hooks": ("sync_moving_statistics",),
    "gradients": ("Compression", "DistributedGradientTape", "loss_count"),
    "keras_hooks.optimizer": ("DistributedOptimizer",),
    "keras_hooks.virtual_loop": ("VirtualTrainStep",),
    "sharding": ("Order", "shard_range"),
}


if not TYPE_CHECKING:  # A type checker would take any name for one that is there.

    def __getattr__(name: str) -> Any:
        if name in ("callbacks", "debug"):
            return importlib.import_module(f"tfddl.{name}")
        for module, names in _MODULES.items():
            if name in names:
                return getattr(importlib.import_module(f"tfddl._src.{module}"), name)
        raise AttributeError(f"module 'tfddl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
