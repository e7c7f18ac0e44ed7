"""Cases about models made under ``tfddl.strategy().scope()``, run by every worker."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfddl
from tests.cases.fit import raised

N = 47
X = np.random.default_rng(0).normal(size=(N, 5)).astype("float32")
Y = (X.sum(1, keepdims=True) > 0).astype("float32")


class OwnStep(keras.Model):
    """A `train_step` as Keras' guides write it, with a loss that Keras scales."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            predicted = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=predicted, sample_weight=weight)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        for metric in self.metrics:
            if metric.name == "loss":
                # Under a strategy Keras divides the loss by the number of replicas.
                replicas = tf.distribute.get_strategy().num_replicas_in_sync
                metric.update_state(loss * replicas, sample_weight=tf.shape(y)[0])
            else:
                metric.update_state(y, predicted, sample_weight=weight)
        return {metric.name: metric.result() for metric in self.metrics}


class Subclassed(keras.Model):
    """Without an Input: built by the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = keras.layers.Dense(4, activation="tanh")
        self.out = keras.layers.Dense(1, activation="sigmoid")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.out(self.hidden(inputs))


def _sequential() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(4, use_bias=False),
            keras.layers.BatchNormalization(momentum=0.8),
            keras.layers.Activation("tanh"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )


def _functional(kind: type[keras.Model] = keras.Model) -> keras.Model:
    inputs = keras.Input((5,))
    hidden = keras.layers.Dense(4, activation="tanh")(inputs)
    return kind(inputs, keras.layers.Dense(1, activation="sigmoid")(hidden))


def _dictionaries() -> keras.Model:
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    hidden = keras.layers.Dense(4, activation="tanh")(keras.layers.Concatenate()([a, b]))
    p = keras.layers.Dense(1, activation="sigmoid", name="p")(hidden)
    q = keras.layers.Dense(1, name="q")(hidden)
    return keras.Model({"a": a, "b": b}, {"p": p, "q": q})


KINDS: dict[str, Callable[[], keras.Model]] = {
    "sequential": _sequential,
    "functional": _functional,
    "own train_step": lambda: _functional(OwnStep),
    "subclassed": Subclassed,
    "dictionaries": _dictionaries,
}


def _data(kind: str) -> tuple[Any, Any]:
    if kind != "dictionaries":
        return X, Y
    return {"a": X[:, :2], "b": X[:, 2:]}, {"p": Y, "q": Y - 0.5}


def _made(kind: str, *, under_scope: bool, policy: str = "float32", **compiled: Any) -> keras.Model:
    keras.utils.clear_session()
    keras.mixed_precision.set_global_policy(policy)
    keras.utils.set_random_seed(3)
    with tfddl.strategy().scope() if under_scope else contextlib.nullcontext():
        model = KINDS[kind]()
        optimizer = keras.optimizers.Adam(0.01)
        if kind == "dictionaries":
            compiled |= {"loss": {"p": "binary_crossentropy", "q": "mse"}}
            compiled |= {"metrics": {"p": ["accuracy"], "q": ["mae"]}}
        model.compile(
            optimizer if under_scope else tfddl.DistributedOptimizer(optimizer),
            **{
                "loss": "binary_crossentropy",
                "metrics": [
                    "accuracy",
                    keras.metrics.AUC(name="auc"),
                    # Not a quotient: what is counted twice shows.
                    keras.metrics.TruePositives(name="positives"),
                ],
                **compiled,
            },
        )
    return model


def both_apis(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """What a model arrives at through either API: [Horovod's, TensorFlow's]."""
    found: dict[str, list[Any]] = {"weights": [], "history": [], "predictions": [], "results": []}
    x, y = _data(kind)
    for under_scope in (False, True):
        model = _made(kind, under_scope=under_scope, **options)
        stopping = keras.callbacks.EarlyStopping("val_loss", patience=9, restore_best_weights=True)
        history = model.fit(
            tfddl.shard_dataset(x, y, batch_size=4, seed=1),
            epochs=3,
            validation_data=(x, y),
            callbacks=[stopping, keras.callbacks.ReduceLROnPlateau(patience=1, min_delta=1.0)],
            verbose=0,
        )
        found["weights"].append([np.asarray(w) for w in model.weights])
        found["history"].append(history.history)
        found["predictions"].append(tf.nest.flatten(model.predict(x, verbose=0)))
        found["results"].append(model.evaluate(x, y, verbose=0))
    return found


def given(what: str) -> dict[str, Any]:
    """`fit` and `evaluate` with data as one process would give them; beside `shard_dataset`."""
    options: dict[str, Any] = {"epochs": 2, "verbose": 0}
    model = _made("subclassed", under_scope=True)
    dataset = tf.data.Dataset.from_tensor_slices((X, Y))
    evaluated: tuple[Any, ...] = (X, Y)
    if what == "arrays":
        # A number that the workers don't divide is rounded up: 8 for two of them.
        batch_size = 8 if tfddl.size() == 1 else 7
        history = model.fit(X, Y, batch_size=batch_size, shuffle=False, **options)
    elif what == "arrays, split":
        history = model.fit(X, Y, batch_size=8, validation_split=0.3, **options)
    elif what == "batches":
        # 2 examples are left for the last batch.
        batches = dataset.batch(N // 3)
        evaluated = (batches,)
        history = model.fit(batches, validation_data=batches, **options)
    elif what == "repeated":
        history = model.fit(dataset.repeat().batch(8), steps_per_epoch=4, **options)
    else:
        distributed = tfddl.strategy().distribute_datasets_from_function(
            lambda context: (
                dataset.take(40)
                .shard(context.num_input_pipelines, context.input_pipeline_id)
                .batch(5)
            )
        )
        history = model.fit(distributed, **options)
    return {
        "history": history.history,
        "iterations": int(model.optimizer.iterations.numpy()),
        "weights": [np.asarray(w) for w in model.weights],
        "results": model.evaluate(*evaluated, verbose=0, return_dict=True),
    }


def few() -> tuple[list[float], list[np.ndarray]]:
    """A last batch of one example: the other ranks run one that doesn't count."""
    model = _made("subclassed", under_scope=True)
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(N - 1)
    history = model.fit(dataset, epochs=2, verbose=0)
    return history.history["loss"], [np.asarray(w) for w in model.weights]


def refused(what: str) -> tuple[str, str, float]:
    """What can't work stops before the first step, on all ranks."""
    return raised(lambda: _refused(what))


def _refused(what: str) -> None:
    scope = tfddl.strategy().scope
    dataset = tf.data.Dataset.from_tensor_slices((X, Y))
    if what == "a model from outside":
        model = Subclassed()
        with scope():
            model.compile("sgd", "mse")
    elif what == "an optimizer from outside":
        optimizer = keras.optimizers.SGD()
        with scope():
            Subclassed().compile(optimizer, "mse")
    elif what == "a distributed optimizer":
        optimizer = tfddl.DistributedOptimizer(keras.optimizers.SGD())
        with scope():
            model = Subclassed()
        model.compile(optimizer, "mse")
    elif what in _STRATEGIES:
        _STRATEGIES[what]()
    else:
        model = _made("subclassed", under_scope=True)
        rank = tfddl.rank()
        if what == "other arrays":
            model.fit(X[rank : rank + 20], Y[rank : rank + 20], verbose=0)
        elif what == "auto-sharding":
            model.fit(tfddl.strategy().experimental_distribute_dataset(dataset.batch(8)))
        elif what == "single examples":
            model.fit(tf.data.Dataset.from_tensors(tf.constant(1.0)))
        elif what == "other orders":
            tf.random.set_seed(rank)
            model.fit(dataset.shuffle(N).batch(8), verbose=0)


def _other_resolver() -> None:
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(tf.train.ClusterSpec({}))
    tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)


def _other_collectives() -> None:
    communication = tf.distribute.experimental.CommunicationImplementation.NCCL
    tf.distribute.experimental.MultiWorkerMirroredStrategy(communication)


def _compile_under_mirrored() -> None:
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        Subclassed().compile("sgd", "mse")


_STRATEGIES: dict[str, Callable[[], None]] = {
    "a mirrored strategy": _compile_under_mirrored,
    "another resolver": _other_resolver,
    "other collectives": _other_collectives,
}


def overflow() -> dict[str, Any]:
    """mixed_float16, and an example of one rank that overflows: all skip the step."""
    try:
        model = _made("functional", under_scope=True, policy="mixed_float16")
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        broken = X.copy()
        broken[0] = np.inf
        model.fit(X, Y, batch_size=N, verbose=0)
        before = [np.asarray(w) for w in model.weights]
        model.fit(broken, Y, batch_size=N, shuffle=False, verbose=0)
        after = [np.asarray(w) for w in model.weights]
        model.fit(X, Y, batch_size=8, verbose=0)
        last = [np.asarray(w) for w in model.weights]
    finally:
        keras.mixed_precision.set_global_policy("float32")
    return {"before": before, "after": after, "last": last}


def saved(path: str) -> dict[str, Any]:
    """A model that is saved, loaded under the scope, and gone on with."""
    model = _made("dictionaries", under_scope=True)
    x, y = _data("dictionaries")
    data = tfddl.shard_dataset(x, y, batch_size=4)
    model.fit(data, verbose=0)
    own = Path(path) / f"{tfddl.rank()}.keras"
    model.save(own)
    model.fit(data, verbose=0)
    with tfddl.strategy().scope():
        loaded = keras.models.load_model(own)
    loaded.fit(data, verbose=0)
    return {
        "gone on": [np.asarray(w) for w in model.weights],
        "loaded": [np.asarray(w) for w in loaded.weights],
        "iterations": int(loaded.optimizer.iterations.numpy()),
        "optimizer": type(loaded.optimizer).__name__,
    }
