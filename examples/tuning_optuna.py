"""Hyperparameters with Optuna: tfddlrun -np 2 python examples/tuning_optuna.py.

Rank 0 asks Optuna for each trial's values and tells it the result; all ranks train the trial
together. Needs `pip install optuna`.
"""

import argparse

import digits
import keras

import tfddl

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--trials", type=int, default=3)
parser.add_argument("--epochs", type=int, default=2)
args = parser.parse_args()

tfddl.init()
(x, y), (x_test, y_test) = digits.load()


def train(learning_rate: float, width: int) -> float:
    """Trains one model on all workers; returns its validation loss, the same on all ranks."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(width, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(
        tfddl.DistributedOptimizer(keras.optimizers.Adam(learning_rate)),
        loss="sparse_categorical_crossentropy",
    )
    history = model.fit(
        tfddl.shard_dataset(x, y, batch_size=32, seed=1),
        validation_data=tfddl.shard_dataset(x_test, y_test, batch_size=32),
        epochs=args.epochs,
        verbose=0,
    )
    return history.history["val_loss"][-1]


if tfddl.rank() == 0:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1))

for number in range(args.trials):
    values = None
    if tfddl.rank() == 0:
        trial = study.ask()
        values = {
            "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True),
            "width": trial.suggest_int("width", 16, 128, log=True),
        }
    values = tfddl.broadcast_object(values, root_rank=0)
    loss = train(**values)
    if tfddl.rank() == 0:
        study.tell(trial, loss)
        print(f"trial {number}: validation loss {loss:.4f} with {values}")

if tfddl.rank() == 0:
    print(f"best: {study.best_value:.4f} with {study.best_params}")
