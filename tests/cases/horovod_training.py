"""Cases of `tests/test_horovod_training.py`, run by every worker."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfddl
import tfddl.horovod.tensorflow as hvd
import tfddl.horovod.tensorflow.keras as hvd_keras

LAYERS = ("own", "ours", "more")
STEPS = 6
SETTINGS: dict[str, Any] = {"learning_rate": 0.5, "momentum": 0.9, "global_clipnorm": 2.0}


def gradient(layer: str, step: int, rank: int) -> np.ndarray:
    """What a rank's gradient of a layer's kernel is, in a step."""
    return np.random.default_rng([LAYERS.index(layer), step, rank]).normal(size=(2, 1))


def kernels() -> dict[str, keras.layers.Layer]:
    """Layers with a kernel of zeros each."""
    layers = {
        name: keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros", name=name)
        for name in LAYERS
    }
    for layer in layers.values():
        layer.build((None, 2))
    return layers


def optimizer(**options: Any) -> dict[str, list[np.ndarray]]:
    """The kernels after some steps of a loop by hand, eagerly and in a graph.

    Args:
        options: Of Horovod's optimizer. "groups" may name layers; "local" says whether the layer
            "own" is this rank's own.
    """
    return {
        "eager": _steps(lambda step: step, **options),
        "graph": _steps(tf.function, **options),
    }


def _steps(
    compiled: Callable[[Any], Any], *, local: bool = False, **options: Any
) -> list[np.ndarray]:
    layers = kernels()
    variables = [layer.kernel for layer in layers.values()]
    if isinstance(options.get("groups"), list):
        options["groups"] = [[layers[n].kernel for n in names] for names in options["groups"]]
    plain = keras.optimizers.SGD(**SETTINGS)
    if local:
        wrapped = hvd_keras.PartialDistributedOptimizer(
            plain, local_layers=layers["own"], **options
        )
    else:
        wrapped = hvd.DistributedOptimizer(plain, **options)
    wrapped.build(variables)
    step = compiled(lambda given: wrapped.apply_gradients(zip(given, variables, strict=True)))
    for number in range(STEPS):
        step([tf.constant(gradient(n, number, tfddl.rank()), tf.float32) for n in LAYERS])
    return [np.asarray(variable) for variable in variables]


class OwnStep(keras.Sequential):
    """Averages by itself: the optimizer is a plain one."""

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        tape = hvd.DistributedGradientTape(tape)
        self._apply(tape.gradient(loss, self.trainable_variables))
        self._loss_tracker.update_state(loss)
        return {"loss": self._loss_tracker.result()}

    def _apply(self, gradients: Any) -> None:
        self.optimizer.apply(gradients, self.trainable_variables)


class HiddenOptimizer(OwnStep):
    """Has its optimizer where `compile` doesn't see it, and averages in that."""

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        self.hidden.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        self._loss_tracker.update_state(loss)
        return {"loss": self._loss_tracker.result()}


def own_step(hidden: bool, root_rank: int) -> dict[str, Any]:
    """A `fit` that doesn't know that the ranks train together, with Horovod's callbacks."""
    rank = tfddl.rank()
    keras.utils.set_random_seed(rank)
    kind = HiddenOptimizer if hidden else OwnStep
    model = kind([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    if hidden:
        model.hidden = hvd_keras.DistributedOptimizer(keras.optimizers.Adam(0.1))
    model.compile(keras.optimizers.Adam(0.1), loss="mse")
    own = model.layers[0].bias
    own.assign(tf.fill([3], float(rank)))
    x = np.random.default_rng(rank).normal(size=(8, 2)).astype("float32")
    history = model.fit(
        x,
        x.sum(axis=1),
        batch_size=4,
        epochs=2,
        verbose=0,
        callbacks=[
            hvd_keras.callbacks.BroadcastGlobalVariablesCallback(root_rank, local_variables=[own]),
            hvd_keras.callbacks.MetricAverageCallback(),
        ],
    )
    optimizer = model.hidden if hidden else model.optimizer
    state = [np.asarray(v) for v in (*model.weights, *optimizer.variables)]
    places = [i for i, v in enumerate((*model.weights, *optimizer.variables)) if "bias" in v.path]
    return {"state": state, "biases": places, "loss": history.history["loss"]}


def local_and_global() -> list[list[tuple[str, float]]]:
    """What `get_local_and_global_gradients` parts."""
    mine, ours = tf.Variable(1.0, name="mine"), tf.Variable(1.0, name="ours")
    with tf.GradientTape() as tape:
        loss = (mine + ours) * tfddl.rank()
    tape = hvd.DistributedGradientTape(tape)
    tape.register_local_source(mine)
    parts = tape.get_local_and_global_gradients(loss, [ours, mine])
    return [[(v.name, float(g)) for v, g in part] for part in parts]


def twice_the_same_set() -> list[str]:
    """What `init` says of process sets that are there twice."""
    one, everyone = hvd.ProcessSet([0]), hvd.ProcessSet(range(tfddl.size()))
    messages = []
    for sets in ([one, hvd.ProcessSet([0])], [everyone]):
        try:
            hvd.init(process_sets=sets)
        except ValueError as error:
            messages.append(str(error))
    hvd.init(process_sets=[one])
    ids = [one.process_set_id, everyone.process_set_id, hvd.global_process_set.process_set_id]
    return [*messages, f"ids {ids}"]
