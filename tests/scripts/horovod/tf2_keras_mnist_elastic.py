"""Handwritten digits with Keras' fit; goes on when workers fail."""

import os
import sys

import horovod.tensorflow.keras as hvd
import numpy as np
import tensorflow as tf
from tests.digits import load_digits
from tensorflow import keras

folder = sys.argv[1]
fail_at = int(sys.argv[2]) if len(sys.argv) > 2 else -1

hvd.init()

digits = load_digits()
images = (digits.data / 16.0).astype("float32")
labels = digits.target.astype("int64")
dataset = tf.data.Dataset.from_tensor_slices((images, labels))
dataset = dataset.repeat().shuffle(1800, seed=7 + hvd.rank()).batch(32)

model = keras.Sequential(
    [
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dropout(0.1),
        keras.layers.Dense(10, activation="softmax"),
    ]
)

# Horovod: adjust learning rate based on number of workers.
scaled_lr = 0.002 * hvd.size()
opt = keras.optimizers.Adam(scaled_lr)
opt = hvd.DistributedOptimizer(opt)
model.compile(
    loss=keras.losses.SparseCategoricalCrossentropy(),
    optimizer=opt,
    metrics=["accuracy"],
    experimental_run_tf_function=False,
)

# Horovod: initialize optimizer state so we can synchronize across workers.
model.fit(dataset, steps_per_epoch=1, epochs=1, callbacks=None, verbose=0)

state = hvd.elastic.KerasState(model, batch=0, epoch=0)


def on_state_reset():
    keras.backend.set_value(state.model.optimizer.lr, 0.002 * hvd.size())
    state.model.fit(dataset, steps_per_epoch=1, epochs=1, callbacks=None, verbose=0)


state.register_reset_callbacks([on_state_reset])


class FailOnce(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        marker = os.path.join(folder, "failed")
        if state.epoch * 25 + batch == fail_at and hvd.rank() == hvd.size() - 1:
            if not os.path.exists(marker):
                open(marker, "w").close()
                os._exit(7)


callbacks = [
    # Horovod: the order matters: first update, then commit.
    hvd.elastic.UpdateBatchStateCallback(state),
    hvd.elastic.UpdateEpochStateCallback(state),
    hvd.elastic.CommitStateCallback(state, batches_per_commit=5),
    FailOnce(),
]
if hvd.rank() == 0:
    callbacks.append(keras.callbacks.ModelCheckpoint(os.path.join(folder, "checkpoint-{epoch}.h5")))


# Horovod: everything that should be reset goes into the function.
@hvd.elastic.run
def train(state):
    print("training from epoch %d batch %d on" % (state.epoch, state.batch), flush=True)
    state.model.fit(
        dataset,
        steps_per_epoch=25,
        callbacks=callbacks,
        epochs=6 - state.epoch,
        verbose=0,
    )


train(state)
predicted = np.argmax(model.predict(images, verbose=0), axis=1)
checksum = sum(float(np.abs(w).sum()) for w in model.get_weights())
accuracy = float(np.mean(predicted == labels))
print("accuracy %.4f weights %.6f" % (accuracy, checksum), flush=True)
