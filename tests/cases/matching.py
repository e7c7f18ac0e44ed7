"""Cases of `tests/test_matching.py`, run by every worker: gradients that not all ranks have."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

import tfddl
import tfddl.horovod.tensorflow as hvd
from tests.cases.disagreements import _provoked
from tfddl._src.collectives import sum_weighted
from tfddl._src.gradients import reduction
from tfddl._src.runtime import current

COUNTS = (7, 3, 2)
"""Examples of each rank."""

VARIABLES: dict[str, tf.Tensor] = {
    "a": tf.zeros([2]),
    "b": tf.zeros([2]),
    "rows": tf.zeros([5, 2]),
    "wide": tf.zeros([3], tf.float64),
    "nobody's": tf.zeros([2]),
}

# Which gradients each rank has. "slices of rows" is that of an embedding.
STEPS: dict[str, tuple[set[str], set[str], set[str]]] = {
    "heads of their own": ({"a"}, {"b"}, {"a", "b"}),
    "the other way round": ({"b"}, {"a"}, {"a", "b"}),
    "a rank without any": ({"a", "rows"}, set(), {"rows"}),
    "slices and none": ({"slices of rows", "a"}, {"a"}, {"slices of rows", "a"}),
    "slices and dense ones": ({"slices of rows"}, {"rows"}, set()),
    "the wide one on another rank": ({"a"}, {"wide"}, set()),
    "all alike": ({"b", "slices of rows"}, {"b", "slices of rows"}, {"b", "slices of rows"}),
}


def ids(rank: int) -> list[int]:
    """Which rows a rank looks up."""
    return [rank, 1, 1]


def tapes(names: list[str], **options: Any) -> dict[str, dict[str, Any]]:
    """The gradients of every step: eagerly, in a graph, and where rank 0 traces anew alone.

    Args:
        names: Of the steps.
        options: Of `hvd.DistributedGradientTape`; without any, it is tfddl's, with counts.
    """
    variables = {name: tf.Variable(value, name=name) for name, value in VARIABLES.items()}
    return {name: _ways(_step(name, variables, options)) for name in names}


def _step(
    name: str, variables: dict[str, tf.Variable], options: dict[str, Any]
) -> Callable[[tf.Tensor], Any]:
    rank = tfddl.rank()
    mine = STEPS[name][rank]
    # Of one dtype on rank 0, of another on the others.
    looked_up = tf.constant(ids(rank), tf.int64 if rank else tf.int32)

    def step(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            parts = [
                tf.reduce_sum(tf.gather(variables["rows"], looked_up))
                if part == "slices of rows"
                else tf.reduce_sum(tf.cast(variables[part], tf.float32))
                for part in sorted(mine)
            ]
            loss = (rank + 1) * x[0] * tf.add_n([tf.constant(0.0), *parts])
        sources = list(variables.values())
        if options:
            return hvd.DistributedGradientTape(tape, **options).gradient(loss, sources)
        distributed = tfddl.DistributedGradientTape(tape)
        return distributed.gradient(loss, sources, count=COUNTS[rank])

    step.__name__ = name.replace(" ", "_")
    return step


def _ways(step: Callable[[tf.Tensor], Any]) -> dict[str, Any]:
    graph = tf.function(step, autograph=False)
    counts = current().instrumentation.counts_of_all_groups
    found, operations = {"eager": _plain(step(tf.ones([3])))}, []
    for way, length in {"graph": 3, "again": 3, "anew": 3 + (tfddl.rank() == 0)}.items():
        before = counts()[0]
        found[way] = _plain(graph(tf.ones([length])))
        operations.append(counts()[0] - before)
    assert graph.experimental_get_tracing_count() == 1 + (tfddl.rank() == 0)
    return {**found, "operations": operations}


def _plain(gradients: Any) -> list[Any]:
    return [
        None if g is None else (type(g) is tf.IndexedSlices, tf.convert_to_tensor(g).numpy())
        for g in gradients
    ]


def kept_within(names: list[str], local: bool) -> list[Any]:
    """Gradients in a set of two ranks of three; or of a variable of each rank's own."""
    rank = tfddl.rank()
    if not local:
        some = tfddl.ProcessSet([0, 1])
        return [tapes(names, process_set=some)] if some.included() else []
    own, a, b = tf.Variable(tf.zeros([rank + 1])), tf.Variable(0.0), tf.Variable(0.0)

    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = 3.0 * ((a if rank else b) + (tf.reduce_sum(own) if rank != 1 else 0.0))
        tape = hvd.DistributedGradientTape(tape)
        tape.register_local_source(own)
        return tape.gradient(loss, [a, own, b])

    return [_plain(step()), _plain(tf.function(step)())]


class Tasks(keras.Model):
    """Three heads, of which a rank trains one at most."""

    def __init__(self) -> None:
        super().__init__()
        self.body = keras.layers.Dense(4, activation="tanh")
        self.heads = [keras.layers.Dense(1) for _ in range(3)]
        self.trained = 0

    def build(self, shape: Any) -> None:
        """Builds all heads, whichever is used."""
        self.body.build(shape)
        for head in self.heads:
            head.build((None, 4))
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """One head's."""
        return self.heads[self.trained](self.body(x))


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Makes Keras compute in float64: losses, weights and optimizers."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


def tasks() -> Tasks:
    """The same on all ranks, and in one process."""
    keras.utils.set_random_seed(5)
    model = Tasks()
    model.build((None, 3))
    return model


N, BATCH, EPOCHS = 11, 2, 2
X = np.random.default_rng(1).normal(size=(N, 3))
Y = X.sum(axis=1, keepdims=True)


def optimizer(**options: Any) -> keras.optimizers.Optimizer:
    """One to which a zero isn't the same as None."""
    return keras.optimizers.AdamW(0.02, weight_decay=0.1, **options)


def fit(**options: Any) -> list[np.ndarray]:
    """`fit`, in which each rank trains the head of its own task, and has a count of its own."""
    with in_float64():
        return _fit(**options)


def _fit(
    *, under_scope: bool = False, passes: int | None = None, **compiled: Any
) -> list[np.ndarray]:
    if under_scope:
        with tfddl.strategy().scope():
            model = tasks()
            model.compile(optimizer(gradient_accumulation_steps=passes), "mse", **compiled)
    else:
        model = tasks()
        plain = optimizer(gradient_accumulation_steps=passes)
        model.compile(tfddl.DistributedOptimizer(plain), "mse", **compiled)
    model.trained = tfddl.rank() % 2
    data = tfddl.shard_dataset(X, Y, batch_size=BATCH, order="block")
    model.fit(data, epochs=EPOCHS, verbose=0)
    return [np.asarray(weight) for weight in model.weights]


def differing() -> dict[str, tuple[list[str], str]]:
    """The last rank has other variables than the others."""
    odd = tfddl.rank() == tfddl.size() - 1
    kinds: dict[str, list[tf.Tensor]] = {
        "shape": [tf.zeros([2]), tf.zeros([3 if odd else 4])],
        "dtype": [tf.zeros([2]), tf.zeros([4], tf.float64 if odd else tf.float32)],
        "number": [tf.zeros([2])] * (3 if odd else 2),
    }
    found = {}
    for kind, values in kinds.items():
        variables = [tf.Variable(value) for value in values]

        def step(variables: list[tf.Variable] = variables) -> Any:
            with tf.GradientTape() as tape:  # None, so that no other operation notices.
                loss = tf.reduce_sum(variables[0])
            return tfddl.DistributedGradientTape(tape).gradient(loss, variables)

        found[kind] = _provoked(step)
        found[f"{kind}, graph"] = _provoked(tf.function(step))
    return found


def _heads() -> Callable[[int], list[int | None]]:
    """A step of one of two heads, or of both: its gradients, times the number of ranks."""
    a, b = tf.Variable(1.0), tf.Variable(1.0)

    @tf.function(autograph=False)
    def step(head: int) -> Any:
        with tf.GradientTape() as tape:
            loss = 1.0 * (a, b, a + b)[head]
        return tfddl.DistributedGradientTape(tape).gradient(loss, [a, b])

    return lambda head: [None if g is None else round(float(g) * tfddl.size()) for g in step(head)]


def fewer() -> list[list[int | None]]:
    """All ranks have gradients of both heads, and then of one."""
    step = _heads()
    return [step(2), step(0)]


def of_unknown_shape() -> list[list[float]]:
    """A graph doesn't know the shape of rank 0's gradient; the others have none."""
    first, other = tf.Variable(tf.ones([2])), tf.Variable(1.0)

    @tf.custom_gradient
    def blurred(x: tf.Tensor) -> Any:
        return tf.identity(x), lambda g: tf.compat.v1.placeholder_with_default(g, None)

    @tf.function(autograph=False)
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(blurred(first)) if tfddl.rank() == 0 else 1.0 * other
        return tfddl.DistributedGradientTape(tape).gradient(loss, [first, other])

    return [np.ravel(g.numpy() * tfddl.size()).tolist() for g in step()]


def traced_alone() -> tuple[list[str], str]:
    """A graph has gradients of other variables on the last rank, where all had the same before."""
    size, mine = tfddl.size(), int(tfddl.rank() == tfddl.size() - 1)
    # Of other variables, though the function's name is the same: each has its own None.
    assert _heads()(mine) == [size - 1, 1]
    step = _heads()
    assert step(0) == [size, None]
    return _provoked(lambda: step(mine))


def headers() -> list[tuple[str, int]]:
    """How the headers of two steps are called that have gradients of one variable each; lengths."""
    found = []

    def recorded(
        head: tf.Tensor, tensors: Sequence[tf.Tensor], *given: Any, name: str, **options: Any
    ) -> Any:
        found.append((name, head.shape[0] + sum(tensor.shape.num_elements() for tensor in tensors)))
        return sum_weighted(head, tensors, *given, name=name, **options)

    step = _heads()
    with mock.patch.object(reduction, "sum_weighted", recorded):
        step(0)
        step(1)
    return found
