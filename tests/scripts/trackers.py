"""Trains with two trackers, offline: python trackers.py OUT.

Weights & Biases gets a run by a function, and one by its callback on all ranks; MLflow by a class,
and by autologging on rank 0.
"""

import json
import sys
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import wandb
from mlflow.keras import MlflowCallback
from wandb.integration.keras import WandbMetricsLogger

import tfddl

OUT = Path(sys.argv[1])
X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")


def train(name: str, callbacks: list[Any]) -> None:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    model.compile(tfddl.DistributedOptimizer(keras.optimizers.SGD(0.01)), loss="mse")
    data = tfddl.shard_dataset(X, X[:, :1], batch_size=8, seed=1)
    history = model.fit(
        data, validation_data=(X[:9], X[:9, :1]), epochs=2, callbacks=callbacks, verbose=0
    )
    if tfddl.rank() == 0:
        (OUT / f"{name}.json").write_text(json.dumps(history.history))


def tracker() -> WandbMetricsLogger:
    wandb.init(project="by-a-function", dir=OUT)
    return WandbMetricsLogger()


tfddl.init()
mlflow.set_tracking_uri(f"sqlite:///{OUT}/mlflow.db")

train("by-a-function", [tfddl.callbacks.OnRankZero(tracker)])
if tfddl.rank() == 0:
    wandb.finish()

wandb.init(project="on-all-ranks", dir=OUT, mode=None if tfddl.rank() == 0 else "disabled")
train("on-all-ranks", [WandbMetricsLogger()])
wandb.finish()

if tfddl.rank() == 0:
    mlflow.start_run(run_name="class")
train("class", [tfddl.callbacks.OnRankZero(MlflowCallback)])
if tfddl.rank() == 0:
    mlflow.end_run()
    mlflow.tensorflow.autolog(log_model_signatures=False)
train("autolog", [])

if tfddl.rank() == 0:
    runs = mlflow.search_runs(output_format="list")
    found = {"class" if run.info.run_name == "class" else "autolog": run for run in runs}
    metrics = {name: run.data.metrics for name, run in found.items()}
    (OUT / "mlflow.json").write_text(json.dumps({"runs": len(runs), **metrics}))
tfddl.barrier()
