"""Keras' `fit` on several workers: tfddlrun -np 2 python examples/keras_fit.py.

Run it again and it goes on from its newest checkpoint; delete --directory to begin anew.
"""

import argparse
from pathlib import Path

import digits
import keras

import tfddl

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--batch-size", type=int, default=32, help="examples per worker and step")
parser.add_argument("--directory", type=Path, default=Path("keras_fit_output"))
args = parser.parse_args()

tfddl.init()  # finds the other workers
keras.utils.set_random_seed(1)

model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10),
    ]
)
# As many examples per step as workers give: the learning rate grows with them (Goyal et al. 2017).
optimizer = tfddl.DistributedOptimizer(keras.optimizers.Adam(1e-3 * tfddl.size()))
model.compile(
    optimizer,
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)

# Every worker names the whole data, and gets its shard: each example of an epoch goes to exactly
# one worker, and all run the same number of steps.
(x, y), (x_test, y_test) = digits.load()
train = tfddl.shard_dataset(x, y, batch_size=args.batch_size, seed=1)
test = tfddl.shard_dataset(x_test, y_test, batch_size=args.batch_size)

history = model.fit(
    train,
    epochs=args.epochs,
    validation_data=test,
    callbacks=[
        tfddl.callbacks.Checkpoint(args.directory / "checkpoints"),
        tfddl.callbacks.Monitor(args.directory / "logs"),  # tensorboard --logdir …/logs
    ],
    verbose=2 if tfddl.rank() == 0 else 0,
)

if tfddl.rank() == 0:  # the logs are the job's, the same on every rank
    print(f"accuracy on {len(x_test)} test images: {history.history['val_accuracy'][-1]:.3f}")
    model.save(args.directory / "digits.keras")
