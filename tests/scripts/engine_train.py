"""Trains on 103 examples, writes its weights, and where each rank ran: FOLDER [EVENT].

In the first start of a job an event comes at a step in mid-epoch: with "wait" all wait for SIGTERM;
with "kill" the last rank kills itself.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

import tfddl

FOLDER = Path(sys.argv[1])
EVENT = sys.argv[2] if len(sys.argv) > 2 else ""


class Event(keras.callbacks.Callback):
    """What happens at the tenth step, of two epochs of seven."""

    steps = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1
        mark = FOLDER / f"event.{tfddl.rank()}"
        if not EVENT or self.steps != 10 or mark.exists():
            return
        mark.touch()
        if EVENT == "kill" and tfddl.rank() == tfddl.size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if EVENT == "wait":
            self.wait_for_sigterm()

    def wait_for_sigterm(self) -> None:
        """Until this rank, or any other, has got it."""
        came, end_s = FOLDER / "sigterm", time.monotonic() + 100
        while not came.exists():
            if signal.getsignal(signal.SIGTERM).__self__.got_sigterm:  # type: ignore[union-attr]
                came.touch()
            assert time.monotonic() < end_s, "no SIGTERM has come"
            time.sleep(0.05)


def main() -> None:
    tfddl.init()
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(103, 4)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)]
    )
    model.compile(tfddl.DistributedOptimizer(keras.optimizers.Adam(0.01)), loss="mse")
    checkpoint = tfddl.callbacks.Checkpoint(str(FOLDER / "checkpoints"), save_every_steps=1)
    data = tfddl.shard_dataset(x, y, batch_size=16 // tfddl.size(), seed=1)
    model.fit(data, epochs=2, verbose=0, callbacks=[Event(), checkpoint])
    found = {
        "weights": [float(value) for part in model.get_weights() for value in part.ravel()],
        "node": os.uname().nodename,
        "network": os.readlink("/proc/self/ns/net"),
        "local": [tfddl.local_rank(), tfddl.local_size()],
        "size": tfddl.size(),
        "cores": os.environ.get("TFDDL_CORES"),
        "port": os.environ.get("TFDDL_PORT"),
        "restarts": os.environ.get("SLURM_RESTART_COUNT"),
    }
    (FOLDER / f"rank.{tfddl.rank()}").write_text(json.dumps(found))


main()
