"""`fit` on many workers, against plain Keras in one process on the same examples."""

from typing import Any

import keras
import numpy as np

import tfddl
from tfddl._src.sharding import GlobalPlan

_EXAMPLES, _BATCH, _EPOCHS = 83, 2, 3


def fit_differs() -> float:
    """The largest difference of any weight to one process, relative to the largest of its variable.

    83 examples in batches of 2 divide among no number of workers. Every rank computes the weights
    of the one process by itself.
    """
    rng = np.random.default_rng(5)
    x = rng.normal(size=(_EXAMPLES, 6)).astype("f4")
    y = np.tanh(x @ rng.normal(size=(6, 2))).astype("f4")
    size = tfddl.size()
    data = tfddl.shard_dataset(x, y, batch_size=_BATCH, seed=11)
    mine = _model(tfddl.DistributedOptimizer(keras.optimizers.Adam(0.01)))
    mine.fit(data, epochs=_EPOCHS, verbose=0)
    one = _model(keras.optimizers.Adam(0.01))
    plan = GlobalPlan(num_examples=_EXAMPLES, size=size, batch_size=_BATCH, seed=11)
    for epoch in range(_EPOCHS):
        for step in range(plan.steps):
            batches = [plan.batch(epoch=epoch, step=step, rank=rank) for rank in range(size)]
            indices = np.concatenate([batch.indices for batch in batches])
            one.train_on_batch(x[indices], y[indices])
    return max(
        float(np.abs(a - b).max() / np.abs(b).max())
        for a, b in zip(mine.get_weights(), one.get_weights(), strict=True)
    )


def _model(optimizer: Any) -> keras.Model:
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(2)]
    )
    model.compile(optimizer, loss="mse")
    return model
