"""A GAN, two models and two optimizers in one step: tfddlrun -np 2 python examples/gan.py."""

import argparse

import digits
import keras
import tensorflow as tf

import tfddl

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=10)
args = parser.parse_args()

NOISE = 16

tfddl.init()
keras.utils.set_random_seed(1)

generator = keras.Sequential(
    [
        keras.Input((NOISE,)),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(64, activation="sigmoid"),
        keras.layers.Reshape((8, 8, 1)),
    ]
)
discriminator = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="leaky_relu"),
        keras.layers.Dense(1),
    ]
)
# The optimizers exchange the gradients, weighted by the count that `loss_count` gives them.
g_optimizer = tfddl.DistributedOptimizer(keras.optimizers.Adam(1e-3, beta_1=0.5))
d_optimizer = tfddl.DistributedOptimizer(keras.optimizers.Adam(1e-3, beta_1=0.5))
g_optimizer.build(generator.trainable_variables)
d_optimizer.build(discriminator.trainable_variables)
tfddl.broadcast_variables(
    [*generator.variables, *discriminator.variables, *g_optimizer.variables, *d_optimizer.variables]
)
cross_entropy = keras.losses.BinaryCrossentropy(from_logits=True)
# Each worker makes up other noise, the same in every run.
noise = tf.random.Generator.from_seed(1000 + tfddl.rank())


@tf.function
def train_step(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """One step of both models; returns the losses of this worker, float32 ()."""
    count = tf.shape(images)[0]
    ones, zeros = tf.ones((count, 1)), tf.zeros((count, 1))
    with tf.GradientTape(persistent=True) as tape:
        fake = generator(noise.normal((count, NOISE)), training=True)
        on_real, on_fake = discriminator(images), discriminator(fake)
        d_loss = cross_entropy(ones, on_real) + cross_entropy(zeros, on_fake)
        g_loss = cross_entropy(ones, on_fake)
    with tfddl.loss_count(count):
        for model, optimizer, loss in (
            (discriminator, d_optimizer, d_loss),
            (generator, g_optimizer, g_loss),
        ):
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return d_loss, g_loss


(x, _), _ = digits.load()
for epoch in range(args.epochs):
    losses = [
        train_step(images) for images in tfddl.shard_dataset(x, batch_size=50, seed=1, epoch=epoch)
    ]
    d_loss, g_loss = tfddl.allreduce(tf.reduce_mean(losses, axis=0), "average")
    if tfddl.rank() == 0:
        print(f"epoch {epoch + 1}: discriminator {d_loss:.3f}, generator {g_loss:.3f}")

images = generator(noise.normal((4, NOISE)))
if tfddl.rank() == 0:
    print("\n".join("".join(" .:*#"[int(p * 4.99)] for p in row) for row in images[0, :, :, 0]))
