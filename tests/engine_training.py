"""What the tests of engines call on their workers."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any


def train(folder: str, *, kill_at: int | None = None) -> list[float]:
    """Trains on 103 examples; the last rank kills itself in the first start, at a step."""
    import keras
    import numpy as np

    import tfddl

    class Kill(keras.callbacks.Callback):
        """As what ends a process for want of memory."""

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            is_first = os.environ.get("TFDDL_RESTARTS") == "0"
            if is_first and batch == kill_at and tfddl.rank() == tfddl.size() - 1:
                os.kill(os.getpid(), signal.SIGKILL)

    tfddl.init()
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(103, 4)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)]
    )
    model.compile(tfddl.DistributedOptimizer(keras.optimizers.Adam(0.01)), loss="mse")
    checkpoint = tfddl.callbacks.Checkpoint(folder, save_every_steps=1)
    data = tfddl.shard_dataset(x, y, batch_size=16 // tfddl.size(), seed=1)
    model.fit(data, epochs=2, verbose=0, callbacks=[checkpoint, Kill()])
    return [float(value) for weights in model.get_weights() for value in weights.ravel()]


def add_up() -> float:
    """One more than the rank, over all ranks."""
    import tfddl

    tfddl.init()
    return float(tfddl.allreduce(tfddl.rank() + 1.0, op="sum"))


def environment(*names: str) -> list[str | None]:
    """Variables of the worker."""
    return [os.environ.get(name) for name in names]


def import_horovod() -> str:
    """Whose it is."""
    import horovod  # type: ignore[import-not-found]

    return str(horovod.__name__)


def fail(folder: str, kind: str) -> None:
    """Fails on rank 1, while rank 0 waits; notes who runs, and in which start."""
    rank = int(os.environ["TF_CONFIG"].rpartition('"index":')[2].strip(' }"'))
    start = os.environ["TFDDL_RESTARTS"]
    Path(folder, f"{kind} {rank} {start}").write_text(str(os.getpid()))
    if rank == 0:
        time.sleep(100)
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise KeyError(f"of start {start}")


def train_on_ray(config: dict[str, Any]) -> dict[str, Any]:
    """Trains on 103 examples in a worker of Ray Train; ends as config["ends"] says for its start.

    Each start notes in the folder its size, and the first step that it trains.
    """
    import keras
    import ray.train

    import tfddl.ray

    start = int(os.environ.get("TFDDL_RESTARTS", "0"))  # Ray's own backend doesn't set it.
    end, at = config["ends"].get(start, ("", None))

    class End(keras.callbacks.Callback):
        """Ends the worker at a step, or waits there until Ray does."""

        epoch = 0
        is_first = True

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if self.is_first and tfddl.rank() == 0:
                note = {"size": tfddl.size(), "first": [self.epoch, batch]}
                Path(config["folder"], f"start {start}").write_text(json.dumps(note))
            self.is_first = False
            if at != [self.epoch, batch]:
                return
            # Reports wait in the workers until Ray's controller has asked for them.
            ray.train.get_all_reported_checkpoints(timeout_s=300)
            if end == "wait":
                Path(config["folder"], f"waits {start} {tfddl.rank()}").touch()
                time.sleep(600)
            elif tfddl.rank() == tfddl.size() - 1 and end == "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)
            elif tfddl.rank() == tfddl.size() - 1:
                ray.kill(ray.get_runtime_context().current_actor)

    tfddl.init()
    keras.utils.set_random_seed(1)
    rows = ray.train.get_dataset_shard("train") if config["rows"] else columns()
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)]
    )
    model.compile(tfddl.DistributedOptimizer(keras.optimizers.Adam(0.01)), loss="mse")
    report = tfddl.ray.ReportCheckpoint(save_every_steps=1)
    data = tfddl.shard_dataset(rows["x"], rows["y"], batch_size=12 // tfddl.size(), seed=1)
    history = model.fit(data, epochs=2, verbose=0, callbacks=[report, End()]).history
    weights = [float(value) for part in model.get_weights() for value in part.ravel()]
    legacy = os.environ.get("TF_USE_LEGACY_KERAS")
    return {"weights": weights, "loss": history["loss"], "legacy": legacy}


def columns() -> dict[str, Any]:
    """The 103 examples."""
    import numpy as np

    x = np.random.default_rng(3).normal(size=(103, 4)).astype("float32")
    return {"x": x, "y": x.sum(axis=1, keepdims=True)}


def train_alone() -> list[float]:
    """The weights of `train_on_ray` in one process, without Ray."""
    import keras

    keras.utils.set_random_seed(1)
    import tfddl

    tfddl.init()
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.Adam(0.01), loss="mse")
    data = tfddl.shard_dataset(columns()["x"], columns()["y"], batch_size=12, seed=1)
    model.fit(data, epochs=2, verbose=0)
    return [float(value) for part in model.get_weights() for value in part.ravel()]
