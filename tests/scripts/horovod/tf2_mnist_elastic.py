"""Handwritten digits with a GradientTape; goes on when workers fail."""

import os
import sys

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf
from tests.digits import load_digits

folder = sys.argv[1]
fail_at = int(sys.argv[2]) if len(sys.argv) > 2 else -1

hvd.init()

digits = load_digits()
images = (digits.data / 16.0).astype("float32")
dataset = tf.data.Dataset.from_tensor_slices((images, digits.target.astype("int64")))
dataset = dataset.repeat().shuffle(1800, seed=hvd.rank()).batch(32)

model = tf.keras.Sequential(
    [
        tf.keras.layers.Dense(64, activation="relu"),
        tf.keras.layers.Dense(10, activation="softmax"),
    ]
)
loss = tf.losses.SparseCategoricalCrossentropy()
lr = 0.002
opt = tf.optimizers.Adam(lr * hvd.size())


@tf.function
def training_step(images, labels, allreduce=True):
    with tf.GradientTape() as tape:
        loss_value = loss(labels, model(images, training=True))

    # Horovod: the first call makes the variables; the workers may not be in step yet.
    if allreduce:
        tape = hvd.DistributedGradientTape(tape)

    grads = tape.gradient(loss_value, model.trainable_variables)
    opt.apply_gradients(zip(grads, model.trainable_variables))
    return loss_value


# Horovod: initialize model and optimizer state so that they can be synchronized.
for x, y in dataset.take(1):
    training_step(x, y, allreduce=False)


@hvd.elastic.run
def train(state):
    print("training from batch %d on" % state.batch, flush=True)
    for state.batch, (x, y) in zip(range(state.batch, 200), dataset.skip(state.batch)):
        loss_value = training_step(x, y)

        if state.batch % 50 == 0 and hvd.local_rank() == 0:
            print("Step #%d\tLoss: %.6f" % (state.batch, loss_value))

        marker = os.path.join(folder, "failed")
        if state.batch == fail_at and hvd.rank() == hvd.size() - 1 and not os.path.exists(marker):
            open(marker, "w").close()
            os._exit(7)

        # Horovod: commit state at the end of each batch that we can go back to.
        if state.batch % 10 == 0:
            state.batch += 1
            state.commit()


def on_state_reset():
    opt.lr.assign(lr * hvd.size())


state = hvd.elastic.TensorFlowKerasState(model, opt, batch=0)
state.register_reset_callbacks([on_state_reset])
train(state)

if hvd.rank() == 0:
    tf.train.Checkpoint(model=model, optimizer=opt).save(os.path.join(folder, "ckpt"))
predicted = np.argmax(model(images), axis=1)
checksum = sum(float(np.abs(w).sum()) for w in model.get_weights())
accuracy = float(np.mean(predicted == digits.target))
print("accuracy %.4f weights %.6f" % (accuracy, checksum), flush=True)
