"""Handwritten digits with a GradientTape and Horovod."""

import os
import sys

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf
from tests.digits import load_digits

BATCH = 32

# Horovod: initialize Horovod, and pin each process to a GPU of its own.
hvd.init()
gpus = tf.config.experimental.list_physical_devices("GPU")
for gpu in gpus:
    tf.config.experimental.set_memory_growth(gpu, True)
if gpus:
    tf.config.experimental.set_visible_devices(gpus[hvd.local_rank()], "GPU")

digits = load_digits()
images, labels = digits.data, digits.target
dataset = tf.data.Dataset.from_tensor_slices(
    (
        tf.cast(images.reshape(-1, 8, 8, 1) / 16.0, tf.float32),
        tf.cast(labels, tf.int64),
    )
)
dataset = dataset.repeat().shuffle(2000, seed=hvd.rank()).batch(BATCH)

model = tf.keras.Sequential(
    [
        tf.keras.layers.Conv2D(16, [3, 3], activation="relu"),
        tf.keras.layers.MaxPooling2D(pool_size=(2, 2)),
        tf.keras.layers.Dropout(0.1),
        tf.keras.layers.Flatten(),
        tf.keras.layers.Dense(64, activation="relu"),
        tf.keras.layers.Dense(10, activation="softmax"),
    ]
)
loss = tf.losses.SparseCategoricalCrossentropy()

# Horovod: scale the learning rate by the number of workers.
opt = tf.optimizers.Adam(0.001 * hvd.size())

checkpoint_dir = os.path.join(sys.argv[1], "checkpoints")
checkpoint = tf.train.Checkpoint(model=model, optimizer=opt)


@tf.function
def training_step(images, labels, first_batch):
    with tf.GradientTape() as tape:
        probs = model(images, training=True)
        loss_value = loss(labels, probs)

    # Horovod: wrap the tape.
    tape = hvd.DistributedGradientTape(tape)

    grads = tape.gradient(loss_value, model.trainable_variables)
    opt.apply_gradients(zip(grads, model.trainable_variables))

    # Horovod: after the first step, when all variables exist, everyone takes over those of rank 0.
    if first_batch:
        hvd.broadcast_variables(model.variables, root_rank=0)
        hvd.broadcast_variables(opt.variables(), root_rank=0)

    return loss_value


for batch, (x, y) in enumerate(dataset.take(300 // hvd.size())):
    loss_value = training_step(x, y, batch == 0)
    if batch % 50 == 0 and hvd.local_rank() == 0:
        print("Step #%d\tLoss: %.6f" % (batch, loss_value))

# Horovod: only rank 0 saves, or files would get mixed up.
if hvd.rank() == 0:
    checkpoint.save(os.path.join(checkpoint_dir, "ckpt"))

predicted = np.argmax(model(images.reshape(-1, 8, 8, 1) / 16.0, training=False), axis=1)
accuracy = float(np.mean(predicted == labels))
checksum = sum(float(np.abs(w).sum()) for w in model.get_weights())
print("accuracy %.4f weights %.6f" % (accuracy, checksum), flush=True)
