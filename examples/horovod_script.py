"""A script for Horovod, unedited: tfddlrun --horovod -np 2 python examples/horovod_script.py."""

import horovod.tensorflow.keras as hvd
import keras
import numpy as np
from sklearn.datasets import load_digits

hvd.init()
keras.utils.set_random_seed(1 + hvd.rank())

digits = load_digits()
x = (digits.images[..., np.newaxis] / 16).astype("float32")
y = digits.target
x, y = x[hvd.rank() :: hvd.size()], y[hvd.rank() :: hvd.size()]  # every size-th example

model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
optimizer = hvd.DistributedOptimizer(keras.optimizers.Adam(1e-3 * hvd.size()))
model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])

callbacks = [
    hvd.callbacks.BroadcastGlobalVariablesCallback(0),
    hvd.callbacks.MetricAverageCallback(),
    hvd.callbacks.LearningRateWarmupCallback(initial_lr=1e-3 * hvd.size(), warmup_epochs=2),
]
if hvd.rank() == 0:
    callbacks.append(keras.callbacks.ModelCheckpoint("checkpoint-{epoch}.keras"))

history = model.fit(
    x,
    y,
    batch_size=32,
    steps_per_epoch=len(digits.target) // 32 // hvd.size(),
    epochs=4,
    callbacks=callbacks,
    verbose=2 if hvd.rank() == 0 else 0,
)
if hvd.rank() == 0:
    print(f"accuracy {history.history['accuracy'][-1]:.3f}")
