"""A training loop by hand: tfddlrun -np 2 python examples/custom_loop.py."""

import argparse

import digits
import keras
import tensorflow as tf

import tfddl

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=5)
args = parser.parse_args()

tfddl.init()
keras.utils.set_random_seed(1)

model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10),
    ]
)
optimizer = keras.optimizers.Adam(1e-3 * tfddl.size())
optimizer.build(model.trainable_variables)
loss_function = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
tfddl.broadcast_variables([*model.variables, *optimizer.variables])  # all start from rank 0's


@tf.function
def train_step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """One step of all workers; returns the sum of this worker's losses, float32 ()."""
    with tf.GradientTape() as tape:
        loss = loss_function(y, model(x, training=True))
    count = tf.shape(x)[0]
    # The last batches may differ in size: the count says what this worker's mean is the mean of.
    tape = tfddl.DistributedGradientTape(tape)
    gradients = tape.gradient(loss, model.trainable_variables, count=count)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return loss * tf.cast(count, loss.dtype)


(x, y), (x_test, y_test) = digits.load()
for epoch in range(args.epochs):
    data = tfddl.shard_dataset(x, y, batch_size=32, seed=1, epoch=epoch)  # anew in every epoch
    total = sum(train_step(*batch) for batch in data)
    mean = tfddl.allreduce(total, "sum") / len(x)  # of all workers' examples
    if tfddl.rank() == 0:
        print(f"epoch {epoch + 1}: loss {mean.numpy():.4f}")

start, stop = tfddl.shard_range(len(x_test), tfddl.rank(), tfddl.size())
labels = tf.argmax(model(x_test[start:stop]), axis=1, output_type=tf.int32)
right = tf.reduce_sum(tf.cast(labels == y_test[start:stop], tf.float32))
accuracy = tfddl.allreduce(right, "sum") / len(x_test)
if tfddl.rank() == 0:
    print(f"accuracy on {len(x_test)} test images: {accuracy.numpy():.3f}")
