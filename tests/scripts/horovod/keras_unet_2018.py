"""Segments pictures with a U-Net, as written in 2018: Keras 2 on its own, sessions, generators."""

from __future__ import division, print_function

import os
import sys

import horovod.keras as hvd
import keras
import numpy as np
import tensorflow as tf
from keras import backend as K
from keras.callbacks import EarlyStopping, ModelCheckpoint, ReduceLROnPlateau, TensorBoard
from keras.layers import Activation, Conv2D, Input, MaxPooling2D, UpSampling2D, concatenate
from keras.layers.normalization import BatchNormalization
from keras.losses import binary_crossentropy
from keras.models import Model
from keras.optimizers import Adam
from keras.preprocessing.image import img_to_array, load_img
from tests.digits import load_digits

folder, epochs = sys.argv[1], int(sys.argv[2])
batch_size = 8
os.chdir(folder)

# Horovod: initialize Horovod.
hvd.init()

# Horovod: pin GPU to be used to process local rank (one GPU per process)
config = tf.ConfigProto()
config.gpu_options.allow_growth = True
config.gpu_options.visible_device_list = str(hvd.local_rank())
K.set_session(tf.Session(config=config))
tf.set_random_seed(7)

checkpoint_format = "weights/checkpoint-{epoch}.hdf5"

# If set > 0, will resume training from a given checkpoint.
resume_from_epoch = 0
for try_epoch in range(epochs, 0, -1):
    if os.path.exists(checkpoint_format.format(epoch=try_epoch)):
        resume_from_epoch = try_epoch
        break

# Horovod: broadcast resume_from_epoch from rank 0 (which will have checkpoints) to other ranks.
resume_from_epoch = hvd.broadcast(resume_from_epoch, 0, name="resume_from_epoch")
print("resume from epoch %d" % resume_from_epoch)
verbose = 1 if hvd.rank() == 0 else 0

if hvd.rank() == 0 and not os.path.exists("train"):
    os.makedirs("train.new")
    for i, picture in enumerate(load_digits().images[:75]):
        picture = np.kron(picture / 16.0, np.ones((2, 2)))[..., np.newaxis]
        keras.preprocessing.image.save_img("train.new/%02d.png" % i, 255 * picture, scale=False)
    os.rename("train.new", "train")
hvd.broadcast_object(0)  # The pictures are there.

ids = sorted(name[:-4] for name in os.listdir("train"))
ids_train_split, ids_valid_split = ids[: len(ids) * 4 // 5], ids[len(ids) * 4 // 5 :]


def generator(ids_split, is_train):
    while True:
        picked = np.random.permutation(ids_split) if is_train else ids_split
        for start in range(0, len(picked), batch_size):
            x_batch, y_batch = [], []
            for name in picked[start : start + batch_size]:
                img = img_to_array(load_img("train/%s.png" % name, grayscale=False))[..., :1]
                mask = (img > 127).astype(np.float32)
                if is_train and np.random.random() < 0.5:
                    img, mask = img[:, ::-1], mask[:, ::-1]
                x_batch.append(img)
                y_batch.append(mask)
            yield np.array(x_batch, np.float32) / 255, np.array(y_batch, np.float32)


def dice_loss(y_true, y_pred):
    smooth = 1.0
    y_true_f = K.flatten(y_true)
    y_pred_f = K.flatten(y_pred)
    intersection = K.sum(y_true_f * y_pred_f)
    return (2.0 * intersection + smooth) / (K.sum(y_true_f) + K.sum(y_pred_f) + smooth)


def bce_dice_loss(y_true, y_pred):
    return binary_crossentropy(y_true, y_pred) + (1 - dice_loss(y_true, y_pred))


def weighted_bce_loss(y_true, y_pred, weight):
    # avoiding overflow
    epsilon = 1e-7
    y_pred = K.clip(y_pred, epsilon, 1.0 - epsilon)
    logit_y_pred = K.log(y_pred / (1.0 - y_pred))
    # https://www.tensorflow.org/api_docs/python/tf/nn/weighted_cross_entropy_with_logits
    loss = (1.0 - y_true) * logit_y_pred + (1.0 + (weight - 1.0) * y_true) * (
        K.log(1.0 + K.exp(-K.abs(logit_y_pred))) + K.maximum(-logit_y_pred, 0.0)
    )
    return K.sum(loss) / K.sum(weight)


def weighted(y_true, y_pred):
    weight = K.ones_like(K.cast(y_true, K.floatx()))
    return weighted_bce_loss(y_true, y_pred, weight)


def block(x, filters):
    x = Conv2D(filters, (3, 3), padding="same")(x)
    x = BatchNormalization()(x)
    return Activation("relu")(x)


inputs = Input(shape=(16, 16, 1))
down = block(inputs, 8)
center = block(MaxPooling2D((2, 2), strides=(2, 2))(down), 16)
up = block(concatenate([down, UpSampling2D((2, 2))(center)], axis=3), 8)
classify = Conv2D(1, (1, 1), activation="sigmoid")(up)
model = Model(inputs=inputs, outputs=classify)

# Horovod: adjust learning rate based on number of GPUs.
opt = Adam(lr=3e-3 * hvd.size(), decay=1e-4)

# Horovod: add Horovod Distributed Optimizer.
opt = hvd.DistributedOptimizer(opt)
model.compile(optimizer=opt, loss=bce_dice_loss, metrics=[dice_loss, weighted, "acc"])

callbacks = [
    # Horovod: broadcast initial variable states from rank 0 to all other processes.
    hvd.callbacks.BroadcastGlobalVariablesCallback(0),
    # Horovod: average metrics among workers at the end of every epoch.
    hvd.callbacks.MetricAverageCallback(),
    hvd.callbacks.LearningRateWarmupCallback(warmup_epochs=2, verbose=verbose),
    EarlyStopping(monitor="val_loss", patience=8, verbose=1, min_delta=1e-4),
    ReduceLROnPlateau(
        monitor="val_dice_loss", factor=0.1, patience=4, verbose=1, epsilon=1e-4, mode="max"
    ),
]

# Horovod: save checkpoints only on worker 0 to prevent other workers from corrupting them.
if hvd.rank() == 0:
    callbacks += [
        ModelCheckpoint(
            monitor="val_acc",
            filepath="weights/best_weights.hdf5",
            save_best_only=True,
            save_weights_only=True,
        ),
        ModelCheckpoint(checkpoint_format, save_weights_only=True, period=2),
        TensorBoard(log_dir="logs", write_grads=True),
    ]

# Horovod: restore on the first worker which will broadcast weights to other workers.
if resume_from_epoch > 0 and hvd.rank() == 0:
    model.load_weights(checkpoint_format.format(epoch=resume_from_epoch))

history = model.fit_generator(
    generator=generator(ids_train_split, True),
    steps_per_epoch=np.ceil(float(len(ids_train_split)) / float(batch_size) / hvd.size()),
    epochs=epochs,
    initial_epoch=resume_from_epoch,
    verbose=verbose,
    callbacks=callbacks,
    validation_data=generator(ids_valid_split, False),
    validation_steps=np.ceil(float(len(ids_valid_split)) / float(batch_size)),
    max_queue_size=10,
    workers=1,
)

score = model.evaluate_generator(generator(ids_valid_split, False), 2)
score = hvd.allreduce(score)
last = K.function([model.input, K.learning_phase()], [model.layers[-1].output])
masks = last([next(generator(ids_valid_split, False))[0], 0])[0]
if hvd.rank() == 0:
    model.save("unet.h5")
    again = model.predict_on_batch(next(generator(ids_valid_split, False))[0])
    assert np.allclose(masks, again, atol=1e-4), abs(masks - again).max()

print("epochs %s" % " ".join(str(epoch + 1) for epoch in history.epoch))
print(
    "loss %.6f dice %.6f val_acc %.6f steps %d lr %.6f weights %.6f"
    % (
        score[0],
        history.history["val_dice_loss"][-1],
        history.history["val_acc"][-1],
        K.get_value(model.optimizer.iterations),
        K.get_value(model.optimizer.lr),
        sum(np.abs(w).sum() for w in model.get_weights()),
    )
)
