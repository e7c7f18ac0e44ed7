"""Cases about `evaluate` and `predict` as a job, and about callbacks, run by every worker."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfddl
import tfddl.horovod.tensorflow.keras as hvd
from tests import problem
from tests.cases.fit import raised
from tfddl._src.keras_hooks.predictions import gather_rows

SPEC: dict[str, Any] = {"n": 24, "loss": "bce", "optimizer": "sgd", "batch_size": 4, "seed": 1}


def _model() -> keras.Model:
    made, _ = problem.model(SPEC)
    # Keras 3.11 calls outputs after their layers.
    outputs = {"p": made.output, "rows": made.layers[1].output}
    outputs = {name: keras.layers.Identity(name=name)(value) for name, value in outputs.items()}
    two = keras.Model(made.inputs, outputs)
    two.compile(
        tfddl.DistributedOptimizer(problem.optimizer(SPEC)),
        loss={"p": "binary_crossentropy", "rows": None},
        metrics={"p": ["accuracy", keras.metrics.AUC(name="auc"), keras.metrics.TruePositives()]},
    )
    return two


def _data(n: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    spec = {**SPEC, "n": n}
    y = problem.labels(spec)
    return problem.data(spec)[0], {"p": y, "rows": np.zeros((n, 5), "float32")}


def everything(n: int) -> dict[str, Any]:
    """Replicated arrays, shards of them, and each rank's own part."""
    model = _model()
    tfddl.broadcast_variables(model.variables)
    x, y = _data(n)
    # What one process would say: another model, compiled without tfddl.
    alone = keras.Model(model.inputs, model.get_layer("p").output)
    alone.compile(
        "sgd",
        "binary_crossentropy",
        metrics=["accuracy", keras.metrics.AUC(name="auc"), keras.metrics.TruePositives()],
    )
    expected = alone.evaluate(x, y["p"], verbose=0, return_dict=True, batch_size=3)
    predicted = np.asarray(alone(x))
    ways = {
        "arrays": model.evaluate(x, y, batch_size=3, verbose=0, return_dict=True),
        "shard": model.evaluate(
            tfddl.shard_dataset(x, y, batch_size=2, seed=5), verbose=0, return_dict=True
        ),
    }
    start, stop = tfddl.shard_range(n, tfddl.rank(), tfddl.size())
    if n >= 2 * tfddl.size():
        own = tf.nest.map_structure(lambda leaf: leaf[start:stop], (x, y))
        ways["own"] = model.evaluate(*own, verbose=0, return_dict=True)
        np.testing.assert_allclose(
            model.predict(own[0], verbose=0)["p"], predicted[start:stop], rtol=1e-5
        )
    for way, found in ways.items():
        for name, value in found.items():
            # With several outputs, names begin with that of the output; and metrics are numbered.
            plain = name.removeprefix("p_")
            wanted = next(v for k, v in expected.items() if k[:8] == plain[:8])
            assert np.isclose(value, wanted, rtol=1e-5), (way, name, value, expected)
    orders = {
        "arrays": x,
        "shuffled": tfddl.shard_dataset(x, batch_size=2, seed=5),
        "blocks": tfddl.shard_dataset(x, batch_size=2, order="block").map(lambda rows: rows),
    }
    for data in orders.values():
        found = model.predict(data, batch_size=None if data is not x else 3, verbose=0)
        assert sorted(found) == ["p", "rows"]
        np.testing.assert_array_equal(found["rows"], x[:, 1:])
        np.testing.assert_allclose(found["p"], predicted, rtol=1e-5)
    return ways["arrays"]


def in_chunks(lengths: list[int]) -> list[tuple[str, list[list[float]]]]:
    """What all ranks get of rows that they have different numbers of, chunk by chunk."""
    count, rank = lengths[tfddl.rank()], tfddl.rank()
    rows = 100 * rank + np.arange(2 * count, dtype="float64").reshape(count, 2)
    gathered = [
        gather_rows(rows.astype(dtype), chunk_bytes=chunk_bytes)
        for dtype, chunk_bytes in (("float64", 3 * 16), ("float32", 1), ("float32", 5 * 8))
    ]
    return [(array.dtype.name, array.tolist()) for array in gathered]


def few(n: int) -> dict[str, Any]:
    """Fewer examples than workers."""
    model = _model()
    x, y = _data(n)
    assert len(model.predict(x, verbose=0)["p"]) == n
    found = model.evaluate(x, y, verbose=0, return_dict=True)
    rows = np.asarray(model(x)["p"])[:, 0]
    right = np.mean((rows > 0.5) == (y["p"][:, 0] > 0.5))
    assert np.isclose(found["p_accuracy"], right)
    return found


def on_one_rank(call: str) -> tuple[str, str, float]:
    """What is the job's, called by rank 0 alone; the others are in something else."""
    model, (x, y) = _model(), _data(24)
    calls = {
        "evaluate": lambda: model.evaluate(x, y, verbose=0),
        "predict": lambda: model.predict(x, verbose=0),
        "fit": lambda: model.fit(x, y, validation_data=(x, y), verbose=0),
    }
    if tfddl.rank() == 0:
        return raised(calls[call])
    return raised(lambda: model.fit(x, y, verbose=0) if call == "fit" else tfddl.barrier())


def by_horovod() -> dict[str, Any]:
    """With Horovod's optimizer each rank evaluates and predicts for itself, or doesn't."""
    rank, size = tfddl.rank(), tfddl.size()

    def compiled(model: keras.Model, optimizer: Any) -> keras.Model:
        # Metrics of its own: Keras doesn't reset them before a model's first evaluation.
        metrics = ["accuracy", keras.metrics.TruePositives(name="positives")]
        model.compile(optimizer, loss="binary_crossentropy", metrics=metrics)
        return model

    model = compiled(problem.model(SPEC)[0], hvd.DistributedOptimizer(problem.optimizer(SPEC)))
    x, y = problem.data(SPEC)[0], problem.labels(SPEC)

    def check(part: slice) -> None:
        results = model.evaluate(x[part], y[part], verbose=0, return_dict=True)
        expected = one_process(part)
        assert results == pytest.approx(expected, rel=1e-5), (results, expected)
        predicted = model.predict(x[part], verbose=0)
        np.testing.assert_allclose(predicted, np.asarray(model(x[part])), rtol=1e-5)

    def one_process(part: slice) -> dict[str, float]:
        plain = compiled(keras.Model(model.inputs, model.outputs), "sgd")
        return plain.evaluate(x[part], y[part], verbose=0, return_dict=True)

    found: dict[str, Any] = {}
    parts = [(x[rank::size], y[rank::size])] * 2
    for name, validation in (("some", parts[0] if rank == 0 else None), ("parts", parts[1])):
        history = model.fit(x[rank::size], y[rank::size], validation_data=validation, verbose=0)
        found[name] = history.history
        found[f"{name}, afterwards"] = one_process(slice(rank, None, size))
    found["all"] = model.fit(x, y, validation_data=(x, y), epochs=2, verbose=0).history
    found["all, afterwards"] = one_process(slice(None))
    if rank == 0:
        check(slice(None))
    check(slice(None))
    check(slice(rank * 4, rank * 4 + 9))
    # In the same script, a model that tfddl's own name has wrapped is the job's.
    both = compiled(problem.model(SPEC)[0], tfddl.DistributedOptimizer(problem.optimizer(SPEC)))
    own = slice(rank, None, size)
    found["tfddl's"] = both.evaluate(x[own], y[own], verbose=0, return_dict=True)
    return found


def within_fit() -> tuple[float, int]:
    """In a callback they are the rank's own, and disturb nothing."""
    x, y = _data(24)
    model = _model()
    rows = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if tfddl.rank() == 0:
                rows.append(len(model.predict(x[:7], verbose=0)["p"]))

    history = model.fit(
        tfddl.shard_dataset(x, y, batch_size=4),
        validation_data=(x, y),
        verbose=0,
        callbacks=[Look()],
    )
    final = model.evaluate(x, y, verbose=0, return_dict=True)
    assert np.isclose(history.history["val_loss"][0], final["loss"], rtol=1e-6)
    return history.history["loss"][0], sum(rows)


def learning_rates() -> dict[str, Any]:
    """What the callbacks make of it, batch by batch, and across a change of workers."""
    model, _ = problem.model(SPEC)
    model.compile(
        tfddl.DistributedOptimizer(keras.optimizers.SGD(0.5, momentum=0.9)),
        loss="binary_crossentropy",
    )
    x, y = problem.data(SPEC)[0], problem.labels(SPEC)
    rates: list[float] = []
    seen: list[float] = []
    speeds: list[list[float]] = []

    def speed() -> float:
        return float(np.abs(np.asarray(model.optimizer.momentums[0])).sum())

    class Before(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            speeds.append([speed()])

    class Write(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            rates.append(float(model.optimizer.learning_rate))
            speeds[-1].append(speed())

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["mine"] = float(tfddl.rank())

    class Read(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seen.append(logs["mine"])

    callbacks = tfddl.callbacks
    # Read before and after the schedule: what it does to the velocity shows between both.
    model.fit(
        tfddl.shard_dataset(x, y, batch_size=4),
        epochs=4,
        callbacks=[
            callbacks.BroadcastGlobalVariables(0),
            Before(),
            callbacks.LearningRateWarmup(0.4, warmup_epochs=2),
            callbacks.LearningRateSchedule(0.4, 0.5, start_epoch=3),
            Write(),
            callbacks.MetricAverage(),
            Read(),
        ],
        verbose=0,
    )
    model.fit(
        tfddl.shard_dataset(x, y, batch_size=4),
        callbacks=[callbacks.LearningRateScaling(0.01, rule="sqrt")],
        verbose=0,
    )
    return {
        "rates": rates,
        "speeds": speeds,
        "seen": seen,
        "scaled": float(model.optimizer.learning_rate),
    }


def one_rank_lowers_the_rate() -> tuple[str, str, float]:
    model, _ = problem.model(SPEC)
    model.compile(tfddl.DistributedOptimizer(problem.optimizer(SPEC)), loss="binary_crossentropy")
    x, y = problem.data(SPEC)[0], problem.labels(SPEC)
    callbacks = []
    if tfddl.rank() == 1:
        callbacks = [keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (1 + epoch))]
    data = tfddl.shard_dataset(x, y, batch_size=4)
    return raised(lambda: model.fit(data, epochs=3, callbacks=callbacks, verbose=0))


def root_rank() -> list[float]:
    """Rank 1 comes with a history; everyone goes on from there."""
    model, _ = problem.model({**SPEC, "init_seed": 5 + tfddl.rank()})
    optimizer = problem.optimizer(SPEC)
    optimizer.build(model.trainable_variables)
    optimizer.iterations.assign(40 * tfddl.rank())
    model.compile(tfddl.DistributedOptimizer(optimizer), loss="binary_crossentropy")
    starts: list[np.ndarray] = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            starts.append(np.asarray(model.trainable_variables[0]).copy())

    before = np.asarray(model.trainable_variables[0]).copy()
    theirs = tfddl.broadcast_object(before, 1)
    x, y = problem.data(SPEC)[0], problem.labels(SPEC)
    model.fit(
        tfddl.shard_dataset(x, y, batch_size=4),
        callbacks=[Look(), tfddl.callbacks.BroadcastGlobalVariables(1)],
        verbose=0,
    )
    assert np.array_equal(starts[0], theirs)
    return [float(optimizer.iterations), float(len(starts))]


def normalization(pooled: bool) -> tuple[float, float]:
    """Ranks whose images differ in brightness, as the source's shards of a sorted folder did."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(1)
    y = (np.arange(128) % 2).astype("float32")
    brightness = np.where(np.arange(128) < 64, -1.5, 1.5)
    x = (0.15 * rng.normal(size=(128, 1)) + brightness[:, None]).astype("float32")
    x[:, 0] += 4 * y - 2
    inputs = keras.Input((1,))
    hidden = keras.layers.BatchNormalization(momentum=0.8)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(hidden))
    optimizer = tfddl.DistributedOptimizer(keras.optimizers.Adam(0.05))
    start, stop = tfddl.shard_range(128, tfddl.rank(), tfddl.size())
    if pooled:
        model.compile(optimizer, "binary_crossentropy", metrics=["accuracy"])
        history = model.fit(
            x[start:stop],
            y[start:stop],
            batch_size=16,
            epochs=12,
            shuffle=False,
            validation_data=(x, y),
            verbose=0,
        )
        return history.history["accuracy"][-1], history.history["val_accuracy"][-1]
    tfddl.broadcast_variables(model.variables)
    loss_fn = keras.losses.BinaryCrossentropy()
    right = []

    @tf.function
    def step(rows: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            p = model(rows, training=True)[:, 0]
            loss = loss_fn(labels, p)
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return tf.reduce_mean(tf.cast((p > 0.5) == (labels > 0.5), tf.float32))

    for _ in range(12):
        right = [float(step(x[at : at + 16], y[at : at + 16])) for at in range(start, stop, 16)]
    accuracy = np.mean((np.asarray(model(x))[:, 0] > 0.5) == (y > 0.5))
    return float(np.mean(right)), float(accuracy)


def vanishing(directory: str) -> tuple[str, str, float]:
    """A file is cut short while the job trains, on one rank."""
    rng = np.random.default_rng(0)
    paths = [f"{directory}/{i}.npy" for i in range(24)]
    if tfddl.rank() == 0:
        for path in paths:
            np.save(path, rng.normal(size=6).astype("float32"))
    tfddl.barrier()
    model, _ = problem.model(SPEC)
    model.compile(tfddl.DistributedOptimizer(problem.optimizer(SPEC)), loss="binary_crossentropy")
    opened = []

    def load(path: str, label: np.ndarray) -> Any:
        opened.append(path)
        if tfddl.rank() == 1 and len(opened) > 20:
            raise FileNotFoundError(f"[Errno 2] No such file or directory: '{path}'")
        return np.load(path), label

    y = problem.labels(SPEC)
    data = tfddl.shard_dataset(paths, y, batch_size=4, load=load)
    return raised(lambda: model.fit(data, epochs=5, verbose=0))


def stock(directory: str) -> dict[str, Any]:
    """Keras' callbacks on all ranks; in the third epoch one rank's data isn't a number."""
    model, _ = problem.model(SPEC)
    model.compile(tfddl.DistributedOptimizer(problem.optimizer(SPEC)), loss="binary_crossentropy")
    x, y = problem.data(SPEC)[0].copy(), problem.labels(SPEC)
    batches: list[int] = []

    class Spoil(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2 and tfddl.rank() == 1:
                x[:] = np.nan

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            batches.append(batch)

    rates: list[float] = []

    def rate(epoch: int) -> float:
        rates.append(0.1 / (1 + epoch))
        return rates[-1]

    history = model.fit(
        tfddl.shard_dataset(x, y, batch_size=4),
        epochs=5,
        callbacks=[
            Spoil(),
            keras.callbacks.LearningRateScheduler(rate),
            keras.callbacks.TerminateOnNaN(),
            keras.callbacks.CSVLogger(f"{directory}/log.csv"),
        ],
        verbose=0,
    )
    tfddl.barrier()
    with open(f"{directory}/log.csv") as file:
        return {"batches": batches, "epochs": history.epoch, "rates": rates, "log": file.read()}
