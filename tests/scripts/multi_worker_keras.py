"""Trains a small CNN with Keras under the strategy of several workers, from one global dataset.

In the manner of TensorFlow's tutorial "Multi-worker training with Keras"; run by `tfddlrun`.
"""

import sys

import keras
import numpy as np
import tensorflow as tf

import tfddl
from tests.digits import load_digits

PER_WORKER_BATCH_SIZE = 32


def digits_dataset(batch_size: int) -> tf.data.Dataset:
    digits = load_digits()
    images, labels = digits.data, digits.target
    images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels.astype("int64")))
    return dataset.shuffle(len(images), seed=1).repeat().batch(batch_size)


def build_and_compile_cnn_model() -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input(shape=(8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        optimizer=keras.optimizers.SGD(learning_rate=0.05, momentum=0.9),
        metrics=["accuracy"],
    )
    return model


def main(directory: str) -> None:
    tfddl.init()
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    global_batch_size = PER_WORKER_BATCH_SIZE * strategy.num_replicas_in_sync
    dataset = digits_dataset(global_batch_size)
    with strategy.scope():
        model = build_and_compile_cnn_model()
    assert model.distribute_strategy is tfddl.strategy()  # The job's, by whatever name.
    history = model.fit(dataset, epochs=3, steps_per_epoch=25, verbose=2)
    path = f"{directory}/worker{tfddl.rank()}.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    sums = [float(np.abs(w).sum()) for w in loaded.get_weights()]
    accuracy = history.history["accuracy"][-1]
    print(f"accuracy {accuracy:.4f} weights {' '.join(f'{s:.6f}' for s in sums)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
