"""What a worker does without TensorFlow's server, and with it.

Prints as JSON what a test compares. Arguments: "early" or "late" (whether operations run before
`tfddl.init`), then what asks for the server: "nothing", "strategy" on all ranks, or "one rank".
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfddl
from tfddl.errors import TfddlError

WHEN, STRATEGY = sys.argv[1:3]
TASK = json.loads(os.environ["TF_CONFIG"])


def listening() -> list[int]:
    """The TCP ports at which this process listens."""
    mine = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        if descriptor.is_symlink():
            mine.add(os.readlink(descriptor))
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]
    ]
    return sorted(
        int(words[1].rpartition(":")[2], 16)
        for words in lines
        if words[3] == "0A" and f"socket:[{words[9]}]" in mine
    )


def model_and_data() -> tuple[keras.Model, tf.data.Dataset]:
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(5), keras.layers.Dropout(0.0), keras.layers.Dense(1)]
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(22, 4)).astype("f4")
    y = (x.sum(axis=1, keepdims=True) ** 2).astype("f4")
    return model, tf.data.Dataset.from_tensor_slices((x, y))


def error_of(call: Callable[[], object]) -> str:
    """What it ended in; "" if it went well."""
    try:
        call()
    except TfddlError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main() -> dict[str, Any]:
    found: dict[str, Any] = {}
    optimizer: Any
    if WHEN == "late":
        if STRATEGY == "strategy":
            if TASK["task"]["index"] == 1:
                assert tf.zeros([1]) + 1 == 1
            found["ring"] = error_of(lambda: tfddl.init(collective="ring", timeout_s=30.0))
        model, data = model_and_data()
        optimizer = keras.optimizers.Adam(0.01)
        model(np.ones((1, 4), "f4"), training=True)
        tfddl.init(timeout_s=30.0)
    else:
        tfddl.init(timeout_s=30.0)
        found["before"] = listening()
        if STRATEGY == "strategy":
            strategy = tfddl.strategy()
            found["cluster"] = strategy.cluster_resolver.cluster_spec().as_dict()["worker"]
            found["replicas"] = strategy.num_replicas_in_sync
        model, data = model_and_data()
        optimizer = keras.optimizers.Adam(0.01)
    found["addresses"] = TASK["cluster"]["worker"]
    rank, size = tfddl.rank(), tfddl.size()
    if (WHEN, STRATEGY) == ("late", "strategy") or (STRATEGY == "one rank" and rank == 0):
        found["error"] = error_of(tfddl.strategy)
    total = tf.function(lambda x: tfddl.allreduce(x, tfddl.ReduceOp.SUM))
    found["sum"] = float(total(tf.constant(rank + 1.0)))
    found["rows"] = tfddl.allgather(tf.fill([rank + 1], rank)).numpy().tolist()
    model.compile(tfddl.DistributedOptimizer(optimizer), loss="mse")
    batches = tfddl.shard_dataset(data, batch_size=-(-6 // size))
    found["loss"] = model.fit(batches, epochs=2, verbose=0).history["loss"]
    found["weights"] = [w.astype("f8").ravel().tolist() for w in model.get_weights()]
    found["listening"] = listening()
    tfddl.barrier()
    return found


if __name__ == "__main__":
    print(json.dumps(main()), flush=True)
