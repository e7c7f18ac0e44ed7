"""What one rank gets from Horovod's names, as JSON: run under Horovod itself, and under tfddl.

Usage: measure.py FOLDER [PART …] (each rank writes FOLDER/RANK.json)
"""

import itertools
import json
import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import horovod.keras
import horovod.tensorflow as hvd
import horovod.tensorflow.keras as hvd_keras
import numpy as np
import tensorflow as tf

OPS = ("Average", "Sum", "Min", "Max", "Product")
INTEGERS = ("uint8", "int8", "int32", "int64")
FLOATS = ("float16", "float32", "float64")
FACTORS = {"": {}, "factors": {"prescale_factor": 0.5, "postscale_factor": 3.0}}
MEASURED = {}
"""By name: ["value", dtypes, numbers], or ["error", names of classes]."""

hvd.init(process_sets="dynamic")
RANK, SIZE = hvd.rank(), hvd.size()
SETS = [hvd.add_process_set([rank]) for rank in range(SIZE)]
ALONE = SETS[RANK]


def measure(name, function):
    try:
        MEASURED[name] = ["value", *plain(function())]
    except Exception as error:  # noqa: BLE001 - its class is what is compared
        kinds = [k for k in type(error).__mro__ if k.__module__.split(".")[0] in PUBLIC]
        MEASURED[name] = ["error", [k.__name__ for k in kinds]]


PUBLIC = ("builtins", "tensorflow")


def plain(result):
    """Dtypes and numbers of a structure of tensors."""
    parts = [np.asarray(part) for part in tf.nest.flatten(result, expand_composites=True)]
    numbers = [part.astype("float64").tolist() for part in parts]
    return [part.dtype.name for part in parts], numbers


def mine(dtype, rows=4):
    values = (np.arange(rows * 2).reshape(rows, 2) * 3 + 2 * RANK) % 7 + 1
    if not dtype.startswith("uint"):
        values[1] *= -1
    return tf.cast(values, dtype)


def slices(dtype="float32"):
    places = tf.constant([RANK, 3], tf.int64)
    values = tf.cast(tf.fill([2, 2], RANK + 1), dtype)
    return tf.IndexedSlices(values, places, tf.constant([5, 2], tf.int64))


def gradient(function, dtype):
    x = mine(dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        results = tf.nest.flatten(function(x))
        weights = [tf.cast(RANK + 1 + tf.range(tf.size(r)), r.dtype) for r in results]
        loss = tf.add_n(
            [
                tf.reduce_sum(tf.reshape(r, [-1]) * w)
                for r, w in zip(results, weights, strict=True)
                if r.dtype.is_floating
            ]
        )
    return tape.gradient(loss, x)


def kinds():
    """By name, calls of all collectives, each of one tensor; and with which dtypes."""
    calls = {
        "allgather": lambda x: hvd.allgather(x[: 2 + RANK]),
        "grouped_allgather": lambda x: hvd.grouped_allgather([x[:1], x[RANK:]]),
        "broadcast": lambda x: hvd.broadcast(x, 1),
        "alltoall": hvd.alltoall,
        "alltoall splits": lambda x: hvd.alltoall(x, splits=[1 + RANK, 3 - RANK]),
    }
    dtypes = dict.fromkeys(calls, (*INTEGERS, *FLOATS))
    for op, (label, factors) in itertools.product(OPS, FACTORS.items()):
        options = {"op": getattr(hvd, op), **factors}
        names = [f"{kind} {op} {label}".rstrip() for kind in ("allreduce", "grouped_allreduce")]
        calls[names[0]] = lambda x, o=options: hvd.allreduce(x, **o)
        calls[names[1]] = lambda x, o=options: hvd.grouped_allreduce([x, x[:1] * 2], **o)
        dtypes.update(dict.fromkeys(names, (*INTEGERS, *FLOATS)))
    for op, (label, factors) in itertools.product(("Average", "Sum"), FACTORS.items()):
        options = {"op": getattr(hvd, op), **factors}
        name = f"reducescatter {op} {label}".rstrip()
        calls[name] = lambda x, o=options: hvd.reducescatter(x, **o)
        dtypes[name] = (*INTEGERS, *FLOATS)
        grouped = f"grouped_reducescatter {op} {label}".rstrip()
        calls[grouped] = lambda x, o=options: hvd.grouped_reducescatter([x, x[:2]], **o)
        dtypes[grouped] = dtypes[name]
    return calls, dtypes


def collectives():
    calls, dtypes = kinds()
    for name, call in calls.items():
        for dtype in dtypes[name]:
            measure(f"{name} | {dtype}", lambda c=call, d=dtype: c(mine(d)))
            measure(f"{name} | {dtype} in a graph", lambda c=call, d=dtype: tf.function(c)(mine(d)))
            if dtype in FLOATS:
                measure(f"{name} | {dtype} gradient", lambda c=call, d=dtype: gradient(c, d))
    measure("allgather | bool", lambda: hvd.allgather([RANK == 0]))
    measure("broadcast | bool", lambda: hvd.broadcast([RANK == 0], 0))
    fp16 = hvd.Compression.fp16
    measure("allreduce fp16 | float32", lambda: hvd.allreduce(mine("float32"), compression=fp16))
    measure("compress", lambda: fp16.compress(mine("float64"))[0])
    for op, dtype in itertools.product(("Average", "Sum"), ("int32", "float32", "float64")):
        options = {"op": getattr(hvd, op)}
        measure(f"slices {op} | {dtype}", lambda o=options, d=dtype: hvd.allreduce(slices(d), **o))
    measure("slices gradient | float32", slices_gradient)
    mixed = lambda: hvd.grouped_allreduce([slices(), slices()])  # noqa: E731
    measure("slices grouped | float32", mixed)
    measure("objects", lambda: hvd.allgather_object(RANK + 0.5))
    measure("broadcast_object", lambda: hvd.broadcast_object(RANK + 0.5, 1))
    measure("ranks", lambda: [hvd.rank_op(), hvd.size_op(), hvd.local_rank(), hvd.cross_size()])


def rare():
    """Dtypes that Horovod has in some collectives only, one by one: one might end the job."""
    calls, _ = kinds()
    plain_ones = [name for name in calls if "factors" not in name]
    for dtype in ("uint16", "int16", "bfloat16", "bool"):
        for name in plain_ones:
            if dtype == "bool" and "reduce" in name:
                continue
            measure(f"{name} | {dtype}", lambda c=calls[name], d=dtype: c(mine(d)))
            save(sys.argv[1])


def slices_gradient():
    table = tf.Variable(tf.ones([5, 2]))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.gather(table, [RANK, 3]) * (RANK + 1.0))
    return hvd.allreduce(tape.gradient(loss, table), op=hvd.Sum)


def numpy_ones():
    """`horovod.keras`, and what has no gradient."""
    value = np.arange(4, dtype="float32").reshape(2, 2) + RANK
    for name, module in (("keras", horovod.keras), ("tensorflow.keras", hvd_keras)):
        measure(f"{name} allreduce", lambda m=module: m.allreduce(value))
        factors = {"prescale_factor": 2.0, "postscale_factor": 0.25}
        measure(f"{name} allreduce factors", lambda m=module, f=factors: m.allreduce(value, **f))
        measure(f"{name} allgather", lambda m=module: m.allgather(value[RANK:]))
        measure(f"{name} broadcast", lambda m=module: m.broadcast(value, 1))
        measure(f"{name} reducescatter", lambda m=module: m.reducescatter(value))
    variables = [tf.Variable([1.0]), tf.Variable([[2.0]])]

    def broadcasting(function):
        for variable in variables:
            variable.assign(tf.ones_like(variable) * (1 + RANK))
        function()
        return [variable.numpy() for variable in variables]

    measure("broadcast_", lambda: broadcasting(lambda: hvd.broadcast_(variables, 1)))
    measure(
        "broadcast_variables", lambda: broadcasting(lambda: hvd.broadcast_variables(variables, 1))
    )
    inplace = {"root_rank": 1, "inplace": True}
    measure(
        "broadcast_variables inplace",
        lambda: broadcasting(lambda: hvd.broadcast_variables(variables, **inplace)),
    )
    measure("broadcast_object_fn", lambda: hvd.broadcast_object_fn(1)(RANK + 0.5))
    measure("split_list", lambda: [len(part) for part in hvd.split_list(list(range(7)), 3)])
    measure("included", lambda: hvd.process_set_included_op())
    measure("homogeneous", lambda: [hvd.is_homogeneous(), hvd.is_initialized()])


def normalized(momentum=0.9, more=0):
    """Outputs, gradients and moving statistics."""
    layer = hvd.SyncBatchNormalization(axis=-1, momentum=momentum)
    values = np.random.default_rng(RANK).normal(size=(3 + more * RANK, 2)) + RANK
    x = tf.constant(values, tf.float32)
    layer.build(x.shape)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
        loss = tf.reduce_sum(y**3)
    return [y, tape.gradient(loss, x), layer.moving_mean, layer.moving_variance]


def layers():
    for momentum in (0.9, 0.5):
        measure(f"SyncBatchNormalization {momentum}", lambda m=momentum: normalized(m))
    measure("SyncBatchNormalization of unequal batches", lambda: normalized(more=1))


def in_session(build, steps=1):
    """What a graph for a session gives once its operation has run so often."""
    v1 = tf.compat.v1
    with tf.Graph().as_default():
        operation, fetches = build()
        initial = [v1.global_variables_initializer(), v1.local_variables_initializer()]
        with v1.Session() as session:
            session.run(initial)
            for _ in range(steps if operation is not None else 0):
                session.run(operation)
            return session.run(fetches)


def session_collective(call, dtype, differentiates):
    x = mine(dtype)
    result = call(x)
    if not differentiates:
        return None, result
    parts = [part for part in tf.nest.flatten(result) if part.dtype.is_floating]
    weights = [tf.cast(RANK + 1 + tf.range(tf.size(part)), dtype) for part in parts]
    sums = [tf.reduce_sum(tf.reshape(p, [-1]) * w) for p, w in zip(parts, weights, strict=True)]
    return None, [result, tf.gradients(tf.add_n(sums), x)[0]]


def optimizer_in_session(kind="GradientDescentOptimizer", local=False, **options):
    v1 = tf.compat.v1
    ones = v1.ones_initializer()
    dense = v1.get_variable("dense", [2, 1], initializer=ones)
    table = v1.get_variable("table", [4, 1], initializer=ones)
    if options.get("backward_passes_per_step", 1) == 1:
        # Of several passes, Horovod raises a KeyError where a variable has no gradient.
        v1.get_variable("unused", [3], initializer=ones)
    data = np.random.default_rng(RANK).normal(size=(3, 2)).astype("float32")
    rows = tf.reduce_sum(tf.gather(table, [RANK, 3]))
    loss = tf.reduce_mean((tf.matmul(data, dense) + rows - RANK) ** 2)
    step = v1.train.get_or_create_global_step()
    optimizer = hvd.DistributedOptimizer(getattr(v1.train, kind)(0.1), **options)
    if local:
        optimizer.register_local_var(dense)
    operation = optimizer.minimize(loss, global_step=step)
    return operation, [dense, table, step]


def with_a_hook():
    v1 = tf.compat.v1
    with tf.Graph().as_default():
        variable = v1.get_variable("v", initializer=tf.constant([1.0 + RANK]))
        step = v1.train.get_or_create_global_step()
        optimizer = hvd.DistributedOptimizer(v1.train.AdamOptimizer(0.1))
        operation = optimizer.minimize(tf.reduce_sum(variable**2) * (RANK + 1.0), global_step=step)
        hooks = [hvd.BroadcastGlobalVariablesHook(1), v1.train.StopAtStepHook(last_step=3)]
        with v1.train.MonitoredTrainingSession(hooks=hooks) as session:
            while not session.should_stop():
                values = session.run([operation, variable, step])[1:]
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            session.run(hvd.broadcast_global_variables(0))
            return [values[1], session.run(variable)]


def sessions():
    """Graphs for sessions of TensorFlow 1, and its optimizers."""
    calls, _ = kinds()
    for name, call in calls.items():
        if "Product" in name or "Max" in name:
            continue
        for dtype in ("int32", "float32"):
            build = lambda c=call, d=dtype: session_collective(c, d, d == "float32")  # noqa: E731
            measure(f"session {name} | {dtype}", lambda b=build: in_session(b))
    dense = {"sparse_as_dense": True}
    rows = {
        "plain": {},
        "Momentum": {"kind": "MomentumOptimizer"},
        "Adam": {"kind": "AdamOptimizer"},
        "RMSProp": {"kind": "RMSPropOptimizer"},
        "Sum": {"op": hvd.Sum},
        "fp16": {"compression": hvd.Compression.fp16},
        "sparse_as_dense": dense,
        "predivide": {"gradient_predivide_factor": 2.0, **dense},
        "groups 2": {"groups": 2, **dense},
        "passes": {"backward_passes_per_step": 2, **dense},
        "passes averaged": {
            "backward_passes_per_step": 2,
            "average_aggregated_gradients": True,
            **dense,
        },
        "passes sparse": {"backward_passes_per_step": 2},
        "predivide, Sum": {"gradient_predivide_factor": 2.0, "op": hvd.Sum},
        "wrong groups": {"groups": -1},
        "no passes": {"backward_passes_per_step": 0},
        "local": {"local": True},
        "local unscaled": {"local": True, "scale_local_gradients": False},
        "local passes": {"local": True, "backward_passes_per_step": 2, **dense},
        "set of one": {"process_set": ALONE},
    }
    for name, options in rows.items():
        for steps in (2, 3):
            build = lambda o=options: optimizer_in_session(**o)  # noqa: E731
            measure(
                f"session optimizer {name} | after {steps}",
                lambda b=build, s=steps: in_session(b, s),
            )
        save(sys.argv[1])
    measure("session hook", with_a_hook)


def weights_after(compiled=None, **options):
    """Of a tape's gradients, by hand: two dense variables and an embedding."""
    values = {"a": [1.0, 2.0], "b": [[3.0]], "c": tf.ones([4, 2])}
    variables = [tf.Variable(value, name=name) for name, value in values.items()]
    if options.pop("by_variables", False):
        options["groups"] = [variables[:2]]
    local = options.pop("local", False)

    def step():
        with tf.GradientTape() as tape:
            rows = tf.gather(variables[2], [RANK, 2])
            loss = tf.reduce_sum(variables[0] ** 2) * (RANK + 1) + tf.reduce_sum(rows) * (RANK + 3)
            loss += tf.reduce_sum(variables[1]) * RANK
        tape = hvd.DistributedGradientTape(tape, **options)
        if local:
            tape.register_local_source(variables[0])
        found = tape.gradient(loss, variables)
        return [found[0], found[1], tf.convert_to_tensor(found[2])]

    return tf.function(step)() if compiled else step()


def tapes():
    rows = {
        "plain": {},
        "Sum": {"op": hvd.Sum},
        "fp16": {"compression": hvd.Compression.fp16},
        "sparse_as_dense": {"sparse_as_dense": True},
        "predivide": {"gradient_predivide_factor": 2.0, "sparse_as_dense": True},
        "groups 2": {"groups": 2, "sparse_as_dense": True},
        "groups of variables": {"by_variables": True, "sparse_as_dense": True},
        "local": {"local": True},
        "local unscaled": {"local": True, "scale_local_gradients": False},
        "predivide, Sum": {"gradient_predivide_factor": 2.0, "op": hvd.Sum},
        "predivide sparse": {"gradient_predivide_factor": 2.0},
        "fp16 dense": {"compression": hvd.Compression.fp16, "sparse_as_dense": True},
        "groups 0": {"groups": 0, "sparse_as_dense": True},
        "num_groups": {"num_groups": 2, "sparse_as_dense": True},
        "set of one": {"process_set": ALONE, "sparse_as_dense": True},
        "local Sum": {"local": True, "op": hvd.Sum, "sparse_as_dense": True},
        "local predivide": {
            "local": True,
            "gradient_predivide_factor": 4.0,
            "sparse_as_dense": True,
        },
        "Min": {"op": hvd.Min, "sparse_as_dense": True},
        "wrong groups": {"groups": -1},
        "groups of text": {"groups": "two"},
    }
    for name, options in rows.items():
        measure(f"tape {name}", lambda o=options: weights_after(**dict(o)))
        measure(f"tape {name} in a graph", lambda o=options: weights_after(True, **dict(o)))


def fitted(callbacks=(), epochs=2, metric=False, wrap=None, lr=0.5, **options):
    """Logs, learning rates and weights of a small `fit` of each rank's own data."""
    layers = [tf.keras.layers.Dense(1, kernel_initializer="ones", name="one")]
    layers.append(tf.keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", name="two"))
    model = tf.keras.Sequential([tf.keras.Input((2,)), *layers])
    local = options.pop("local", False)
    # Horovod's callbacks need an optimizer that has `lr`.
    momentum = options.pop("momentum", 0.0)
    optimizer = tf.keras.optimizers.legacy.SGD(learning_rate=lr, momentum=momentum)
    if local:
        optimizer = horovod.keras.PartialDistributedOptimizer(
            optimizer, local_layers=layers[0], **options
        )
    else:
        optimizer = hvd_keras.DistributedOptimizer(optimizer, **options)
    model.compile(optimizer, "mse", metrics=["mae"] if metric else [])
    x = np.random.default_rng(RANK).normal(size=(8, 2)).astype("float32") / 4
    rates = []

    class Rates(tf.keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            rates.append(float(tf.keras.backend.get_value(self.model.optimizer.learning_rate)))

    history = model.fit(
        x,
        x.sum(axis=1, keepdims=True) + RANK,
        batch_size=4,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks, Rates()],
    )
    logs = [float(loss) for loss in history.history["loss"]] if metric else []
    return [rates, logs, model.get_weights()]


def training():
    rows = {
        "plain": {},
        "fp16": {"compression": hvd.Compression.fp16},
        "predivide": {"gradient_predivide_factor": 2.0},
        "passes": {"backward_passes_per_step": 2},
        "passes averaged": {"backward_passes_per_step": 2, "average_aggregated_gradients": True},
        "passes of three": {"backward_passes_per_step": 3},
        "passes fp16": {"backward_passes_per_step": 2, "compression": hvd.Compression.fp16},
        "groups": {"groups": 2},
        "Sum": {"op": hvd.Sum},
        "sparse_as_dense": {"sparse_as_dense": True},
        "momentum": {"momentum": 0.9},
        "set of one": {"process_set": ALONE},
        "predivide, Sum": {"gradient_predivide_factor": 2.0, "op": hvd.Sum},
        "local": {"local": True},
        "local unscaled": {"local": True, "scale_local_gradients": False},
    }
    for name, options in rows.items():
        measure(f"fit {name}", lambda o=options: fitted(**dict(o)))
    kinds = hvd_keras.callbacks
    average = kinds.MetricAverageCallback
    measure("fit metrics", lambda: fitted([average()], metric=True))
    warmup = {"warmup_epochs": 2, "initial_lr": 0.2, "steps_per_epoch": 2}
    measure(
        "fit warm-up",
        lambda: fitted([kinds.LearningRateWarmupCallback(**warmup)], epochs=4, lr=0.2),
    )
    schedule = {"initial_lr": 0.2, "multiplier": lambda epoch: 0.5**epoch}
    for staircase in (True, False):
        options = {**schedule, "staircase": staircase, "steps_per_epoch": 2}
        measure(
            f"fit schedule{' staircase' * staircase}",
            lambda o=options: fitted([kinds.LearningRateScheduleCallback(**o)], epochs=3, lr=0.2),
        )
    for name, options in {
        "a number": {"multiplier": 0.5},
        "from 1": {"multiplier": 0.5, "start_epoch": 1},
        "until 1": {"multiplier": 0.5, "end_epoch": 1},
        "uncorrected": {"multiplier": 0.5, "start_epoch": 1, "momentum_correction": False},
    }.items():
        measure(
            f"fit schedule {name}",
            lambda o=options: fitted(
                [kinds.LearningRateScheduleCallback(initial_lr=0.2, **o)],
                epochs=3,
                lr=0.2,
                momentum=0.9,
            ),
        )
    measure(
        "fit warm-up momentum",
        lambda: fitted(
            [kinds.LearningRateWarmupCallback(**warmup)], epochs=4, lr=0.2, momentum=0.9
        ),
    )
    measure(
        "fit broadcast",
        lambda: fitted([kinds.BroadcastGlobalVariablesCallback(0)], epochs=1),
    )


def errors():
    one = tf.ones([2])
    calls = {
        "shapes": lambda: hvd.allreduce(tf.ones([2 + RANK]), name="a"),
        "dtypes": lambda: hvd.allreduce(tf.cast(one, ("int32", "float32")[RANK % 2]), name="b"),
        "ops": lambda: hvd.allreduce(one, op=(hvd.Min, hvd.Sum)[RANK % 2], name="d"),
        "factors": lambda: hvd.allreduce(one, prescale_factor=1.0 + RANK, name="e"),
        "roots": lambda: hvd.broadcast(one, RANK % 2, name="f"),
        "no such root": lambda: hvd.broadcast(one, SIZE + 3, name="g"),
        "inner dimensions": lambda: hvd.allgather(tf.ones([2, 2 + RANK]), name="h"),
        "scalar": lambda: hvd.allgather(tf.constant(1.0), name="i"),
        "splits": lambda: hvd.alltoall(one, splits=[2] * SIZE, name="j"),
        "both ops": lambda: hvd.allreduce(one, average=True, op=hvd.Sum),
        "slices min": lambda: hvd.allreduce(slices(), op=hvd.Min),
        "slices Adasum": lambda: hvd.allreduce(slices(), op=hvd.Adasum),
        "slices factor": lambda: hvd.allreduce(slices(), prescale_factor=0.5),
        "broadcast shapes": lambda: hvd.broadcast(tf.ones([2 + RANK]), 0, name="k"),
        "broadcast dtypes": lambda: hvd.broadcast(
            tf.cast(one, ("int32", "float32")[RANK % 2]), 0, name="l"
        ),
        "allgather dtypes": lambda: hvd.allgather(
            tf.cast(one, ("int32", "float32")[RANK % 2]), name="m"
        ),
        "alltoall dimensions": lambda: hvd.alltoall(tf.ones([2, 2 + RANK]), name="n"),
        "alltoall dtypes": lambda: hvd.alltoall(
            tf.cast(one, ("int32", "float32")[RANK % 2]), name="o"
        ),
        "alltoall odd": lambda: hvd.alltoall(tf.ones([2 * SIZE + 1]), name="p"),
        "reducescatter shapes": lambda: hvd.reducescatter(tf.ones([2, 2 + RANK]), name="s"),
        "reducescatter dtypes": lambda: hvd.reducescatter(
            tf.cast(one, ("int32", "float32")[RANK % 2]), name="t"
        ),
        "reducescatter ops": lambda: hvd.reducescatter(
            one, op=(hvd.Average, hvd.Sum)[RANK % 2], name="u"
        ),
        "reducescatter Min": lambda: hvd.reducescatter(one, op=hvd.Min, name="v"),
        "reducescatter scalar": lambda: hvd.reducescatter(tf.constant(1.0), name="w"),
        "no set": lambda: hvd.allreduce(one, process_set=hvd.ProcessSet([0])),
        "set of text": lambda: hvd.add_process_set("0"),
        "other's set": lambda: hvd.allreduce(one, process_set=SETS[1 - RANK % 2]),
        "op of text": lambda: hvd.allreduce(one, op="sum"),
        "global variables": lambda: hvd.broadcast_global_variables(0),
        "set twice": lambda: hvd.add_process_set(range(SIZE)),
        "no tape predivide": lambda: hvd.DistributedGradientTape(
            tf.GradientTape(), gradient_predivide_factor=2.0, op=hvd.Min
        ),
        "after all": lambda: hvd.allreduce(one),
    }
    for name, call in calls.items():
        measure(f"error {name}", call)
        save(sys.argv[1])


def sets():
    for rank in range(SIZE):  # Those that all parts have.
        hvd.remove_process_set(SETS[rank])
    alone = hvd.add_process_set([0])
    both = hvd.ProcessSet([1])
    measure("set ids", lambda: [alone.process_set_id, hvd.global_process_set.process_set_id])
    hvd.add_process_set(both)
    for one in (alone, both):
        if one.included():
            measure("set sum", lambda s=one: hvd.allreduce(mine("float32"), process_set=s))
            measure("set size", lambda s=one: [s.size(), s.rank(), hvd.size_op(s.process_set_id)])
    measure("set removed", lambda: [hvd.remove_process_set(s) for s in (alone, alone)])
    measure("set again", lambda: hvd.add_process_set([0]).process_set_id)
    measure("set of all removed", lambda: hvd.remove_process_set(hvd.global_process_set))


LAYOUTS = {
    "neighbours": [[0, 1], [2, 3]],
    "every other": [[0, 2], [1, 3]],
    "some": [[1, 3]],
    "three": [[0, 1, 3]],
}
"""Process sets by name, for four ranks."""


def subsets():
    """Sets of several ranks side by side, and ranks that are in none."""
    for layout, ranks in LAYOUTS.items():
        known = [hvd.add_process_set(members) for members in ranks]
        chosen = next((one for one in known if one.included()), known[0])
        if chosen.included():
            in_a_subset(f"{layout}:", chosen)
        trained_in_a_subset(f"{layout}:", chosen)
        for one in known:
            hvd.remove_process_set(one)


def in_a_subset(layout, chosen):
    """Collectives, whose members alone call them."""
    options, root = {"process_set": chosen}, chosen.ranks[-1]
    calls = {
        "allgather": lambda x: hvd.allgather(x[: 2 + RANK % 2], **options),
        "broadcast": lambda x: hvd.broadcast(x, root, **options),
        "alltoall": lambda x: hvd.alltoall(tf.tile(x, [chosen.size(), 1]), **options),
    }
    for op in OPS:
        calls[f"allreduce {op}"] = lambda x, o=op: hvd.allreduce(x, op=getattr(hvd, o), **options)
    for op in ("Average", "Sum"):
        chosen_op = {"op": getattr(hvd, op), **options}
        calls[f"grouped_allreduce {op}"] = lambda x, o=chosen_op: hvd.grouped_allreduce([x, x], **o)
        calls[f"reducescatter {op}"] = lambda x, o=chosen_op: hvd.reducescatter(x, **o)
    for name, call in calls.items():
        for dtype in ("int32", "float32"):
            full = f"{layout} {name} | {dtype}"
            measure(full, lambda c=call, d=dtype: c(mine(d)))
            measure(f"{full} in a graph", lambda c=call, d=dtype: tf.function(c)(mine(d)))
        measure(f"{layout} {name} | gradient", lambda c=call: gradient(c, "float32"))
    measure(f"{layout} slices", lambda: hvd.allreduce(slices(), **options))
    measure(f"{layout} objects", lambda: hvd.allgather_object(RANK + 0.5, **options))
    measure(f"{layout} broadcast_object", lambda: hvd.broadcast_object(RANK, root, **options))

    def assigned():
        variable = tf.Variable(float(RANK))
        hvd.broadcast_variables([variable], root, **options)
        return variable

    measure(f"{layout} broadcast_variables", assigned)


def trained_in_a_subset(layout, chosen):
    """Tapes and optimizers: ranks outside of the set keep their gradients."""
    options, dense = {"process_set": chosen}, {"sparse_as_dense": True}
    rows = {
        "plain": {},
        "Sum": {"op": hvd.Sum, **dense},
        "fp16": {"compression": hvd.Compression.fp16, **dense},
        "predivide": {"gradient_predivide_factor": 2.0, **dense},
        "groups 2": {"groups": 2, **dense},
        "local": {"local": True},
        "local unscaled": {"local": True, "scale_local_gradients": False},
    }
    for name, more in rows.items():
        given = {**options, **more}
        measure(f"{layout} tape {name}", lambda g=given: weights_after(**dict(g)))
        measure(f"{layout} tape {name} in a graph", lambda g=given: weights_after(True, **dict(g)))
    passes = {"backward_passes_per_step": 2}
    averaged = {**passes, "average_aggregated_gradients": True}
    rows = {**rows, "passes": {**passes, **dense}, "passes averaged": {**averaged, **dense}}
    for name, more in rows.items():
        given = {**options, **more}
        measure(f"{layout} fit {name}", lambda g=given: fitted(**dict(g)))
    callbacks = lambda: [  # noqa: E731
        hvd_keras.callbacks.BroadcastGlobalVariablesCallback(1),
        hvd_keras.callbacks.MetricAverageCallback(),
    ]
    measure(f"{layout} fit callbacks", lambda: fitted(callbacks(), metric=True, **options))
    for name in ("plain", "Sum", "groups 2", "passes"):
        given = {**options, **rows[name]}
        build = lambda g=given: optimizer_in_session(**g)  # noqa: E731
        measure(f"{layout} session optimizer {name}", lambda b=build: in_session(b, 2))


def joined():
    """Rank 0 has two steps, rank 1 four, and the others none."""
    for step in range((2, 4, 0)[min(RANK, 2)]):
        for op in ("Average", "Sum", "Min", "Max", "Product"):
            options = {"op": getattr(hvd, op), "name": f"joined {op}"}
            measure(f"join {op} {step}", lambda o=options: hvd.allreduce(mine("float32"), **o))
        for dtype in ("int32", "float16", "float64"):
            named = {"op": hvd.Sum, "name": f"joined_{dtype}"}
            measure(f"join {dtype} {step}", lambda d=dtype, o=named: hvd.allreduce(mine(d), **o))
        measure(
            f"join grouped {step}",
            lambda: hvd.grouped_allreduce([mine("float32")] * 2, name="joined_group"),
        )
        measure(
            f"join in a graph {step}",
            lambda: tf.function(lambda x: hvd.allreduce(x, name="joined_graph"))(mine("float32")),
        )
    if RANK == 1:
        measure("join allgather", lambda: hvd.allgather(mine("float32"), name="joined allgather"))
        measure("join broadcast", lambda: hvd.broadcast(mine("float32"), 1, name="joined b"))
        measure("join alltoall", lambda: hvd.alltoall(mine("float32"), name="joined alltoall"))
        measure("join reducescatter", lambda: hvd.reducescatter(mine("float32"), name="joined r"))
    measure("join last", hvd.join)
    measure("join after", lambda: hvd.allreduce(mine("float32")))


def main(folder, *names):
    parts = (collectives, rare, numpy_ones, layers, sessions, tapes, training, errors, sets, joined)
    for part in (*parts, subsets):
        if (part is not subsets or SIZE == 4) if not names else part.__name__ in names:
            part()
        save(folder)
    hvd.shutdown()


def save(folder):
    with open(os.path.join(folder, f"{RANK}.json"), "w") as file:
        json.dump(MEASURED, file)


main(*sys.argv[1:])
