"""TensorFlow's own style, under a scope: tfddlrun -np 2 python examples/strategy_scope.py."""

import argparse

import digits
import keras

import tfddl

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=5)
args = parser.parse_args()

tfddl.init()
strategy = tfddl.strategy()  # a MultiWorkerMirroredStrategy; before any other operation
keras.utils.set_random_seed(1)

with strategy.scope():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(1e-3 * strategy.num_replicas_in_sync),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )

(x, y), (x_test, y_test) = digits.load()
# Whole arrays, and the batch size of all workers together, as TensorFlow's guide has it.
history = model.fit(
    x,
    y,
    batch_size=32 * strategy.num_replicas_in_sync,
    epochs=args.epochs,
    validation_data=(x_test, y_test),
    verbose=2 if tfddl.rank() == 0 else 0,
)
if tfddl.rank() == 0:
    print(f"accuracy on {len(x_test)} test images: {history.history['val_accuracy'][-1]:.3f}")
