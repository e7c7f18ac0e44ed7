"""Handwritten digits with Keras' fit, Horovod and all of its callbacks."""

import os
import sys

import horovod.tensorflow.keras as hvd
import numpy as np
import tensorflow as tf
from tests.digits import load_digits
from tensorflow.keras import backend as K

EPOCHS = 6
BATCH = 32
folder = sys.argv[1]

# Horovod: initialize Horovod.
hvd.init()

# Horovod: pin GPU to be used to process local rank (one GPU per process)
gpus = tf.config.experimental.list_physical_devices("GPU")
for gpu in gpus:
    tf.config.experimental.set_memory_growth(gpu, True)
if gpus:
    tf.config.experimental.set_visible_devices(gpus[hvd.local_rank()], "GPU")

digits = load_digits()
x = (digits.data / 16.0).astype("float32").reshape(-1, 8, 8, 1)
y = digits.target.astype("int64")
x_train, y_train, x_test, y_test = x[:1500], y[:1500], x[1500:], y[1500:]

dataset = tf.data.Dataset.from_tensor_slices((x_train, y_train))
dataset = dataset.repeat().shuffle(1500, seed=100 + hvd.rank()).batch(BATCH)

model = tf.keras.Sequential(
    [
        tf.keras.layers.Conv2D(16, (3, 3), activation="relu", input_shape=(8, 8, 1)),
        tf.keras.layers.MaxPooling2D(pool_size=(2, 2)),
        tf.keras.layers.Flatten(),
        tf.keras.layers.Dense(64, activation="relu"),
        tf.keras.layers.Dropout(0.2),
        tf.keras.layers.Dense(10, activation="softmax"),
    ]
)

# Horovod: adjust the learning rate based on the number of workers.
scaled_lr = 0.02 * hvd.size()
opt = tf.keras.optimizers.SGD(lr=scaled_lr, momentum=0.9)

# Horovod: add Horovod's DistributedOptimizer.
opt = hvd.DistributedOptimizer(opt, backward_passes_per_step=1, average_aggregated_gradients=True)

# `experimental_run_tf_function=False` made TF 2 use the optimizer's own gradients.
model.compile(
    loss=tf.losses.SparseCategoricalCrossentropy(),
    optimizer=opt,
    metrics=["accuracy"],
    experimental_run_tf_function=False,
)


class LearningRateLogger(tf.keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.rates = []

    def on_epoch_end(self, epoch, logs=None):
        self.rates.append(float(K.get_value(self.model.optimizer.lr)))


rates = LearningRateLogger()
callbacks = [
    # Horovod: all workers start from rank 0's weights.
    hvd.callbacks.BroadcastGlobalVariablesCallback(0),
    # Horovod: average metrics among workers at the end of every epoch.
    hvd.callbacks.MetricAverageCallback(),
    # Horovod: `lr = 1.0` leads to worse final accuracy; ramp up during the first two epochs,
    # and cut it down again towards the end.
    hvd.callbacks.LearningRateWarmupCallback(initial_lr=scaled_lr, warmup_epochs=2, verbose=1),
    hvd.callbacks.LearningRateScheduleCallback(
        initial_lr=scaled_lr, multiplier=1.0, start_epoch=2, end_epoch=4
    ),
    hvd.callbacks.LearningRateScheduleCallback(
        initial_lr=scaled_lr, multiplier=lambda epoch: 0.5 ** (epoch - 3), start_epoch=4
    ),
    rates,
]

# Horovod: save checkpoints only on worker 0 to prevent other workers from corrupting them.
if hvd.rank() == 0:
    callbacks.append(
        tf.keras.callbacks.ModelCheckpoint(os.path.join(folder, "checkpoint-{epoch}.h5"))
    )
    best = hvd.callbacks.BestModelCheckpoint(monitor="loss", mode="min")
    best.filepath = os.path.join(folder, "best.keras")
    callbacks.append(best)

verbose = 1 if hvd.rank() == 0 else 0
history = model.fit(
    dataset,
    steps_per_epoch=90 // hvd.size(),
    callbacks=callbacks,
    epochs=EPOCHS,
    verbose=verbose,
)

print("rates %s" % " ".join("%.6f" % rate for rate in rates.rates))
score = float(np.mean(np.argmax(model.predict(x_test, verbose=0), axis=1) == y_test))
checksum = sum(float(np.abs(w).sum()) for w in model.get_weights())
logged = history.history["accuracy"][-1]
print("accuracy %.4f logged %.6f weights %.6f" % (score, logged, checksum), flush=True)
