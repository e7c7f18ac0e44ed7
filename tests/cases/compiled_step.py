"""Steps that XLA compiles between the exchanges, run by every worker."""

import warnings
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

import tfddl
from tests.cases.fit import raised
from tfddl._src.keras_hooks import compiled_step

_N, _CLASSES = 47, 3
_X = np.random.default_rng(0).normal(size=(_N, 5)).astype("float32")
_Y = (_X[:, 0] > 0).astype("int32") + (_X[:, 1] > 0)


class Own(keras.Model):
    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


class Super(keras.Model):
    def train_step(self, data: Any) -> Any:
        x, y = data
        return super().train_step((x + 1, y))


class _Traced(keras.layers.Layer):
    """Counts how often it is traced with training=True."""

    count = 0

    def call(self, inputs: Any, training: bool = False) -> Any:
        _Traced.count += bool(training)
        return inputs


def _made(kind: str) -> keras.Model:
    inputs = keras.Input((5,))
    hidden = _Traced()(keras.layers.Dense(8, activation="tanh")(inputs))
    if kind == "super" or "normalization" in kind:
        synchronized = kind == "synchronized normalization"
        hidden = keras.layers.BatchNormalization(synchronized=synchronized)(hidden)
    outputs = keras.layers.Dense(_CLASSES, activation="softmax", dtype="float32")(hidden)
    return {"own": Own, "super": Super}.get(kind, keras.Model)(inputs, outputs)


def _compiled(kind: str, jit_compile: bool | str) -> keras.Model:
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    options: dict[str, Any] = {"loss": "sparse_categorical_crossentropy"}
    if kind == "accumulation":
        optimizer = keras.optimizers.Adam(0.01, gradient_accumulation_steps=3)
    else:
        optimizer = keras.optimizers.Adam(0.01, global_clipnorm=1.0)
    if kind == "scope":
        with tfddl.strategy().scope():
            model, optimizer = _made(kind), keras.optimizers.Adam(0.01)
            model.compile(optimizer, **options, metrics=["accuracy"], jit_compile=jit_compile)
        return model
    if kind == "mixed_float16":
        keras.config.set_dtype_policy("mixed_float16")
    try:
        model = _made(kind)
        rate = keras.metrics.MeanMetricWrapper(
            lambda y_true, y_pred: tf.cast(optimizer.iterations, tf.float32), name="iterations"
        )
        if kind not in ("own", "no metrics"):
            options["metrics"] = ["accuracy", rate]  # The second sees the update.
        distributed = tfddl.DistributedOptimizer(optimizer)
        model.compile(distributed, **options, jit_compile=jit_compile)
    finally:
        keras.config.set_dtype_policy("float32")
    return model


def _fit(model: keras.Model, *, epochs: int = 2) -> tuple[dict[str, Any], list[str]]:
    """The logs, and the warnings about XLA."""
    dataset = tfddl.shard_dataset(_X, _Y, batch_size=4, seed=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = model.fit(dataset, epochs=epochs, verbose=0, validation_data=(_X[:11], _Y[:11]))
    texts = [str(one.message) for one in caught]
    return history.history, [text for text in texts if text.startswith("jit_compile")]


def compiled_and_not(kind: str) -> dict[str, Any]:
    """What both come to: weights, logs, traces; of the compiled one also what XLA compiles."""
    found: dict[str, Any] = {}
    for jit_compile in (False, True):
        model = _compiled(kind, jit_compile)
        _Traced.count = 0
        logs, warned = _fit(model)
        traced = _Traced.count
        found["compiled" if jit_compile else "plain"] = {
            "weights": [np.asarray(w) for w in model.weights],
            "logs": logs,
            "warned": warned,
            "traced": traced,
            "iterations": int(tf.convert_to_tensor(model.optimizer.iterations)),
            "parts": _parts(model),
            "predicted": model.predict(_X[:11], verbose=0),
        }
    return found


def _parts(model: keras.Model) -> tuple[int, bool]:
    """How many parts of a step XLA compiles, and whether matrices are multiplied elsewhere."""
    spec = (tf.TensorSpec((4, 5)), tf.TensorSpec((4,), tf.int32))
    graph = tf.function(model.train_step, autograph=False).get_concrete_function(spec).graph
    operations = graph.get_operations()
    calls = [op for op in operations if "PartitionedCall" in op.type]
    compiled = [call for call in calls if _must_compile(call)]
    return len(compiled), any("MatMul" in op.type for op in operations)


def _must_compile(call: tf.Operation) -> bool:
    try:
        return bool(call.get_attr("_XlaMustCompile"))
    except ValueError:
        return False


def process_set() -> list[list[np.ndarray]]:
    """Gradients are exchanged by some ranks only, here all: `fit` then is each rank's own."""
    import tfddl.horovod.keras as hvd

    found = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(3)
        model = _made("plain")
        optimizer = hvd.DistributedOptimizer(
            keras.optimizers.Adam(0.01), process_set=hvd.ProcessSet([0, 1])
        )
        model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=jit_compile)
        model.fit(_X[:24], _Y[:24], batch_size=4, shuffle=False, verbose=0)
        found.append([np.asarray(w) for w in model.weights])
    return found


def other_processors() -> dict[str, Any]:
    """Ranks on different kinds of processors: each would round an update in its own way."""
    name = f"kind {tfddl.rank()}"
    with mock.patch.object(compiled_step, "processor_name", return_value=name):
        model = _compiled("plain", True)
        _, warned = _fit(model, epochs=1)
    return {"warned": warned, "parts": _parts(model)}


def automatic() -> dict[str, Any]:
    """What "auto" comes to, on CPUs, and where Keras takes it for True, as on GPUs."""
    found: dict[str, Any] = {"CPU": bool(_compiled("plain", "auto").jit_compile)}
    with mock.patch.object(keras.Model, "_resolve_auto_jit_compile", return_value=True):
        for kind in ("plain", "own", "synchronized normalization"):
            model = _compiled(kind, "auto")
            found[kind] = (bool(model.jit_compile), _fit(model, epochs=1)[1])
    return found


def refused() -> dict[str, tuple[str, str]]:
    """Virtual workers; and ranks of which only some compile."""
    virtual = _made("plain")
    optimizer = tfddl.DistributedOptimizer(keras.optimizers.SGD(0.1), virtual_workers=2)
    found = {
        "virtual": raised(lambda: virtual.compile(optimizer, "mse", jit_compile=True))[:2],
    }
    with mock.patch.object(keras.Model, "_resolve_auto_jit_compile", return_value=True):
        virtual.compile(optimizer, "sparse_categorical_crossentropy")
    assert virtual.jit_compile is False
    virtual.jit_compile = True
    data = tfddl.shard_dataset(_X, _Y, batch_size=4, virtual_workers=2)
    found["virtual, set later"] = raised(lambda: virtual.fit(data, verbose=0))[:2]
    some = _compiled("plain", tfddl.rank() == 0)
    found["some"] = raised(lambda: _fit(some))[:2]
    return found
