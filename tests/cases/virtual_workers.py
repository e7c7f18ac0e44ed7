"""Cases with virtual workers: what a training comes to, bit for bit."""

import dataclasses
import functools
import os
import signal
from collections.abc import Callable
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfddl
from tests.cases.fit import raised
from tests.virtual_problem import data, model, optimizer, values
from tfddl._src.gradients import virtual_sum
from tfddl._src.runtime import current
from tfddl._src.virtual_workers import Node, TreeSum, own_workers
from tfddl.errors import UnsupportedError


def augment(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> Any:
    return x + rng.normal(size=x.shape).astype("float32") / 8, y


def compiled(spec: dict[str, Any]) -> keras.Model:
    if spec.get("scope"):
        keras.utils.clear_session()
        with tfddl.strategy(virtual_workers=spec["virtual_workers"]).scope():
            made = model(spec)
            made.compile(
                optimizer(spec),
                loss="sparse_categorical_crossentropy",
                metrics=["accuracy"],
                steps_per_execution=spec.get("steps_per_execution", 1),
            )
        return made
    made = model(spec)
    averaging = tfddl.DistributedOptimizer(optimizer(spec), virtual_workers=spec["virtual_workers"])
    if spec.get("policy") == "mixed_float16":
        averaging = keras.optimizers.LossScaleOptimizer(averaging, initial_scale=2.0**20)
    made.compile(
        averaging,
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        run_eagerly=spec.get("run_eagerly", False),
        steps_per_execution=spec.get("steps_per_execution", 1),
    )
    return made


def dataset(spec: dict[str, Any], *, epoch: int = 0) -> tf.data.Dataset:
    found = tfddl.shard_dataset(
        *data(spec["n"]),
        batch_size=spec.get("batch_size", 3),
        seed=1,
        epoch=epoch,
        order=spec.get("order", "global"),
        augment=augment if spec.get("augment") else None,
        virtual_workers=spec["virtual_workers"],
    )
    return found.map(lambda x, y, *rest: (x * 2, y, *rest))


def everyday(spec: dict[str, Any], path: str) -> dict[str, Any]:
    """`fit`, recorded, and a loop written by hand, in workers that have one thread anyway."""
    options = dataclasses.replace(current().options, intra_op_threads=1)
    threading = mock.patch.object(
        tf.config.threading, "get_intra_op_parallelism_threads", return_value=1
    )
    with mock.patch.object(current(), "options", options), threading:
        found = train(spec, [tfddl.debug.fingerprint(path, every=2)])
        assert loop(spec, saved=f"{path}.npz", end=(1, 0)) == []
        scoped = train({**spec, "scope": True}, [])
        _refuse_other_ways(spec)
        return {**found, "by hand": loop(spec, saved=f"{path}.npz"), "scoped": scoped}


def _refuse_other_ways(spec: dict[str, Any]) -> None:
    """What would train each worker by itself under the scope is an error."""
    strategy = tfddl.strategy(virtual_workers=spec["virtual_workers"])
    assert strategy.num_replicas_in_sync == spec["virtual_workers"]
    data = tf.data.Dataset.range(3)
    with strategy.scope():
        made, alone = model(spec), optimizer(spec)
        with pytest.raises(UnsupportedError, match="got a DistributedOptimizer"):
            made.compile(tfddl.DistributedOptimizer(optimizer(spec)), loss="mse")
        alone.build(made.trainable_variables)
        gradients = [tf.zeros(v.shape) for v in made.trainable_variables]
        ways: list[Callable[[], Any]] = [
            lambda: strategy.run(lambda: None),
            lambda: strategy.reduce("sum", 1.0, axis=None),
            lambda: strategy.gather(1.0, axis=0),
            lambda: strategy.experimental_distribute_dataset(data),
            lambda: strategy.distribute_datasets_from_function(lambda _: data),
            lambda: alone.apply(gradients),
        ]
        for way in ways:
            with pytest.raises(UnsupportedError, match="each worker would train by itself"):
                way()
    too_few = current().cluster.size - 1
    with pytest.raises(UnsupportedError, match=f"virtual_workers is {too_few}"):
        tfddl.strategy(virtual_workers=too_few)


def _evaluate_few(spec: dict[str, Any]) -> None:
    """Fewer examples than virtual workers."""
    x, y = data(3)
    assert spec["virtual_workers"] > len(x)
    made = compiled(spec)
    chances = made(x).numpy()[range(len(x)), y]
    loss, accuracy = made.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(loss, -np.log(chances).mean(), rtol=1e-5)
    np.testing.assert_allclose(accuracy, np.mean(made(x).numpy().argmax(1) == y))


def train_all(
    specs: dict[str, dict[str, Any]], fingerprints: str | None = None
) -> dict[str, dict[str, Any]]:
    """What each of some trainings comes to."""
    callbacks = [] if fingerprints is None else [tfddl.debug.fingerprint(fingerprints, every=2)]
    return {name: train(spec, callbacks) for name, spec in specs.items()}


def train(spec: dict[str, Any], callbacks: list[Any]) -> dict[str, Any]:
    """What `fit`, `evaluate` and `predict` come to."""
    made = compiled({**spec, "init_seed": 3 + tfddl.rank()})  # Rank 0's weights are everyone's.
    validation = data(21, 1)
    history = made.fit(
        dataset(spec),
        epochs=spec.get("epochs", 2),
        validation_data=validation,
        class_weight={0: 0.5, 2: 2.0} if spec.get("class_weight") else None,
        callbacks=list(callbacks),
        verbose=0,
    )
    return {
        "weights": [np.asarray(v).tobytes() for v in made.trainable_variables],
        "state": [np.asarray(v).tobytes() for v in [*made.variables, *made.optimizer.variables]],
        "history": history.history,
        "evaluated": made.evaluate(*validation, batch_size=4, verbose=0),
        "predicted": made.predict(validation[0], batch_size=4, verbose=0).tobytes(),
        "of the shard": _predicted(made, spec),
    }


def _predicted(made: keras.Model, spec: dict[str, Any]) -> Any:
    if spec.get("noise"):
        return raised(lambda: made.predict(dataset(spec), verbose=0))[:2]
    return made.predict(dataset(spec), verbose=0).tobytes()


def loop(
    spec: dict[str, Any], saved: str | None = None, end: tuple[int, int] | None = None
) -> list[bytes]:
    """The weights, after a loop written by hand: from what is saved on; to a step, and saves."""
    made = model({**spec, "init_seed": 3 + tfddl.rank()})
    tfddl.broadcast_variables(made.weights)
    averaging = tfddl.DistributedOptimizer(optimizer(spec), virtual_workers=spec["virtual_workers"])
    loss_function = keras.losses.SparseCategoricalCrossentropy()

    def train_step(batch: Any) -> tf.Tensor:
        x, y = batch
        with tf.GradientTape() as tape:
            loss = loss_function(y, made(x, training=True))
        gradients = tape.gradient(loss, made.trainable_variables)
        with tfddl.loss_count(tf.shape(x)[0]):
            averaging.apply_gradients(zip(gradients, made.trainable_variables, strict=True))
        return loss

    step = tfddl.VirtualTrainStep(train_step, made, averaging)
    variables = [*made.variables, *averaging.variables]
    first_epoch, first_step = 0, 0
    if end is None and saved is not None:
        with np.load(saved) as found:
            state = dict(found)
        first_epoch, first_step = state.pop("position").tolist()
        for i, variable in enumerate(variables):
            variable.assign(state.pop(f"variable {i}"))
        step.restore(state)
    for epoch in range(first_epoch, spec["epochs"]):
        given = step.batches(dataset(spec, epoch=epoch), first_step=first_step)
        for number, batches in enumerate(given, first_step):
            losses = step(batches)
            assert len(losses) == len(batches)
            if end is not None and (epoch, number) == tuple(end):
                named = {f"variable {i}": np.asarray(v) for i, v in enumerate(variables)}
                state = {**step.state(), **named, "position": np.array([epoch, number + 1])}
                if tfddl.rank() == 0:
                    np.savez(str(saved), **state)
                tfddl.barrier()
                return []
        first_step = 0
        # Layers' own state is in the model between epochs: here how often a seed has been used.
        seeds = [np.asarray(v) for v in made.variables if "seed" in v.name]
        steps = -(-spec["n"] // (3 * spec["virtual_workers"]))
        assert [int(uses) for _, uses in seeds] == [(epoch + 1) * steps]
    return [np.asarray(v).tobytes() for v in made.trainable_variables]


def sums(virtual_workers: int) -> list[bytes]:
    """Of large tensors, those that `values` has of each virtual worker."""
    own: TreeSum[list[tf.Tensor]] = TreeSum(virtual_sum.add)
    for worker in own_workers(virtual_workers, tfddl.rank(), tfddl.size()):
        own.push(Node(worker, 1), [tf.constant(value) for value in values(worker)])
    with mock.patch.object(virtual_sum, "_GATHERED_BYTES", 0):
        totals = virtual_sum.sum_nodes(own.nodes, virtual_workers, name="values")
    return [total.numpy().tobytes() for total in totals]


class _End(keras.callbacks.Callback):
    def __init__(self, steps: int, how: str) -> None:
        super().__init__()
        self._left, self._how = steps, how

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._left -= 1
        if self._left == 0 and self._how == "stop":
            self.model.stop_training = True
        if self._left == 0 and self._how == "kill" and tfddl.rank() == tfddl.size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)


def go_on(spec: dict[str, Any], directory: str, steps: int = 0, how: str = "") -> Any:
    """Trains from the newest checkpoint on: some steps, or to the end."""
    checkpoint = tfddl.callbacks.Checkpoint(directory, save_every_steps=1)
    return train(spec, [_End(steps, how), checkpoint])


def refused(directory: str) -> list[str]:
    """What is said of what can't be the same in every bit."""
    spec = {"virtual_workers": 4, "n": 24, "epochs": 1}

    def fit(changed: dict[str, Any], *, resumes: bool = True, **of_data: Any) -> str:
        made = compiled({**spec, **changed})
        found = dataset({**spec, **of_data})
        callbacks = [tfddl.callbacks.Checkpoint(directory)] if resumes else []
        return raised(lambda: made.fit(found, callbacks=callbacks, verbose=0))[1]

    train({**spec}, [tfddl.callbacks.Checkpoint(directory)])
    plain = model(spec)
    plain.compile(tfddl.DistributedOptimizer(optimizer(spec)), loss="mse")
    other: dict[str, Any] = {"virtual_workers": 6}
    # One for each rank: then all of them are at the same point at the same time.
    own = {**spec, "virtual_workers": tfddl.size(), "batch_normalization": "synchronized"}
    train(own, [])
    return [
        fit(other, **other),
        fit(other),
        raised(lambda: plain.fit(dataset(spec), verbose=0))[1],
        fit({"batch_normalization": "synchronized"}, resumes=False),
        raised(lambda: compiled(spec).train_on_batch(*data(8)))[1],
        raised(lambda: compiled(spec).test_on_batch(*data(8)))[1],
        raised(lambda: compiled(spec).fit(dataset(spec), callbacks=[_Evaluate()], verbose=0))[1],
        raised(lambda: compiled({**spec, "virtual_workers": 1}))[1],
        _on_other_processors(lambda: fit({})),
        raised(lambda: _loop_with_allreduce({**spec, "virtual_workers": 2 * tfddl.size()}))[1],
        _with_threads(2, lambda: fit({"embedding": True}, resumes=False)),
        _with_other_batch_size(spec, f"{directory}-within"),
    ]


def _loop_with_allreduce(spec: dict[str, Any]) -> None:
    made = model(spec)
    averaging = tfddl.DistributedOptimizer(optimizer(spec), virtual_workers=spec["virtual_workers"])
    step = tfddl.VirtualTrainStep(lambda batch: tfddl.allreduce(batch[0]), made, averaging)
    step(next(iter(step.batches(dataset(spec)))))


def _with_threads(number: int, function: Callable[[], str]) -> str:
    options = dataclasses.replace(current().options, intra_op_threads=number)
    name = "get_intra_op_parallelism_threads"
    with (
        mock.patch.object(current(), "options", options),
        mock.patch.object(tf.config.threading, name, return_value=number),
    ):
        return function()


def _with_other_batch_size(spec: dict[str, Any], directory: str) -> str:
    found = []
    for batch_size, callbacks in ((2, [_End(1, "stop")]), (1, [])):
        checkpoint = tfddl.callbacks.Checkpoint(directory, save_every_steps=1)
        made, of_data = compiled(spec), dataset({**spec, "batch_size": batch_size})
        fitting = functools.partial(
            made.fit, of_data, callbacks=[*callbacks, checkpoint], verbose=0
        )
        found.append(fitting() if callbacks else raised(fitting)[1])
    return str(found[-1])


class _Evaluate(keras.callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.evaluate(*data(8), verbose=0)


def compiled_again(spec: dict[str, Any]) -> dict[str, list[bytes]]:
    """The weights after `fit`, of models that were compiled with or without virtual workers before.

    And what `evaluate` says where some virtual workers have no example.

    Each `fit` begins with the weights that the model was made with.
    """
    _evaluate_few(spec)
    found = {}
    for kinds in ("plain", "virtual", "plain, virtual", "virtual, plain"):
        made = model(spec)
        begin = [np.asarray(v) for v in made.variables]  # Seeds, too.
        for kind in kinds.split(", "):
            number = spec["virtual_workers"] if kind == "virtual" else None
            for variable, value in zip(made.variables, begin, strict=True):
                variable.assign(value)
            averaging = tfddl.DistributedOptimizer(optimizer(spec), virtual_workers=number)
            made.compile(averaging, loss="sparse_categorical_crossentropy")
            made.fit(dataset({**spec, "virtual_workers": number}), verbose=0)
        found[kinds] = [w.tobytes() for w in made.get_weights()]
    return found


def _on_other_processors(function: Callable[[], str]) -> str:
    name = "tfddl._src.keras_hooks.virtual_fit.processor_name"
    with mock.patch(name, return_value=f"processor {tfddl.rank()}"):
        return function()


def recorded(directory: str) -> str:
    """Where two trainings without virtual workers part, of which one is given another seed."""
    paths = [f"{directory}/{name}" for name in ("first", "second")]
    for seed, path in enumerate(paths, 1):
        made = model({})
        made.compile(tfddl.DistributedOptimizer(optimizer({})), "sparse_categorical_crossentropy")
        found = tfddl.shard_dataset(*data(24), batch_size=3, seed=seed)
        made.fit(found, callbacks=[tfddl.debug.fingerprint(path)], verbose=0)
    tfddl.barrier()
    return str(tfddl.debug.compare(*paths))
