"""Segments made-up pictures of digits with a U-Net; takes up training where it was left."""

import argparse
import os

import horovod.tensorflow.keras as hvd
import numpy as np
import tensorflow as tf
from tests.digits import load_digits
from tensorflow.keras import backend as K
from tensorflow.keras.layers import Conv2D, Input, MaxPooling2D, UpSampling2D, concatenate
from tensorflow.keras.models import Model
from tensorflow.keras.optimizers import Adam

parser = argparse.ArgumentParser(description="U-Net with Horovod")
parser.add_argument("folder")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--batch-size", type=int, default=8)
parser.add_argument("--base-lr", type=float, default=2e-3)
args = parser.parse_args()

hvd.init()

gpus = tf.config.experimental.list_physical_devices("GPU")
for gpu in gpus:
    tf.config.experimental.set_memory_growth(gpu, True)
if gpus:
    tf.config.experimental.set_visible_devices(gpus[hvd.local_rank()], "GPU")

checkpoint_format = os.path.join(args.folder, "unet-{epoch}.h5")

# If set > 0, will resume training from a given checkpoint.
resume_from_epoch = 0
for try_epoch in range(args.epochs, 0, -1):
    if os.path.exists(checkpoint_format.format(epoch=try_epoch)):
        resume_from_epoch = try_epoch
        break

# Horovod: broadcast resume_from_epoch from rank 0 (which will have the checkpoints) to others.
resume_from_epoch = int(hvd.broadcast(resume_from_epoch, 0, name="resume_from_epoch"))
verbose = 1 if hvd.rank() == 0 else 0
print("resume from epoch %d" % resume_from_epoch, flush=True)


def load_data():
    """Every rank reads its part, which is one longer on some."""
    pictures = load_digits().images[:203] / 16.0
    pictures = np.kron(pictures, np.ones((2, 2)))
    masks = (pictures > 0.5).astype("float32")[..., np.newaxis]
    noise = np.random.RandomState(1).uniform(0, 0.3, pictures.shape)
    pictures = (pictures + noise).astype("float32")[..., np.newaxis]
    start = len(pictures) * hvd.rank() // hvd.size()
    end = len(pictures) * (hvd.rank() + 1) // hvd.size()
    return pictures[start:end], masks[start:end]


def dice_coef(y_true, y_pred, smooth=1.0):
    intersection = tf.reduce_sum(y_true * y_pred)
    return (2.0 * intersection + smooth) / (tf.reduce_sum(y_true) + tf.reduce_sum(y_pred) + smooth)


def dice_loss(y_true, y_pred):
    return 1.0 - dice_coef(y_true, y_pred)


def build_unet():
    inputs = Input((16, 16, 1), name="picture")
    down = Conv2D(8, 3, activation="relu", padding="same", name="down")(inputs)
    low = MaxPooling2D(name="pool")(down)
    low = Conv2D(16, 3, activation="relu", padding="same", name="low")(low)
    up = concatenate([UpSampling2D(name="grow")(low), down], name="skip")
    up = Conv2D(8, 3, activation="relu", padding="same", name="up")(up)
    outputs = Conv2D(1, 1, activation="sigmoid", name="mask")(up)
    return Model(inputs=[inputs], outputs=[outputs])


images, masks = load_data()
custom_objects = {"dice_loss": dice_loss, "dice_coef": dice_coef}

# Horovod: only the first worker loads, the others get its weights by the broadcast below.
if resume_from_epoch > 0 and hvd.rank() == 0:
    model = hvd.load_model(
        checkpoint_format.format(epoch=resume_from_epoch), custom_objects=custom_objects
    )
else:
    model = build_unet()
    opt = hvd.DistributedOptimizer(Adam(learning_rate=args.base_lr * hvd.size()))
    model.compile(
        optimizer=opt,
        loss=dice_loss,
        metrics=[dice_coef],
        experimental_run_tf_function=False,
    )

callbacks = [
    hvd.callbacks.BroadcastGlobalVariablesCallback(0),
    hvd.callbacks.MetricAverageCallback(),
]
if hvd.rank() == 0:
    callbacks.append(tf.keras.callbacks.ModelCheckpoint(checkpoint_format))

history = model.fit(
    images,
    masks,
    batch_size=args.batch_size,
    epochs=args.epochs,
    initial_epoch=resume_from_epoch,
    validation_split=0.1,
    shuffle=True,
    callbacks=callbacks,
    verbose=verbose,
)

if hvd.rank() == 0:
    model.save(os.path.join(args.folder, "unet.h5"), include_optimizer=False)

print("epochs %s" % " ".join(str(epoch + 1) for epoch in history.epoch))
print(
    "dice %.6f val_dice %.6f steps %d lr %.6f weights %.6f"
    % (
        history.history["dice_coef"][-1],
        history.history["val_dice_coef"][-1],
        K.get_value(model.optimizer.iterations),
        K.get_value(model.optimizer.lr),
        sum(float(np.abs(w).sum()) for w in model.get_weights()),
    ),
    flush=True,
)
