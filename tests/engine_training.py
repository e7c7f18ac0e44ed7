"""What the tests of engines call on their workers."""

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
