"""Cases about what `fit` agrees on, run by every worker."""

import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfddl
from tests import problem
from tfddl._src.runtime import context
from tfddl._src.sharding import shard_range

SPEC: dict[str, Any] = {"n": 24, "loss": "scce", "optimizer": "sgd", "batch_size": 4, "seed": 1}


def _model(**compiled: Any) -> tuple[keras.Model, problem.Recorder]:
    model, recorder = problem.model(SPEC)
    compiled.setdefault("optimizer", tfddl.DistributedOptimizer(problem.optimizer(SPEC)))
    compiled.setdefault("loss", "sparse_categorical_crossentropy")
    model.compile(**compiled)
    return model, recorder


def _dataset(n: int = 24) -> tf.data.Dataset:
    spec = {**SPEC, "n": n}
    return tfddl.shard_dataset(problem.data(spec)[0], problem.labels(spec), batch_size=4, seed=1)


def raised(function: Callable[[], Any]) -> tuple[str, str, float]:
    begin = time.monotonic()
    try:
        function()
    except Exception as error:  # noqa: BLE001 - the test looks at its name and text
        said = "\n".join([str(error), *getattr(error, "__notes__", ())])
        return type(error).__name__, said, time.monotonic() - begin
    return "no error", "", time.monotonic() - begin


def shards_by_hand(n: int, batch_size: int, fit: dict[str, Any], compare: bool) -> Any:
    """Every rank slices the arrays, and gives `fit` its shard."""
    spec = {**SPEC, "n": n}
    x, y = problem.data(spec)[0], problem.labels(spec)
    start, stop = shard_range(n, tfddl.rank(), tfddl.size())
    model, recorder = _model()

    def train() -> dict[str, list[float]]:
        history = model.fit(
            x[start:stop], y[start:stop], batch_size=batch_size, verbose=0, shuffle=False, **fit
        )
        return {k: [float(v) for v in values] for k, values in history.history.items()}

    if not compare:
        return (*raised(train), recorder.seen)
    history = train()
    weights = {v.path: np.asarray(v) for v in model.trainable_variables}
    return {"history": history, "weights": weights, "seen": recorder.seen}


def differ(what: str) -> tuple[str, str, float, list[list[int]]]:
    """One rank has another plan than the others."""
    odd = tfddl.rank() == tfddl.size() - 1
    model, recorder = _model()
    if odd:
        model, recorder = _made_otherwise(what, model, recorder)
    x, y = problem.data(SPEC)[0], problem.labels(SPEC)
    data = tfddl.shard_dataset(x, y, batch_size=4, seed=2 if odd and what == "data" else 1)
    options: dict[str, Any] = {"epochs": 2, "verbose": 0}
    if what == "validation_freq":
        options["validation_data"] = data
    if what == "root_rank":
        options["callbacks"] = [tfddl.callbacks.BroadcastGlobalVariables(int(odd))]
    others: dict[str, dict[str, Any]] = {
        "epochs": {"epochs": 3},
        "initial_epoch": {"initial_epoch": 1},
        "validation": {"validation_data": data},
        "validation_freq": {"validation_freq": 2},
        "steps": {"steps_per_epoch": 1},
    }
    options |= others.get(what, {}) if odd else {}
    return (*raised(lambda: model.fit(data, **options)), recorder.seen)


def _made_otherwise(
    what: str, model: keras.Model, recorder: problem.Recorder
) -> tuple[keras.Model, problem.Recorder]:
    if what == "iterations":
        model.optimizer.build(model.trainable_variables)
        model.optimizer.iterations.assign(7)
    elif what == "learning_rate":
        model.optimizer.learning_rate = 0.5
    elif what == "optimizer":
        return _model(optimizer=tfddl.DistributedOptimizer(keras.optimizers.Adam(0.1)))
    elif what == "variables":
        inputs = keras.Input((6,))
        hidden = keras.layers.Dense(9, name="other")(inputs)
        model = keras.Model(inputs, keras.layers.Dense(3)(hidden))
        model.compile(
            tfddl.DistributedOptimizer(problem.optimizer(SPEC)),
            loss="sparse_categorical_crossentropy",
        )
    return model, recorder


class StopAt(keras.callbacks.Callback):
    """Sets stop_training on one rank, in one hook, at one count of calls."""

    def __init__(self, hook: str, call: int, rank: int) -> None:
        super().__init__()
        self._left = call
        if rank == tfddl.rank():
            setattr(self, hook, self._stop)

    def _stop(self, *_: Any, **__: Any) -> None:
        self._left -= 1
        if self._left == 0:
            self.model.stop_training = True


class CountBatches(keras.callbacks.Callback):
    batches = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1


def stop(hook: str, call: int, rank: int) -> tuple[int, int]:
    """How many batches and epochs ran, on every rank."""
    model, recorder = _model()
    counter = CountBatches()
    callbacks = [StopAt(hook, call, rank), counter]
    history = model.fit(_dataset(), epochs=6, verbose=0, callbacks=callbacks)
    assert counter.batches == len(recorder.seen)
    again = model.fit(_dataset(), epochs=1, verbose=0)  # Nothing of it is left behind.
    assert len(again.epoch) == 1
    return counter.batches, len(history.epoch)


def early_stopping() -> tuple[list[int], list[float]]:
    """Stock callbacks see the job's logs, and decide alike."""
    model, _ = _model()
    seen: list[float] = []
    callbacks = [
        keras.callbacks.EarlyStopping("val_loss", min_delta=0.05, patience=1),
        keras.callbacks.ReduceLROnPlateau("loss", min_delta=10.0, patience=1),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda _, logs: seen.append(logs["val_loss"])),
    ]
    history = model.fit(
        _dataset(), validation_data=_dataset(9), epochs=20, verbose=0, callbacks=callbacks
    )
    return history.epoch, [*seen, float(model.optimizer.learning_rate.numpy())]


def own_callback_list() -> tuple[list[int], bool]:
    """A CallbackList of the user's: the epochs it ran for, and whether it is as it was before."""
    model, _ = _model()
    callbacks = keras.callbacks.CallbackList(
        [StopAt("on_epoch_end", 2, rank=1)], add_history=True, model=model, epochs=6, steps=3
    )
    before = list(callbacks.callbacks)
    history = model.fit(_dataset(), epochs=6, verbose=0, callbacks=callbacks)
    return history.epoch, callbacks.callbacks == before


def unknown_length(everywhere: bool) -> tuple[str, str, float]:
    model, _ = _model()
    if not everywhere and tfddl.rank() == 0:
        return raised(lambda: model.fit(_dataset(), verbose=0))

    def batches() -> Iterator[Any]:
        yield problem.data(SPEC)[0][:4], problem.labels(SPEC)[:4]

    return raised(lambda: model.fit(batches(), verbose=0))


def generator_with_steps() -> int:
    model, recorder = _model()
    x, y = problem.data(SPEC)[0], problem.labels(SPEC)

    def batches() -> Iterator[Any]:
        while True:
            yield x[:4], y[:4]

    model.fit(batches(), steps_per_epoch=3, epochs=2, verbose=0)
    return len(recorder.seen)


def runs_out() -> tuple[str, str, float]:
    """The last rank's generator ends early: all hear of it."""
    model, _ = _model()
    x, y = problem.data(SPEC)[0], problem.labels(SPEC)
    batches = 2 if tfddl.rank() == tfddl.size() - 1 else 9
    generator = ((x[:4], y[:4]) for _ in range(batches))
    return raised(lambda: model.fit(generator, steps_per_epoch=4, verbose=0))


class Batches(keras.utils.PyDataset):
    """Some batches of 4 examples, of which each rank has the same."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        part = slice(4 * index, 4 * index + 4)
        return problem.data(SPEC)[0][part], problem.labels(SPEC)[part]


def _batches(kind: str, number: int = 5) -> dict[str, Any]:
    """So many batches, as `fit` can take them."""
    x, y = (part[: 4 * number] for part in (problem.data(SPEC)[0], problem.labels(SPEC)))
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    kinds: dict[str, dict[str, Any]] = {
        "arrays": {"x": x, "y": y, "batch_size": 4, "shuffle": False},
        "sequence": {"x": Batches(number)},
        "dataset": {"x": dataset},
        "of unknown length": {"x": dataset.filter(lambda *_: True)},
        "generator": {"x": (Batches(number)[i] for i in range(number))},
    }
    return kinds[kind]


def early_ends(kind: str, steps: int, together: int, directory: str) -> dict[str, Any]:
    """Epochs of 5 batches that should have had ``steps``, with plain Keras and by all ranks.

    ``together`` of the steps are executed together.
    """
    weights, seen, warned, iterations = [], [], [], []
    for optimizer in (problem.optimizer(SPEC), tfddl.DistributedOptimizer(problem.optimizer(SPEC))):
        model, recorder = _model(optimizer=optimizer, steps_per_execution=together)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            whole = model.fit(**_batches(kind), steps_per_epoch=steps, epochs=4, verbose=0)
        warned.append(sum("ran out of data" in str(one.message) for one in caught))
        weights.append([np.asarray(w) for w in model.weights])
        seen.append(recorder.seen)
        iterations.append(int(model.optimizer.iterations))
    # The third epoch of 2 steps is over: the next run goes on with the fourth, and nothing else.
    checkpoint = tfddl.callbacks.Checkpoint(directory)
    options: dict[str, Any] = {"steps_per_epoch": steps, "verbose": 0, "callbacks": [checkpoint]}
    _model()[0].fit(**_batches(kind), epochs=3, **options)
    model, recorder = _model()
    history = model.fit(**_batches(kind), epochs=4, **options)
    return {
        "weights": weights,
        "seen": seen,
        "warned": warned,
        "iterations": iterations[1],  # Keras may count a step that found no data.
        "resumed": (history.epoch, len(recorder.seen), int(model.optimizer.iterations)),
        "last losses": [run.history["loss"][-1] for run in (whole, history)],
    }


def summed_loss() -> tuple[np.ndarray, np.ndarray]:
    x, y = problem.data(SPEC)[0], problem.labels(SPEC)
    loss = keras.losses.SparseCategoricalCrossentropy(reduction="sum")
    optimizer = tfddl.DistributedOptimizer(keras.optimizers.SGD(0.01), op="sum")
    model, _ = _model(optimizer=optimizer, loss=loss)
    model.fit(tfddl.shard_dataset(x, y, batch_size=12), epochs=3, verbose=0)
    plain, _ = problem.model(SPEC)
    plain.compile(keras.optimizers.SGD(0.01), loss=loss)
    plain.fit(x, y, batch_size=24, shuffle=False, epochs=3, verbose=0)
    kernels = [np.asarray(m.trainable_weights[0]) for m in (model, plain)]
    return kernels[0], kernels[1]


def under_scope() -> list[str]:
    messages = []
    distributed = tfddl.DistributedOptimizer(keras.optimizers.SGD(0.1))
    model, _ = problem.model(SPEC)
    with tfddl.strategy().scope():
        attempts: tuple[Callable[[], Any], ...] = (
            lambda: tfddl.DistributedOptimizer(keras.optimizers.SGD(0.1)),
            lambda: model.compile(distributed, loss="mse"),
            lambda: distributed.apply([tf.zeros([1])], [tf.Variable([1.0])]),
        )
        messages += [raised(attempt)[1] for attempt in attempts]
    return messages


def refusals() -> list[str]:
    sgd = keras.optimizers.SGD(0.1)
    wrapped = tfddl.DistributedOptimizer(keras.optimizers.SGD(0.1))
    sums, _ = _model(loss=keras.losses.MeanSquaredError(reduction="sum"))
    unbuilt = keras.Sequential([keras.layers.Dense(3)])
    unbuilt.compile(tfddl.DistributedOptimizer(problem.optimizer(SPEC)), loss="mse")
    hollow = Parts(keras.layers.Dense(3))
    hollow.compile(tfddl.DistributedOptimizer(problem.optimizer(SPEC)), loss="mse")
    attempts: tuple[Callable[[], Any], ...] = (
        lambda: tfddl.DistributedOptimizer("adam"),
        lambda: tfddl.DistributedOptimizer(wrapped),
        lambda: tfddl.DistributedOptimizer(sgd, op="max"),
        lambda: tfddl.DistributedOptimizer(sgd, compression="fp8"),
        lambda: sums.fit(_dataset(), verbose=0),
        lambda: unbuilt.fit((i for i in range(0)), steps_per_epoch=1, verbose=0),
        lambda: hollow.fit(Batches(3), verbose=0),
    )
    return [raised(attempt)[1] for attempt in attempts]


class Parts(keras.Model):
    """Without a `call`: its step applies what it consists of."""

    def __init__(self, part: keras.layers.Layer) -> None:
        super().__init__()
        self.part = part

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self.part(x, training=True))
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return {"loss": loss}


class Late(keras.Model):
    """Without an Input: its variables come with the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.recorder = problem.Recorder()
        self.hidden = keras.layers.Dense(8, activation="relu")
        self.out = keras.layers.Dense(3)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self.out(self.hidden(self.recorder(x, training=training)))


def builds_late() -> dict[str, Any]:
    """Models without an Input start from rank 0's weights, and miss no batch."""
    found = {}
    x, y = problem.data(SPEC)[0], problem.labels(SPEC)
    start, stop = shard_range(24, tfddl.rank(), tfddl.size())

    def shuffled() -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(24, seed=1).batch(4)

    inputs: dict[str, Callable[[], dict[str, Any]]] = {
        "arrays": lambda: {"x": x[start:stop], "y": y[start:stop], "batch_size": 4},
        "shard": lambda: {"x": _dataset()},
        "dataset": lambda: {"x": shuffled()},
        "sequence": lambda: {**_batches("sequence"), "shuffle": False},
        "generator": lambda: {**_batches("generator"), "steps_per_epoch": 5},
        "built on one rank": lambda: {"x": _dataset()},
        "parts": lambda: {"x": _dataset()},
    }
    in_order = [list(range(i, i + 4)) for i in range(0, 20, 4)]
    for name, data in inputs.items():
        keras.utils.clear_session()
        keras.utils.set_random_seed(50 + tfddl.rank())
        inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
        model = Parts(inner) if name == "parts" else Late()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(tfddl.DistributedOptimizer(problem.optimizer(SPEC)), loss=loss)
        if name == "built on one rank" and tfddl.rank() == 0:
            model(x[:1])
        model.fit(**data(), verbose=0)
        found[name] = [np.asarray(w) for w in model.weights]
        if name == "dataset":  # Whose first order is the first epoch's.
            first = [batch[:, 0] for batch, _ in shuffled().as_numpy_iterator()]
            assert model.recorder.seen == [ids.astype(int).tolist() for ids in first]
        elif name in ("sequence", "generator"):
            assert model.recorder.seen == in_order, name
    return found


class Noisy(keras.Model):
    """A model with a training step of its own, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = keras.layers.Dropout(0.5)
        self.dense = keras.layers.Dense(3)
        self.dropped = tf.Variable(0.0, trainable=False)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.dropout(x[:, 1:], training=training)
        if training:
            self.dropped.assign_add(tf.reduce_sum(tf.cast(x == 0.0, tf.float32)))
        return self.dense(x)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return {"own": loss, "rank": tf.constant(float(tfddl.rank()))}


def own_train_step() -> tuple[list[float], float, list[np.ndarray]]:
    """What it returns is averaged; dropout differs per rank and is the same from run to run."""
    runs = []
    for _ in range(2):
        keras.utils.set_random_seed(4)
        model = Noisy()
        optimizer = tfddl.DistributedOptimizer(keras.optimizers.SGD(0.1))
        model.compile(optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        history = model.fit(_dataset(), epochs=2, verbose=0)
        weights = [np.asarray(w) for w in model.trainable_weights]
        runs.append(([*history.history["own"], *history.history["rank"]], weights, model.dropped))
    assert runs[0][0] == runs[1][0]
    assert all((a == b).all() for a, b in zip(runs[0][1], runs[1][1], strict=True))
    return runs[0][0], float(runs[0][2].numpy()), runs[0][1]


def evaluate_on_one_rank() -> tuple[float, float]:
    """A callback that evaluates on rank 0 alone, and validation by all, in one `fit`."""
    model, _ = _model()
    alone: list[float] = []

    def look(*_: Any) -> None:
        if tfddl.rank() == 0:
            x, y = problem.data(SPEC)[0], problem.labels(SPEC)
            alone.append(float(model.evaluate(x, y, verbose=0)))

    history = model.fit(
        _dataset(),
        validation_data=_dataset(),
        epochs=1,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=look)],
    )
    return alone[0] if alone else 0.0, float(history.history["val_loss"][0])


def evaluate_within_an_epoch() -> tuple[list[float], list[float]]:
    """On one rank, after every batch: it changes nothing of what the job logs."""
    logs = []
    for looks in (False, True):
        model, _ = _model(metrics=[])

        def look(*_: Any, looks: bool = looks, model: Any = model, **__: Any) -> None:
            if looks and tfddl.rank() == 0:
                x, y = problem.data(SPEC)[0], problem.labels(SPEC)
                assert model.evaluate(x, y, verbose=0) > 0

        callback = keras.callbacks.LambdaCallback(on_epoch_begin=look, on_train_batch_begin=look)
        history = model.fit(_dataset(), epochs=2, verbose=0, callbacks=[callback])
        logs.append([float(v) for v in history.history["loss"]])
    return logs[0], logs[1]


class TwoOptimizers(keras.Model):
    """Tells `compile` nothing of its distributed optimizer."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x

    def compile(self, hidden: Any) -> None:
        super().compile()
        self.hidden = hidden


def hidden_optimizer() -> tuple[str, str, float]:
    model = TwoOptimizers()
    model.compile(tfddl.DistributedOptimizer(keras.optimizers.SGD(0.1)))
    return raised(lambda: model.fit(_dataset(), verbose=0))


def other_optimizers() -> tuple[int, int]:
    """A model compiled with a plain optimizer is left alone, also after it was distributed."""
    model, recorder = _model()
    model.fit(_dataset(), epochs=1, verbose=0)
    together = len(recorder.seen)
    model.compile(keras.optimizers.SGD(0.1), loss="sparse_categorical_crossentropy")
    x, y = problem.data(SPEC)[0], problem.labels(SPEC)
    # As many epochs as no other rank: with collectives in it, this would hang.
    model.fit(x, y, batch_size=6, epochs=1 + tfddl.rank(), verbose=0)
    return together, len(recorder.seen) - together


def batch_statistics(by_hand: bool) -> dict[str, np.ndarray]:
    """Moving statistics of BatchNormalization after two steps, and what they are of."""
    inputs = keras.Input((6,))
    normalized = keras.layers.BatchNormalization(momentum=0.6)(inputs)
    frozen = keras.layers.BatchNormalization(trainable=False)(normalized)
    model = keras.Model(inputs, keras.layers.Dense(3)(frozen))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    count = 4 + tfddl.rank()
    x = problem.data(SPEC)[0][:count] * (1 + tfddl.rank()) + 10 * tfddl.rank()
    if by_hand:
        tfddl.broadcast_variables(model.variables)
        for _ in range(2):
            model(x, training=True)
        tfddl.sync_moving_statistics(model, count=count)
    else:
        model.compile(tfddl.DistributedOptimizer(problem.optimizer(SPEC)), loss=loss)
        model.fit(x, problem.labels(SPEC)[:count], batch_size=8, epochs=2, verbose=0)
    layer = model.layers[1]
    assert np.all(np.asarray(model.layers[2].moving_variance) == 1)
    return {
        "x": x,
        "mean": np.asarray(layer.moving_mean),
        "var": np.asarray(layer.moving_variance),
    }


def saves(directory: str) -> None:
    """Rank 0 saves what the test loads where tfddl isn't imported."""
    model, _ = problem.model(SPEC)
    plain = keras.Sequential(model.layers[2:])
    plain.build((None, 5))
    optimizer = tfddl.DistributedOptimizer(keras.optimizers.AdamW(0.01, weight_decay=0.02))
    plain.compile(optimizer, loss="sparse_categorical_crossentropy")
    x, y = problem.data(SPEC)[0][:, 1:], problem.labels(SPEC)
    plain.fit(tfddl.shard_dataset(x, y, batch_size=4), epochs=2, verbose=0)
    predictions = plain.predict(x, verbose=0)
    if tfddl.rank() == 0:
        plain.save(f"{directory}/model.keras")
        plain.save(f"{directory}/model.h5")
        np.save(f"{directory}/predictions.npy", predictions)


def batches_by_hand() -> None:
    """`train_on_batch` before and after `fit` averages as well."""
    model, _ = _model()
    x, y = problem.data(SPEC)[0], problem.labels(SPEC)
    rank = tfddl.rank()
    model.train_on_batch(x[rank * 4 : rank * 4 + 4], y[rank * 4 : rank * 4 + 4])
    _alike(model)
    model.fit(_dataset(), epochs=1, verbose=0)
    model.train_on_batch(x[rank : rank + 3], y[rank : rank + 3])
    _alike(model)


def _alike(model: keras.Model) -> None:
    mine = [np.asarray(w).tobytes() for w in model.weights]
    assert tfddl.allgather_object(mine).count(mine) == tfddl.size()


def shut_down_within(hook: str) -> tuple[str, str, float]:
    """A callback says that the job is over, as some Horovod scripts do in the last epoch."""
    model, _ = _model()
    callback = keras.callbacks.Callback()
    setattr(callback, hook, lambda *_, **__: tfddl.shutdown())
    try:
        return raised(lambda: model.fit(_dataset(), epochs=1, verbose=0, callbacks=[callback]))
    finally:
        context._SLOT.active = True  # For the cases after this one.
