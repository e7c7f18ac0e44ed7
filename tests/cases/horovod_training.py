"""Cases of `tests/test_horovod_training.py`, run by every worker."""

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

import tfddl
import tfddl.horovod.tensorflow as hvd
import tfddl.horovod.tensorflow.keras as hvd_keras
from tfddl._src.collectives import fusion_limit, limit_fusion
from tfddl._src.horovod.process_sets import REGISTERED
from tfddl._src.runtime import current

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
            "own" is this rank's own; "sets" are the ranks of process sets, see `set_of`.
    """
    return {
        "eager": _steps(lambda step: step, **options),
        "graph": _steps(tf.function, **options),
    }


def set_of(rank: int, sets: Sequence[Sequence[int]]) -> list[int]:
    """The ranks of the first set that has a rank; of the first one, if none has."""
    return list(next((ranks for ranks in sets if rank in ranks), sets[0]))


def _steps(
    compiled: Callable[[Any], Any], *, local: bool = False, **options: Any
) -> list[np.ndarray]:
    layers = kernels()
    variables = [layer.kernel for layer in layers.values()]
    if isinstance(options.get("groups"), list):
        options["groups"] = [[layers[n].kernel for n in names] for names in options["groups"]]
    if "sets" in options:
        options["process_set"] = hvd.ProcessSet(set_of(tfddl.rank(), options.pop("sets")))
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


def trained_in_sets(sets: list[list[int]]) -> dict[str, Any]:
    """What each rank has after training in a set of its own, or alone.

    Returns:
        "weights": of a `fit` of two steps by SGD with a rate of 0.1, from weights that are the
        rank, after the first from rank 1's, of the mean squared error of the rank's own data
        (`data_of`); "loss": of both, as
        MetricAverageCallback leaves it. "session": a weight after two steps of SGD in a graph for a
        session, whose gradients are rank + 1. "tape": such a gradient, of a table's rows too.
        "broadcast": the rank, as the last of its set has it; what the error is on ranks outside.
    """
    rank = tfddl.rank()
    mine = hvd.ProcessSet(set_of(rank, sets))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.full((2, 1), rank, "float32")])
    model.compile(hvd.DistributedOptimizer(keras.optimizers.SGD(0.1), process_set=mine), "mse")
    x, y = data_of(rank)
    callbacks = hvd_keras.callbacks
    history = model.fit(
        x,
        y,
        batch_size=len(x),
        epochs=2,
        verbose=0,
        callbacks=[
            callbacks.BroadcastGlobalVariablesCallback(1),
            callbacks.MetricAverageCallback(),
        ],
    )
    v1, gradients = tf.compat.v1, {}
    with tf.Graph().as_default(), v1.Session() as session:
        weight = v1.Variable(0.0)
        wrapped = hvd.DistributedOptimizer(v1.train.GradientDescentOptimizer(1.0), process_set=mine)
        step = wrapped.minimize(weight * (rank + 1.0))
        session.run(v1.global_variables_initializer())
        for _ in range(2):
            session.run(step)
        in_session = float(session.run(weight))
    weight, table = tf.Variable(1.0), tf.Variable(tf.ones([3]))
    for name, dense in (("slices", False), ("dense", True)):
        with tf.GradientTape() as tape:
            loss = (weight + tf.reduce_sum(tf.gather(table, [rank % 3]))) * (rank + 1.0)
        tape = hvd.DistributedGradientTape(tape, process_set=mine, sparse_as_dense=dense)
        found = tape.gradient(loss, [weight, table])
        gradients[name] = [tf.convert_to_tensor(part).numpy().tolist() for part in found]
    variable = tf.Variable(float(rank))
    try:
        hvd.broadcast_variables([variable], mine.ranks[-1], process_set=mine)
        broadcast: Any = float(variable)
    except tf.errors.InvalidArgumentError as error:
        broadcast = isinstance(error, ValueError), error.message
    return {
        "weights": model.get_weights()[0],
        "loss": history.history["loss"],
        "session": in_session,
        "tape": gradients,
        "broadcast": broadcast,
    }


def data_of(rank: int) -> tuple[np.ndarray, np.ndarray]:
    """A rank's examples: inputs, and what a model is to make of them."""
    x = np.random.default_rng(rank).normal(size=(4, 2)).astype("float32")
    return x, x.sum(axis=1, keepdims=True) + np.float32(rank)


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


def sets_made_while_running() -> list[Any]:
    """Ids, sums and what is refused, of sets that are added and removed; then the same again."""
    rank, size = tfddl.rank(), tfddl.size()
    REGISTERED.current().is_dynamic = False
    refused = [_refusal(lambda: hvd.add_process_set([0]))]
    hvd.init(process_sets="dynamic")
    first, second = hvd.add_process_set([0]), hvd.add_process_set(hvd.ProcessSet([size - 1, 0]))
    last = hvd.ProcessSet([size - 1])
    found: list[Any] = [last.process_set_id]
    hvd.add_process_set(last)
    found += [one.process_set_id for one in (first, second, last)]
    by_id = hvd.mpi_ops._basics._get_process_set_ids_and_ranks()
    assert by_id == {0: list(range(size)), 1: [0], 2: [0, size - 1], 3: [size - 1]}
    found += [int(hvd.size_op(second.process_set_id or 0))]
    refused += [
        _refusal(lambda: hvd.add_process_set([0])),
        _refusal(lambda: hvd.add_process_set(range(size))),
        _refusal(lambda: hvd.add_process_set([size])),
        _refusal(lambda: hvd.add_process_set([rank])),
    ]
    if second.included():
        found.append(float(hvd.allreduce(rank + 1.0, op=hvd.Sum, process_set=second)))
    found += [hvd.remove_process_set(one) for one in (first, hvd.global_process_set, last, first)]
    found += [first.process_set_id, second.process_set_id]
    refused.append(_refusal(lambda: hvd.size_op(1)))
    refused += [str(one) for one in (hvd.global_process_set, first)]
    again = hvd.add_process_set([1])
    found.append(again.process_set_id)
    found += [hvd.remove_process_set(one) for one in (again, second)]
    return [found, refused]


def _refusal(call: Callable[[], Any]) -> str:
    try:
        call()
    except (ValueError, tf.errors.FailedPreconditionError) as error:
        return str(error)
    return "no error"


class Halved:
    """A script's own compressor, in whose hands a tensor becomes its half, as float64."""

    @staticmethod
    def compress(tensor: tf.Tensor) -> tuple[tf.Tensor, Any]:
        return tf.cast(tensor, tf.float64) / 2, tensor.dtype

    @staticmethod
    def decompress(tensor: tf.Tensor, ctx: Any) -> tf.Tensor:
        assert tensor.dtype == tf.float64
        return tf.cast(tensor * 2, ctx)


def compressed() -> dict[str, Any]:
    """What arrives through `Halved`, and what Horovod's own two do."""
    mine = tf.fill([tfddl.size()], tfddl.rank() + 1.0)
    options: dict[str, Any] = {"op": hvd.Sum, "compression": Halved}
    wide = tf.constant([1.0 + 2**-12], tf.float64)
    narrow, context = hvd.Compression.fp16.compress(wide)
    integers, _ = hvd.Compression.fp16.compress(tf.constant([3]))
    return {
        "allreduce": hvd.allreduce(mine, **options).numpy().tolist(),
        "grouped": [t.numpy().tolist() for t in hvd.grouped_allreduce([mine, mine], **options)],
        "reducescatter": hvd.reducescatter(mine, **options).numpy().tolist(),
        "in a graph": tf.function(lambda: hvd.allreduce(mine, **options))().numpy().tolist(),
        "fp16": [narrow.dtype.name, hvd.Compression.fp16.decompress(narrow, context).dtype.name],
        "rounded": float(hvd.allreduce(wide, compression=hvd.Compression.fp16)[0]),
        "integers": integers.dtype.name,
        "none": hvd.Compression.none.compress(mine)[0] is mine,
    }


def slices() -> dict[str, Any]:
    """Averages of slices, also of integers, alone and among dense tensors; what is refused."""
    rank = tfddl.rank()

    def made(dtype: Any) -> tf.IndexedSlices:
        return tf.IndexedSlices(tf.fill([1, 2], tf.cast(rank + 1, dtype)), [rank], [5, 2])

    found = {}
    for dtype in (tf.int32, tf.float32):
        average = hvd.allreduce(made(dtype))
        grouped = hvd.grouped_allreduce([tf.fill([2], rank + 1.0), made(dtype)])
        found[dtype.name] = [
            average.values.dtype.name,
            average.values.numpy().tolist(),
            average.indices.numpy().tolist(),
            grouped[0].numpy().tolist(),
            grouped[1].values.numpy().tolist(),
            hvd.allreduce(made(dtype), op=hvd.Sum).values.numpy().tolist(),
        ]
    found["refused"] = [
        _refusal(lambda: hvd.allreduce(made(tf.float32), op=hvd.Max)),
        _refusal(lambda: hvd.allreduce(made(tf.float32), prescale_factor=0.5)),
        _refusal(lambda: hvd.grouped_allreduce([made(tf.float32)], postscale_factor=2.0)),
    ]
    return found


def fused(num_bytes: int) -> tuple[list[float], int]:
    """Sums of three tensors, and in how many operations they travel with this threshold."""
    limit_fusion(num_bytes)
    try:
        before, _ = current().instrumentation.counts()
        sums = hvd.grouped_allreduce([tf.fill([n], 1.0) for n in (1, 2, 3)], op=hvd.Sum)
        after, _ = current().instrumentation.counts()
    finally:
        fusion_limit._LIMIT.current().clear()
    return [float(total[-1]) for total in sums], after - before


def fusion_differs() -> str:
    """What ranks say whose thresholds aren't the same."""
    limit_fusion(100 + tfddl.rank())
    try:
        hvd.allgather(tf.ones([2]))  # Nothing is fused here.
        return _refusal(lambda: hvd.allreduce(tf.ones([2]), name="x"))
    finally:
        fusion_limit._LIMIT.current().clear()


def in_a_session() -> dict[str, Any]:
    """Collectives in a graph for a session that has one thread; eager ones work afterwards."""
    v1, rank = tf.compat.v1, tfddl.rank()
    config = v1.ConfigProto(inter_op_parallelism_threads=1, use_per_session_threads=True)
    found: dict[str, Any] = {}
    with tf.Graph().as_default(), v1.Session(config=config) as session:
        x = tf.fill([2], rank + 1.0)
        sums = [hvd.allreduce(x * float(i), op=hvd.Sum) for i in range(1, 7)]
        # In one run, and each rank asks for them in another order.
        order = list(range(6))[:: 1 - 2 * rank]
        arrived = session.run([sums[i] for i in order])
        found["sums"] = [float(arrived[order.index(i)][0]) for i in range(6)]
        found["gradient"] = session.run(tf.gradients(sums[0], x))[0].tolist()
        gathered = hvd.allgather(tf.fill([rank + 1], rank))
        swapped, splits = hvd.alltoall(tf.range(3) + 10 * rank, [1 + rank, 2 - rank])
        found["gathered"], found["swapped"], found["splits"] = (
            array.tolist() for array in session.run([gathered, swapped, splits])
        )
        in_branch = tf.cond(x[0] > 0, lambda: hvd.allreduce(x, op=hvd.Sum) + 1.0, lambda: x)
        found["in a branch"] = session.run(in_branch).tolist()
        found["refused"] = [
            _refusal(lambda: tf.function(hvd.allreduce, autograph=False)(x)),
            _refusal(lambda: tf.map_fn(hvd.allreduce, x)),
            _refusal(lambda: _without_functions(lambda: tf.map_fn(hvd.allreduce, x))),
        ]
        variable = v1.Variable(float(rank))
        session.run(v1.global_variables_initializer())
        values = hvd.broadcast_([variable], 1)
        found["broadcast"] = [*session.run(values), session.run(variable)]
        session.run(variable.assign(float(rank)))
        session.run(hvd.broadcast_global_variables(1))
        found["global variables"] = session.run(variable)
        found["objects"] = [hvd.broadcast_object_fn(1)([rank]), hvd.allgather_object(rank)]
        odd = hvd.allreduce(tf.ones([2 + rank]))
        found["differ"] = _refusal(lambda: session.run(odd))
        found["after"] = float(session.run(sums[0])[0])
    with tf.Graph().as_default():
        variable = v1.Variable(float(rank))
        hooks = [hvd.BroadcastGlobalVariablesHook(1)]
        with v1.train.MonitoredTrainingSession(hooks=hooks) as monitored:
            found["hook"] = monitored.run(variable)
    found["eagerly"] = float(hvd.allreduce(1.0))
    return found


def optimizers_of_tensorflow_1() -> dict[str, Any]:
    """Two weights and a table after steps of SGD in a graph for a session, and after how many.

    The gradients of rank r are r + 1 in the first weight, None in the second, and r + 1 in the
    table's row r. Two weights are the rank's own, one of them unscaled.
    """
    v1, dense = tf.compat.v1, {"sparse_as_dense": True}
    rows: dict[str, dict[str, Any]] = {
        "plain": {},
        "sum": {"op": hvd.Sum},
        "compressed": {"compression": hvd.Compression.fp16},
        "predivided": {"gradient_predivide_factor": 4.0},
        "groups": {"groups": 2, **dense},
        "passes": {"backward_passes_per_step": 3, **dense},
        "passes averaged": {
            "backward_passes_per_step": 3,
            "average_aggregated_gradients": True,
            **dense,
        },
        "local": {},
        "local, unscaled": {"scale_local_gradients": False},
        "local passes": {"backward_passes_per_step": 3, **dense},
    }
    found: dict[str, Any] = {}
    for name, options in rows.items():
        with tf.Graph().as_default(), v1.Session() as session:
            weight, table = v1.Variable([0.0]), v1.Variable(tf.zeros([3, 1]))
            unused, step = v1.Variable([0.0]), v1.train.get_or_create_global_step()
            sgd = hvd.DistributedOptimizer(v1.train.GradientDescentOptimizer(1.0), **options)
            if name.startswith("local"):
                sgd.register_local_var(weight)
            rank = tfddl.rank()
            loss = -(rank + 1.0) * (weight[0] + tf.gather(table, [rank])[0, 0])
            train = sgd.minimize(loss, step, [weight, unused, table])
            session.run([v1.global_variables_initializer(), v1.local_variables_initializer()])
            values = []
            for _ in range(7):
                session.run(train)
                values.append(session.run([weight[0], table[0, 0], table[1, 0], step]))
            assert session.run(unused) == [0.0]
            found[name] = [[float(value) for value in row] for row in values]
    weight = tf.Variable(0.0)
    sgd = hvd.DistributedOptimizer(v1.train.GradientDescentOptimizer(1.0))
    sgd.minimize(lambda: -weight * (tfddl.rank() + 1.0), var_list=[weight])
    found["eagerly"] = float(weight)
    with tf.Graph().as_default(), v1.Session() as session:
        weight = v1.Variable(0.0)
        with tf.GradientTape() as tape:
            loss = weight * (tfddl.rank() + 1.0)
        gradient = hvd.DistributedGradientTape(tape).gradient(loss, weight)
        session.run(v1.global_variables_initializer())
        found["tape"] = float(session.run(gradient))
    with tf.Graph().as_default():
        weight = v1.Variable(tf.zeros([3, 1]))
        sgd = v1.train.GradientDescentOptimizer(1.0)
        sparse = hvd.DistributedOptimizer(sgd, backward_passes_per_step=2)
        loss = tf.reduce_sum(tf.gather(weight, [0]))
        found["refused"] = [
            _refusal(lambda: sparse.minimize(loss)),
            _refusal(lambda: hvd.DistributedOptimizer(sgd, backward_passes_per_step=0)),
        ]
    eager = v1.train.GradientDescentOptimizer(1.0)
    found["refused"].append(
        _refusal(lambda: hvd.DistributedOptimizer(eager, backward_passes_per_step=2))
    )
    return found


def _without_functions(call: Callable[[], object]) -> object:
    """With the loops of TensorFlow 1."""
    tf.compat.v1.disable_control_flow_v2()
    try:
        return call()
    finally:
        tf.compat.v1.enable_control_flow_v2()


def refused_in_a_session() -> str:
    """What a collective says there where the process group can't."""
    group = type(current().process_group)
    with tf.Graph().as_default(), mock.patch.object(group, "runs_in_sessions", False):
        return _refusal(lambda: hvd.allreduce(tf.ones([2]), name="x"))


def local_variable() -> list[float]:
    """Two weights of 0 after a step of an optimizer that keeps the first one's gradient."""
    mine, ours = keras.Variable(0.0), keras.Variable(0.0)
    wrapped = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0))
    wrapped.register_local_var(mine)
    wrapped.apply([tf.constant(-1.0 - tfddl.rank())] * 2, [mine, ours])
    return [float(mine), float(ours)]


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
