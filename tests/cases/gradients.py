"""Cases about gradients outside of plain `fit`, run by every worker."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfddl
from tfddl._src.runtime import current

X = np.arange(20, dtype="float32").reshape(10, 2) / 10
Y = X @ np.array([[1.0], [-2.0]], "float32") + 0.3


def _mine() -> tuple[np.ndarray, np.ndarray]:
    """Shares that differ: rank 0 has more examples than the others."""
    cuts = {2: [0, 7, 10], 3: [0, 5, 8, 10]}[tfddl.size()]
    rank = tfddl.rank()
    return X[cuts[rank] : cuts[rank + 1]], Y[cuts[rank] : cuts[rank + 1]]


def _loss(kernel: Any, x: Any, y: Any) -> tf.Tensor:
    return tf.reduce_mean((tf.matmul(x, kernel) - y) ** 2)


def tape(counted: bool, dtype: str = "float32", **options: Any) -> dict[str, np.ndarray]:
    """DistributedGradientTape, in all the ways of holding it."""
    x, y = (values.astype(dtype) for values in _mine())
    count = len(x) if counted else None
    kernel = tf.Variable([[0.5], [0.5]], dtype=dtype)

    def after() -> tf.Tensor:
        with tf.GradientTape() as plain:
            loss = _loss(kernel, x, y)
        return tfddl.DistributedGradientTape(plain, **options).gradient(loss, kernel, count=count)

    def around() -> tf.Tensor:
        with tfddl.DistributedGradientTape(tf.GradientTape(), **options) as wrapped:
            loss = _loss(kernel, x, y)
        return wrapped.gradient(loss, [kernel, None][:1], count=count)[0]

    return {
        "after": after().numpy(),
        "around": around().numpy(),
        "graph": tf.function(after)().numpy(),
    }


def way(length: int) -> dict[str, Any]:
    """Through which files a gradient of so many numbers goes, and how many operations it takes.

    The files are those on the stack where numbers of several ranks become one, eagerly: a graph
    enters the native group from TensorFlow's threads, with the files above it left behind.
    """
    variable = keras.Variable(tf.zeros([length]))
    optimizer = tfddl.DistributedOptimizer(keras.optimizers.SGD(1.0))
    optimizer.build([variable])

    def step() -> None:
        with tfddl.loss_count(1 + tfddl.rank()):
            optimizer.apply([tf.fill([length], 1.0 + tfddl.rank())], [variable])

    files: set[str] = set()

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.endswith("/native/reductions.py"):
            above: FrameType | None = frame
            while above is not None:
                files.add(above.f_code.co_filename)
                above = above.f_back

    graph = tf.function(step, autograph=False)
    graph()  # Made, and its calls compared.
    counts = current().instrumentation.counts
    before = counts()[0]
    graph()
    operations = counts()[0] - before
    sys.setprofile(look)
    try:
        step()
    finally:
        sys.setprofile(None)
    root = str(Path(tfddl.__file__).parent) + "/"
    return {
        "operations": operations,
        "files": sorted(name.removeprefix(root) for name in files if name.startswith(root)),
        "weight": float(variable[0]),
    }


def apply_gradients(counted: bool) -> dict[str, np.ndarray]:
    """A loop written by hand, eagerly and in a graph."""
    return {
        "eager": _three_steps(counted, lambda f: f),
        "graph": _three_steps(counted, tf.function),
    }


def _three_steps(counted: bool, compiled: Callable[[Any], Any]) -> np.ndarray:
    x, y = _mine()
    kernel = keras.Variable([[0.5], [0.5]])
    optimizer = tfddl.DistributedOptimizer(keras.optimizers.SGD(0.1))
    optimizer.build([kernel])

    def step() -> None:
        with tf.GradientTape() as recorded:
            loss = _loss(tf.convert_to_tensor(kernel), x, y)
        gradients = recorded.gradient(loss, [kernel])
        with tfddl.loss_count(len(x)) if counted else contextlib.nullcontext():
            optimizer.apply_gradients(zip(gradients, [kernel], strict=True))

    run = compiled(step)
    for _ in range(3):
        run()
    return np.asarray(kernel)


def sparse(as_dense: bool) -> dict[str, Any]:
    """Gradients of an embedding, with ids that ranks share and ids that they don't."""
    ids = [[0, 1, 1], [1, 3], [4]][tfddl.rank()]
    table = tf.Variable(tf.reshape(tf.range(10.0), [5, 2]))

    def gradient() -> Any:
        with tf.GradientTape() as recorded:
            rows = tf.gather(table, ids)
            loss = tf.reduce_mean(tf.reduce_sum(rows**2, axis=1))
        wrapped = tfddl.DistributedGradientTape(recorded, sparse_as_dense=as_dense)
        return wrapped.gradient(loss, table, count=len(ids))

    kinds, values = [], []
    functions: tuple[Callable[[], Any], ...] = (gradient, tf.function(gradient))
    for function in functions:
        result = function()
        kinds.append(type(result).__name__)
        values.append(tf.convert_to_tensor(result).numpy())
    return {"kinds": kinds, "values": values, "ids": ids}


def embedding_fit() -> list[np.ndarray]:
    model = keras.Sequential([keras.Input((2,), dtype="int32"), keras.layers.Embedding(6, 3)])
    model.add(keras.layers.Flatten())
    model.add(keras.layers.Dense(1))
    model.compile(tfddl.DistributedOptimizer(keras.optimizers.Adam(0.1)), loss="mse")
    ids = np.array([[0, 1], [1, 1], [2, 5], [3, 0], [4, 4], [5, 1], [2, 2]], "int32")
    data = tfddl.shard_dataset(ids, ids.sum(1).astype("float32")[:, None], batch_size=2)
    model.fit(data, epochs=5, verbose=0)
    return [np.asarray(w) for w in model.weights]


def not_finite(nesting: str) -> dict[str, Any]:
    """mixed_float16: the third batch of the last rank overflows; all ranks skip that step."""
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4), keras.layers.Dense(1)])
    finally:
        keras.config.set_dtype_policy("float32")
    options = {"gradient_accumulation_steps": 2} if nesting.endswith("accumulating") else {}
    inner = keras.optimizers.SGD(0.01, **options)
    scaled = keras.optimizers.LossScaleOptimizer
    nestings: dict[str, Callable[[], Any]] = {
        "compile": lambda: tfddl.DistributedOptimizer(inner),
        "inside": lambda: scaled(tfddl.DistributedOptimizer(inner), initial_scale=1024.0),
        "outside": lambda: tfddl.DistributedOptimizer(scaled(inner, initial_scale=1024.0)),
    }
    model.compile(nestings[nesting.split()[0]](), loss="mse")
    x = np.ones((6, 2, 2), "float32")
    if tfddl.rank() == tfddl.size() - 1:
        x[2] = 60000.0
    flat = x.reshape(12, 2)
    model.fit(flat, flat[:, :1] / 2, batch_size=2, shuffle=False, epochs=1, verbose=0)
    optimizer = model.optimizer
    assert isinstance(optimizer, scaled)
    return {
        "iterations": int(optimizer.inner_optimizer.iterations.numpy()),
        "scale": float(optimizer.dynamic_scale.numpy()),
        "weights": [np.asarray(w) for w in model.weights],
    }
