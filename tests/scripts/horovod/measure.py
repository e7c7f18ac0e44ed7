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


def collectives():
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
        # Factors of integers: see the page.
        kept = FLOATS if factors else (*INTEGERS, *FLOATS)
        dtypes.update(dict.fromkeys(names, kept))
    for op, (label, factors) in itertools.product(("Average", "Sum"), FACTORS.items()):
        options = {"op": getattr(hvd, op), **factors}
        name = f"reducescatter {op} {label}".rstrip()
        calls[name] = lambda x, o=options: hvd.reducescatter(x, **o)
        dtypes[name] = FLOATS if factors else (*INTEGERS, *FLOATS)
        grouped = f"grouped_reducescatter {op} {label}".rstrip()
        calls[grouped] = lambda x, o=options: hvd.grouped_reducescatter([x, x[:2]], **o)
        dtypes[grouped] = dtypes[name]
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
    mixed = lambda: hvd.grouped_allreduce([slices(), slices()])  # noqa: E731
    measure("slices grouped | float32", mixed)
    measure("objects", lambda: hvd.allgather_object(RANK + 0.5))
    measure("broadcast_object", lambda: hvd.broadcast_object(RANK + 0.5, 1))
    measure("ranks", lambda: [hvd.rank_op(), hvd.size_op(), hvd.local_rank(), hvd.cross_size()])


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
        "wrong groups": {"groups": -1},
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
    optimizer = tf.keras.optimizers.legacy.SGD(learning_rate=lr)
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


def joined():
    """Rank 0 has two steps, rank 1 four, and the others none."""
    for step in range((2, 4, 0)[min(RANK, 2)]):
        for op in ("Average", "Sum", "Min", "Max", "Product"):
            options = {"op": getattr(hvd, op), "name": f"joined {op}"}
            measure(f"join {op} {step}", lambda o=options: hvd.allreduce(mine("float32"), **o))
    if RANK == 1:
        measure("join allgather", lambda: hvd.allgather(mine("float32"), name="joined allgather"))
        measure("join broadcast", lambda: hvd.broadcast(mine("float32"), 1, name="joined b"))
        measure("join alltoall", lambda: hvd.alltoall(mine("float32"), name="joined alltoall"))
        measure("join reducescatter", lambda: hvd.reducescatter(mine("float32"), name="joined r"))
    measure("join last", hvd.join)
    measure("join after", lambda: hvd.allreduce(mine("float32")))


def main(folder, *names):
    for part in (collectives, tapes, training, errors, sets, joined):
        if not names or part.__name__ in names:
            part()
        save(folder)
    hvd.shutdown()


def save(folder):
    with open(os.path.join(folder, f"{RANK}.json"), "w") as file:
        json.dump(MEASURED, file)


main(*sys.argv[1:])
