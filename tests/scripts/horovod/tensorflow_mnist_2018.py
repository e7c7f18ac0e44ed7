"""Trains a small convolutional network, as written in 2018: placeholders, hooks, a session."""

import sys

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf
from tests.digits import load_digits

layers = tf.layers
folder, steps = sys.argv.pop(1), int(sys.argv.pop(1))

tf.logging.set_verbosity(tf.logging.INFO)


def conv_model(feature, target, mode):
    """2-layer convolution model."""
    target = tf.one_hot(tf.cast(target, tf.int32), 10, 1, 0)
    feature = tf.reshape(feature, [-1, 8, 8, 1])
    with tf.variable_scope("conv_layer1"):
        h_conv1 = layers.conv2d(
            feature, 8, kernel_size=[3, 3], activation=tf.nn.relu, padding="SAME"
        )
        h_pool1 = tf.nn.max_pool(h_conv1, ksize=[1, 2, 2, 1], strides=[1, 2, 2, 1], padding="SAME")
    with tf.variable_scope("conv_layer2"):
        h_conv2 = layers.conv2d(
            h_pool1, 16, kernel_size=[3, 3], activation=tf.nn.relu, padding="SAME"
        )
        h_pool2_flat = layers.flatten(layers.max_pooling2d(h_conv2, 2, 2))
    h_fc1 = layers.dropout(
        layers.dense(h_pool2_flat, 64, activation=tf.nn.relu),
        rate=0.2,
        training=mode == tf.estimator.ModeKeys.TRAIN,
    )
    h_fc1 = tf.nn.dropout(h_fc1, 1.0)
    logits = layers.dense(h_fc1, 10, activation=None)
    loss = tf.losses.softmax_cross_entropy(target, logits)
    return tf.argmax(logits, 1), loss


def train_input_generator(x_train, y_train, batch_size=32):
    assert len(x_train) == len(y_train)
    while True:
        p = np.random.permutation(len(x_train))
        x_train, y_train = x_train[p], y_train[p]
        index = 0
        while index <= len(x_train) - batch_size:
            yield x_train[index : index + batch_size], y_train[index : index + batch_size]
            index += batch_size


def main(_):
    # Horovod: initialize Horovod.
    hvd.init()

    digits = load_digits()
    x, y = digits.images.reshape(-1, 64) / 16.0, digits.target
    x_train, y_train = x[hvd.rank() : 1500 : hvd.size()], y[hvd.rank() : 1500 : hvd.size()]
    x_test, y_test = x[1500:], y[1500:]

    # Build model...
    with tf.name_scope("input"):
        image = tf.placeholder(tf.float32, [None, 64], name="image")
        label = tf.placeholder(tf.float32, [None], name="label")
    predict, loss = conv_model(image, label, tf.estimator.ModeKeys.TRAIN)

    # Horovod: adjust learning rate based on number of GPUs.
    opt = tf.train.AdamOptimizer(0.002 * hvd.size())

    # Horovod: add Horovod Distributed Optimizer.
    opt = hvd.DistributedOptimizer(opt)

    global_step = tf.train.get_or_create_global_step()
    train_op = opt.minimize(loss, global_step=global_step)

    hooks = [
        # Horovod: broadcast initial variable states from rank 0 to all other processes.
        hvd.BroadcastGlobalVariablesHook(0),
        # Horovod: adjust number of steps based on number of GPUs.
        tf.train.StopAtStepHook(last_step=steps // hvd.size()),
        tf.train.LoggingTensorHook(tensors={"step": global_step, "loss": loss}, every_n_iter=10),
    ]

    # Horovod: pin GPU to be used to process local rank (one GPU per process)
    config = tf.ConfigProto()
    config.gpu_options.allow_growth = True
    config.gpu_options.visible_device_list = str(hvd.local_rank())

    # Horovod: save checkpoints only on worker 0 to prevent other workers from corrupting them.
    checkpoint_dir = folder if hvd.rank() == 0 else None
    training_batch_generator = train_input_generator(x_train, y_train)
    with tf.train.MonitoredTrainingSession(
        checkpoint_dir=checkpoint_dir, hooks=hooks, config=config
    ) as mon_sess:
        kernel = tf.trainable_variables("conv_layer1/conv2d/kernel")[0]
        while not mon_sess.should_stop():
            image_, label_ = next(training_batch_generator)
            mon_sess.run(train_op, feed_dict={image: image_, label: label_})
            if not mon_sess.should_stop():
                fed = {image: x_test, label: y_test}
                found, weights = mon_sess.run([predict, kernel], feed_dict=fed)
    print("weights %.4f" % np.abs(weights).sum())
    print("accuracy %.3f" % np.mean(found == y_test))


if __name__ == "__main__":
    tf.app.run()
