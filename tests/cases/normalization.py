"""Cases about BatchNormalization(synchronized=True), run by every worker.

Each compares the worker's own part of some examples, normalized with all others', with Keras' plain
layer on all of them: which tfddl leaves alone.
"""

import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfddl

N = 11


def layer_alone(kind: str) -> dict[str, float]:
    """The largest differences, relative to the largest values, of what a layer computes.

    The loss is a mean over examples that isn't linear in what the layer gives, in two layers, so
    that a gradient goes through the moments of the second into those of the first.
    """
    x, mask = _examples(kind)
    everything = _Work(kind, synchronized=False)
    gradients, expected = everything.gradients(x, mask, lambda tape, *args: tape.gradient(*args))
    start, stop = _part(kind)

    def averaged(tape: tf.GradientTape, loss: Any, sources: Any) -> Any:
        return tfddl.DistributedGradientTape(tape).gradient(loss, sources, count=stop - start)

    found: dict[str, float] = {}
    for name, compiled in (("eager", lambda f: f), ("graph", tf.function)):
        work = _Work(kind, synchronized=True)
        mine = x[start:stop], None if mask is None else mask[start:stop]
        averages, outputs = compiled(lambda w=work, m=mine: w.gradients(*m, averaged))()
        got = [outputs, *averages, *work.state()]
        wanted = [expected[start:stop], *gradients, *everything.state()]
        found |= {f"{name} {key}": value for key, value in _differences(got, wanted).items()}
        assert all(a.tobytes() == b.tobytes() for a, b in _pairs(work.state()))
    return found


class _Work:
    """Two layers that normalize, with something between and after them."""

    def __init__(self, kind: str, *, synchronized: bool) -> None:
        keras.utils.set_random_seed(2)
        options = dict(OPTIONS.get(kind, {}), synchronized=synchronized, momentum=0.7)
        x, _ = _examples(kind)
        self.kernel = tf.Variable(np.random.default_rng(4).normal(size=(x.shape[-1],) * 2))
        self.layers = [
            keras.layers.BatchNormalization(dtype=x.dtype.name, **options) for _ in range(2)
        ]
        for layer in self.layers:
            layer.build(x.shape)

    def gradients(self, x: Any, mask: Any, gradient: Callable[..., Any]) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            first, second = self.layers
            x = x @ tf.cast(self.kernel, x.dtype)
            hidden = tf.tanh(first(x, training=True, mask=mask))
            outputs = second(hidden @ tf.cast(self.kernel, x.dtype), training=True, mask=mask)
            of_examples = tf.reduce_mean(outputs**3 + outputs, list(range(1, len(x.shape))))
            loss = tf.cast(tf.reduce_mean(of_examples), tf.float64)
        sources = [self.kernel, *(v.value for k in self.layers for v in k.trainable_variables)]
        return gradient(tape, loss, sources), outputs

    def state(self) -> list[np.ndarray]:
        return [np.asarray(v) for k in self.layers for v in k.non_trainable_variables]


OPTIONS: dict[str, dict[str, Any]] = {
    "channels first": {"axis": 1},
    "masked, channels first": {"axis": 1},
    "renorm": {"renorm": True},
}


def _examples(kind: str) -> tuple[np.ndarray, np.ndarray | None]:
    rng = np.random.default_rng(1)
    shape = {"float32": (N, 3), "images": (N, 4, 5, 3)}.get(kind, (N, 4, 3))
    x = rng.normal(size=shape) * rng.uniform(0.5, 2, shape[-1]) + rng.normal(size=shape[-1])
    dtype = {"float32": "float32", "float16": "float16"}.get(kind, "float64")
    mask = None
    if kind.startswith("masked"):
        mask = rng.uniform(size=shape[:-1]) < 0.6
        if kind == "masked":
            mask[-3:] = False  # All that the last rank has.
    return x.astype(dtype), mask


def _part(kind: str) -> tuple[int, int]:
    cuts = {2: [0, 8, N], 3: [0, 6, 8, N]}[tfddl.size()]
    if kind == "a rank without examples":
        cuts = {2: [0, N, N], 3: [0, 7, 7, N]}[tfddl.size()]
    return cuts[tfddl.rank()], cuts[tfddl.rank() + 1]


def _differences(found: list[Any], wanted: list[Any]) -> dict[str, float]:
    """Of the outputs, the kernel, gamma and beta twice, and the moving statistics."""
    names = ["outputs", "kernel", "gamma", "beta", "gamma 2", "beta 2"]
    names += [f"state {i}" for i in range(len(wanted) - len(names))]
    return {name: _difference(a, b) for name, a, b in zip(names, found, wanted, strict=True)}


def _difference(found: Any, wanted: Any) -> float:
    found, wanted = np.asarray(found, "float64"), np.asarray(wanted, "float64")
    assert found.shape == wanted.shape
    if not found.size:
        return 0.0
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def _pairs(mine: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(mine, tfddl.broadcast_object(mine), strict=True))


def far_from_zero() -> list[float]:
    """The moving statistics of examples of mean 1000 and deviation 0.1, and what they should be."""
    rng = np.random.default_rng(tfddl.rank())
    x = (1000 + 0.1 * rng.normal(size=(40 + 30 * tfddl.rank(), 1))).astype("float32")
    layer = keras.layers.BatchNormalization(synchronized=True, momentum=0.0)
    layer(x, training=True)
    every = np.concatenate(tfddl.allgather_object(x.astype("float64")))
    moments = float(layer.moving_mean[0]), float(layer.moving_variance[0])
    return [*moments, float(every.mean()), float(every.var())]


def under_strategy() -> dict[str, float]:
    """`strategy.run`, where the strategy adds up gradients of losses divided by all examples."""
    x, _ = _examples("images")
    everything = _Work("images", synchronized=False)
    gradients, expected = everything.gradients(x, None, lambda tape, *args: tape.gradient(*args))
    start, stop = _part("images")
    strategy = tfddl.strategy()
    with strategy.scope():
        work = _Work("images", synchronized=True)

    def scaled(tape: tf.GradientTape, loss: Any, sources: Any) -> Any:
        seed = tf.constant((stop - start) / N, loss.dtype)
        own = tape.gradient(loss, sources, output_gradients=seed)
        context = tf.distribute.get_replica_context()
        return [context.all_reduce(tf.distribute.ReduceOp.SUM, gradient) for gradient in own]

    def step(part: Any) -> Any:
        return work.gradients(part, None, scaled)

    @tf.function
    def run() -> Any:
        return strategy.run(step, args=(tf.constant(x[start:stop]),))

    averages, outputs = run()
    return _differences(
        [outputs, *averages, *work.state()],
        [expected[start:stop], *gradients, *everything.state()],
    )


def collectives() -> dict[str, list[str]]:
    """The operations that a layer puts into a graph: the kind, and the shape of what travels."""
    layer = keras.layers.BatchNormalization(synchronized=True)
    layer.build((None, 5, 5, 6))

    def forward(x: Any) -> Any:
        return layer(x, training=True)

    def both(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, training=True) ** 2)
        return tape.gradient(loss, x)

    found = {}
    functions = {"forward": forward, "both": both, "not training": lambda x: layer(x)}
    for name, function in functions.items():
        spec = tf.TensorSpec((None, 5, 5, 6))
        graph = tf.function(function).get_concrete_function(spec).graph
        kinds = ("CollectiveGatherV2", "CollectiveReduceV2", "PyFunc")
        ops = [op for op in graph.get_operations() if op.type in kinds]
        # What goes through Python has two tickets before it.
        data = [op.inputs[2 if op.type == "PyFunc" else 0] for op in ops]
        found[name] = [f"{op.type} {sent.shape[0]}" for op, sent in zip(ops, data, strict=True)]
    return found


def knows_renorm() -> bool:
    return "renorm" in inspect.signature(keras.layers.BatchNormalization.__init__).parameters


def alone() -> bool:
    """Only one rank infers, and the others would not come."""
    layer = keras.layers.BatchNormalization(synchronized=True)
    frozen = keras.layers.BatchNormalization(synchronized=True, trainable=False)
    x = np.ones((3, 2), "float32")
    layer.build(x.shape)
    if tfddl.rank() == 0:
        model = keras.Sequential([keras.Input((2,)), layer, frozen])
        assert np.allclose(model.predict_on_batch(x), 1, atol=2e-3)
        assert np.allclose(model(x, training=False), 1, atol=2e-3)
        assert np.allclose(frozen(x, training=True), 1, atol=1e-3)
    tfddl.barrier()
    return True


def gradient_of_gradient() -> str:
    layer = keras.layers.BatchNormalization(synchronized=True)
    x = tf.constant(np.random.default_rng(tfddl.rank()).normal(size=(4, 2)), tf.float32)
    try:
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = tf.reduce_sum(layer(x, training=True) ** 3)
            penalty = tf.reduce_sum(inner.gradient(loss, x) ** 2)
        outer.gradient(penalty, x)
    except tfddl.errors.UnsupportedError as error:
        return str(error)
    return ""


def stand_ins(op: str) -> list[list[float]]:
    """The moving statistics of one epoch, some ranks of which have no example in its last step."""
    x = (np.arange(7, dtype="float32") ** 2)[:, None]
    layer = keras.layers.BatchNormalization(synchronized=True, momentum=0.0)
    model = keras.Sequential([keras.Input((1,)), layer, keras.layers.Dense(1)])
    optimizer = keras.optimizers.SGD(1e-3)
    model.compile(tfddl.DistributedOptimizer(optimizer, op=op), loss="mse")
    model.fit(tfddl.shard_dataset(x, x, batch_size=1), epochs=1, verbose=0)
    found = [float(layer.moving_mean[0]), float(layer.moving_variance[0])]
    return [found, [float(x[5:].mean()), float(x[5:].var())]]
