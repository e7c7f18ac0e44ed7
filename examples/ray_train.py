"""Training by Ray Train, with data from Ray Data: python examples/ray_train.py.

Needs `pip install '.[ray]' scikit-learn` in a checkout.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import ray.train
from sklearn.datasets import load_digits

import tfddl.ray


def train(config: dict[str, Any]) -> list[float]:
    """Runs in each worker; what rank 0 returns is the result's return_value."""
    import keras

    import tfddl.ray

    tfddl.init()
    keras.utils.set_random_seed(1)
    rows = ray.train.get_dataset_shard("train")
    data = tfddl.shard_dataset(rows["image"], rows["label"], batch_size=32, seed=1)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, activation="softmax")])
    model.compile(
        tfddl.DistributedOptimizer(keras.optimizers.Adam(config["learning_rate"])),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    # After a failure Ray starts this function again, and fit resumes within the epoch.
    report = tfddl.ray.ReportCheckpoint(save_every_steps=10)
    history = model.fit(data, epochs=2, verbose=0, callbacks=[report])
    accuracies = tfddl.allgather_object(round(history.history["accuracy"][-1], 3))
    return [float(accuracy) for accuracy in accuracies]


def main(storage: str) -> None:
    """Trains on two workers, which Ray may start again three times."""
    images, labels = load_digits(return_X_y=True)
    rows = [
        {"image": image, "label": label}
        for image, label in zip(np.float32(images / 16), labels, strict=True)
    ]
    trainer = tfddl.ray.TfddlTrainer(
        train,
        train_loop_config={"learning_rate": 1e-2},
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(
            name="digits",
            storage_path=str(Path(storage).resolve()),
            failure_config=ray.train.FailureConfig(max_failures=3),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
        datasets={"train": ray.data.from_items(rows)},
    )
    result = trainer.fit()
    print(f"accuracies of the 2 workers: {result.return_value}")
    print(f"the checkpoint is {result.checkpoint.path}")


if __name__ == "__main__":
    ray.init(num_cpus=3)
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    ray.shutdown()
