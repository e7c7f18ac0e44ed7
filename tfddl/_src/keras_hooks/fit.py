"""`fit` of a job: plans compared, state shared, logs and the end agreed upon."""

import dataclasses
import inspect
import itertools
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfddl._src.collectives import (
    DisplayName,
    ReduceOp,
    allreduce,
    barrier,
    broadcast_variables,
    grouped_allreduce,
    on_all_ranks,
)
from tfddl._src.data import clear_errors, find_shard, repeats_shard
from tfddl._src.heartbeat import Stage
from tfddl._src.keras_hooks import (
    builtin_callbacks,
    consistency,
    replicated_data,
    resume,
    scope,
    scope_data,
    script_strategies,
)
from tfddl._src.keras_hooks.compile import evaluates_together, trains_together
from tfddl._src.keras_hooks.data_errors import raise_on_all_ranks, reraise_data_errors
from tfddl._src.keras_hooks.fit_state import (
    BroadcastCallback,
    FitState,
    JobCallback,
    job_callbacks,
    running_fit,
)
from tfddl._src.keras_hooks.optimizer import innermost
from tfddl._src.keras_hooks.patching import wrap_method
from tfddl._src.keras_hooks.train_step import last_examples, step_state
from tfddl._src.runtime import current, is_started
from tfddl._src.sharding import BlockPlan, Order, Plan
from tfddl.errors import DataError, DisagreementError, StalledError, UnsupportedError

UNEVEN = (
    "Workers had different numbers of examples in a step, and their mean gradients were averaged "
    "as Horovod does: an example in a small batch weighs more than one in a large one. "
    "tfddl.DistributedOptimizer(optimizer) weighs them by their numbers, and "
    "tfddl.shard_dataset(x, y, batch_size=…) deals the examples out evenly: together they train as "
    "one process would."
)


_END_TIMEOUT_S = 60.0
"""How long a rank without data waits to hear that the others have none either, where it can't be
told at once that they have."""


def install() -> None:
    """Puts the hooks in place."""
    callbacks = keras.callbacks.CallbackList
    wrap_method(keras.Model, "fit", ("x", "y", "batch_size", "epochs"), _fit)
    wrap_method(keras.Model, "_get_metrics_result_or_logs", ("logs",), _results)
    wrap_method(callbacks, "on_train_begin", ("logs",), _on_train_begin)
    wrap_method(callbacks, "on_epoch_begin", ("epoch", "logs"), _on_epoch_begin)
    wrap_method(callbacks, "on_train_batch_end", ("batch", "logs"), _on_train_batch_end)
    wrap_method(callbacks, "on_epoch_end", ("epoch", "logs"), _on_epoch_end)
    for batches in ("test", "predict"):
        wrap_method(callbacks, f"on_{batches}_batch_end", ("batch", "logs"), _beat)


def _fit(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    if not is_started():
        return original(self, *args, **kwargs)
    runtime = current()
    call = inspect.signature(original).bind(self, *args, **kwargs)
    if isinstance(call.arguments.get("x"), tf.data.Dataset):
        # Keras' default is True, and warns that a dataset isn't shuffled.
        call.arguments.setdefault("shuffle", False)
    before = runtime.fit, runtime.epoch, runtime.resume
    fit: FitState | None = None
    # The callbacks set the epoch that begins; outside of `fit` there is none.
    runtime.epoch = call.arguments.get("initial_epoch", 0)
    runtime.resume = None
    datasets = (call.arguments.get("x"), call.arguments.get("validation_data"))
    for dataset in datasets:
        clear_errors(dataset)
    try:
        with reraise_data_errors(datasets), runtime.board.in_stage(Stage.TRAINING):
            runtime.fit = fit = _session(self, call)
            return original(*call.args, **call.kwargs)
    finally:
        if fit is not None and fit.callbacks is not None:
            for callback in job_callbacks(fit.callbacks):
                callback.after_fit()
        runtime.fit, runtime.epoch, runtime.resume = before
        self._initial_epoch = None  # A later `fit` begins where it is told to.


def _session(model: Any, call: inspect.BoundArguments) -> FitState | None:
    """The `fit` that begins; None where the ranks train models of their own."""
    script_strategies.refuse_other_strategies(model)
    given = call.arguments
    together = trains_together(model.optimizer)
    if repeats_shard(given.get("x")):
        raise UnsupportedError(
            "fit got a dataset of tfddl.shard_dataset with repeat() after it: TensorFlow begins "
            "the next pass before the epoch ends, on one rank sooner than on another, and examples "
            "would be mixed up. Leave repeat() out; fit makes a pass for every epoch by itself."
        )
    if not together:
        callbacks = builtin_callbacks.flatten_callbacks(given.get("callbacks"))
        if not any(isinstance(callback, BroadcastCallback) for callback in callbacks):
            _refuse_hidden_optimizers(model)
        if current().cluster.size > 1:
            _refuse_last_callbacks(callbacks)
            return None
    else:
        if scope.contains(model):
            scope_data.shard_fit_data(given)
        _build(model, given)
        _deal_out_validation(given)
        given["callbacks"] = builtin_callbacks.select_for_rank(given.get("callbacks"))
        if current().cluster.rank:
            given.setdefault("verbose", 0)  # One progress bar is enough.
    share = find_shard(given.get("x"))
    return FitState(
        model=model,
        together=together,
        share=share,
        data=_describe(given.get("x"), None if share is None else share.plan),
        epochs=given.get("epochs", 1),
        validation_freq=str(given.get("validation_freq", 1)),
        datasets=(given.get("x"), given.get("validation_data")),
        initial_epoch=given.get("initial_epoch", 0),
        validates=bool(given.get("validation_split")) or given.get("validation_data") is not None,
    )


def _describe(x: Any, plan: Plan | None) -> str:
    """What has to be alike on all ranks of the data, as far as it can be told."""
    if plan is None:
        is_sliced = isinstance(x, tf.data.Dataset) and hasattr(x, "tfddl_order")
        return x.tfddl_order if is_sliced else FitState.data
    order = Order.BLOCK if isinstance(plan, BlockPlan) else Order.GLOBAL
    return (
        f"{plan.num_examples} examples in {order} order, seed {plan.seed}, "
        f"batches of {plan.batch_size}"
    )


def _deal_out_validation(given: dict[str, Any]) -> None:
    """Validation arrays that all ranks have got whole are dealt out."""
    data = given.get("validation_data")
    if not isinstance(data, tuple | list):
        data = ()
    # Asked on every rank, because some may have got none; these are told by name later.
    if replicated_data.is_replicated(data, name=DisplayName("validation data")):
        batch_size = given.get("validation_batch_size") or given.get("batch_size")
        parts = list(keras.utils.unpack_x_y_sample_weight(tuple(data)))
        parts = replicated_data.take_steps(
            parts, steps=given.pop("validation_steps", None), batch_size=batch_size
        )
        given["validation_data"] = replicated_data.shard_arrays(*parts)


def _refuse_last_callbacks(callbacks: Sequence[Any]) -> None:
    """A checkpoint of many models that don't know of each other is none."""
    for callback in callbacks:
        if isinstance(callback, JobCallback) and not isinstance(callback, BroadcastCallback):
            raise UnsupportedError(
                f"tfddl's {type(callback).__name__} needs a model that the ranks train together: "
                "compile it with tfddl.DistributedOptimizer(…)."
            )


def _refuse_hidden_optimizers(model: Any) -> None:
    """A distributed optimizer that `compile` wasn't told of would train without any agreement."""
    for name, value in vars(model).items():
        if trains_together(value):
            raise UnsupportedError(
                f"model.{name} is a DistributedOptimizer, but model.optimizer is not: fit would "
                "neither start the ranks from the same weights nor compare their plans. Pass one "
                "of the distributed optimizers on, super().compile(optimizer=…); or add "
                "tfddl.callbacks.BroadcastGlobalVariables(0), which gives all ranks the same "
                "weights after the first step."
            )


def _build(model: Any, given: dict[str, Any]) -> None:
    """Makes the variables before training starts, so that all ranks can start from the same.

    Keras would make them in the first step. All ranks must call it together, also where only some
    have a model without variables.

    Args:
        model: That `fit` was called on.
        given: The arguments of `fit`. A generator in it is replaced by one that begins with the
            batch that was taken from it.

    Raises:
        DataError: On all ranks, where one can't read its first batch.
        UnsupportedError: There is no `call` that would make the variables.
    """
    has_call = type(model).call is not keras.Model.call
    is_built = all(layer.built for layer in model.layers) and (model.built or not has_call)
    if isinstance(given.get("x"), tf.distribute.DistributedDataset):
        is_built = True  # Keras builds a model under the scope by itself.
    if not (is_built or has_call):
        raise UnsupportedError(
            f"{type(model).__name__} has layers without variables, and no call() that would make "
            "them: the ranks couldn't start from the same weights. Give its layers and the models "
            "in it an Input, or call them on a batch before fit."
        )
    make = on_all_ranks(lambda: None if is_built else _maker(model, given), error=DataError)
    if make is not None:
        with scope.of(model):
            make()


def _maker(model: Any, given: dict[str, Any]) -> Callable[[], Any]:
    """What makes a model's variables; reads what data it needs for it."""
    x = given.get("x")
    if isinstance(x, tf.data.Dataset) and not model.run_eagerly:
        # As Keras does in the first step, and without a batch: a shuffle would begin its second
        # order with the first epoch, and what a dataset gives only once would be lost.
        inputs = keras.utils.unpack_x_y_sample_weight(x.element_spec)[0]
        trace = tf.function(lambda batch: model(batch, training=False), autograph=False)
        return lambda: trace.get_concrete_function(inputs)
    first = _first_inputs(given)
    return lambda: model(first, training=False)


def _first_inputs(given: dict[str, Any]) -> Any:
    """The inputs of a first batch, or of an example."""
    x = given.get("x")
    if isinstance(x, tf.data.Dataset):
        with reraise_data_errors((x,)):
            batch = next(iter(x))
    elif isinstance(x, keras.utils.PyDataset):
        batch = x[0]
    elif isinstance(x, types.GeneratorType):
        batches = list(itertools.islice(x, 1))
        if not batches:
            raise DataError(
                f"rank {current().cluster.rank}: the generator that fit got has no batch."
            )
        given["x"] = _again(batches, x)
        batch = batches[0]
    else:
        return tf.nest.map_structure(lambda leaf: tf.convert_to_tensor(leaf[:1]), x)
    return keras.utils.unpack_x_y_sample_weight(batch)[0]


def _again(first: Sequence[Any], rest: Iterator[Any]) -> Iterator[Any]:
    """A generator that begins with what was taken from another one; Keras takes nothing else."""
    yield from first
    yield from rest


def _on_train_begin(original: Callable[..., Any], self: Any, logs: Any = None) -> Any:
    fit = running_fit(self)
    if fit is None:
        return original(self, logs)
    fit.callbacks = self
    params = self.params or {}  # A CallbackList of the user's may have been told nothing.
    fit.steps = params.get("steps") or (None if fit.share is None else fit.share.plan.steps)
    fit.epochs = int(params.get("epochs", fit.epochs))
    if fit.share is not None and fit.share.plan.steps != fit.steps:
        fit.share = None  # Not an epoch of it is trained on, but some other number of batches.
    if fit.together:
        result = _begin_together(original, self, fit, logs)
    else:
        result = original(self, logs)
    for callback in job_callbacks(self):
        callback.after_train_begin(fit)
    return result


def _begin_together(original: Callable[..., Any], self: Any, fit: FitState, logs: Any) -> Any:
    step_state(fit.model).clear_stop()  # A fit that failed may have left a wish to stop.
    facts = consistency.TrainingPlan.of(fit.model, fit)
    is_free = not evaluates_together(fit.model.optimizer)
    if facts.root_rank is None:
        consistency.compare_plans(facts, validation_is_free=is_free)
    else:  # The ranks may have made different numbers of steps, as long as they know whose count.
        unknown = dataclasses.replace(facts, iterations=0, learning_rate="")
        consistency.compare_plans(unknown, validation_is_free=is_free)
        _broadcast_state(fit, facts.root_rank)
    result = original(self, logs)
    after = consistency.TrainingPlan.of(fit.model, fit)
    fit.validates_together = consistency.compare_plans(after, validation_is_free=is_free)
    _broadcast_state(fit, facts.root_rank or 0)
    _give_ranks_their_own_randomness(fit.model)
    return result


def _broadcast_state(fit: FitState, root_rank: int) -> None:
    """Gives all ranks the state of one, but for what is each rank's own."""
    own = [*innermost(fit.model.optimizer).tfddl_options.local]
    for callback in job_callbacks(fit.callbacks):
        if isinstance(callback, BroadcastCallback):
            own.extend(callback.local_variables)
    broadcast_model(fit.model, [fit.model.optimizer], root_rank, own=own)


def broadcast_model(
    model: Any, optimizers: Iterable[Any], root_rank: int, *, own: Sequence[Any]
) -> None:
    """Gives all ranks the weights of a model and the state of its optimizers that one has.

    Args:
        model: Built.
        optimizers: Likewise.
        root_rank: Whose.
        own: Variables that stay each rank's own, as what optimizers keep for them does.
    """
    # Keras names the optimizer's variables after what they belong to.
    slots = tuple(f"{getattr(v, 'path', v.name).replace('/', '_')}_" for v in own)
    weights = [v for v in model.weights if not any(v is mine for mine in own)]
    state = [v for one in optimizers for v in one.variables if not v.name.startswith(slots)]
    broadcast_variables([*weights, *state], root_rank)


def _give_ranks_their_own_randomness(model: Any) -> None:
    """Derives every rank's seeds from rank 0's: dropout differs, and is the same in each run."""
    seeds = [v for v in model.variables if v.name == "seed_generator_state"]
    broadcast_variables(seeds)
    for seed in seeds:
        mixed = (tf.cast(seed[0], tf.int64) + current().cluster.rank * 0x9E3779B1) % 2**32
        seed.assign(tf.stack([tf.cast(mixed, seed.dtype), tf.convert_to_tensor(seed)[1]]))


def _on_epoch_begin(original: Callable[..., Any], self: Any, epoch: int, logs: Any = None) -> Any:
    if is_started() and current().epoch is not None:
        current().epoch = epoch
    fit = running_fit(self)
    if fit is None:
        return original(self, epoch, logs)
    fit.epoch, fit.done, fit.is_complete = epoch, 0, False
    if fit.rest_of_epoch is not None:
        fit.done = fit.rest_of_epoch.skipped
    if fit.together:
        step_state(fit.model).steps.assign(fit.done)
    result = original(self, epoch, logs)
    if fit.together:
        consistency.compare_learning_rates(fit.model, epoch)
    for callback in job_callbacks(self):
        callback.after_epoch_begin(fit)
    fit.training = True
    return result


def _on_train_batch_end(
    original: Callable[..., Any], self: Any, batch: int, logs: Any = None
) -> Any:
    fit = running_fit(self)
    if fit is None:
        _beat_here()
        return original(self, batch, logs)
    done = batch + 1 if fit.steps is None else min(batch + 1, fit.steps)
    current().board.count_step(epoch=fit.epoch, step=done)
    result = original(self, batch, logs)
    fit.done = done
    if fit.together:
        state = step_state(fit.model)
        if fit.model.stop_training or (fit.share is not None and fit.share.failure is not None):
            state.stop.assign(1.0)
        # value() is one operation; the variable's own numpy() takes several, in every step.
        fit.model.stop_training = bool(state.stop_agreed.value().numpy())
        if fit.model.stop_training:
            raise_on_all_ranks(fit)
    for callback in job_callbacks(self):
        callback.after_train_batch(fit, logs)
    return result


def _beat(original: Callable[..., Any], self: Any, batch: int, logs: Any = None) -> Any:
    _beat_here()
    return original(self, batch, logs)


def _beat_here() -> None:
    if is_started():
        current().board.beat()


def _on_epoch_end(original: Callable[..., Any], self: Any, epoch: int, logs: Any = None) -> Any:
    result = original(self, epoch, logs)
    fit = running_fit(self)
    if fit is None:
        return result
    if fit.together:
        state = step_state(fit.model)
        wanted = bool(fit.model.stop_training) or bool(state.stop.numpy())
        anyone = allreduce(
            tf.constant(int(wanted)), ReduceOp.MAX, name=DisplayName("stop_training")
        )
        fit.model.stop_training = bool(anyone.numpy())
        state.clear_stop()
        _warn_of_uneven_steps(fit)
    for callback in job_callbacks(self):
        callback.after_epoch(fit, {**(logs or {}), **_recorded(fit, epoch)})
    return result


def _warn_of_uneven_steps(fit: FitState) -> None:
    """Says once that ranks' means were averaged though they are of different numbers."""
    if fit.warned_of_uneven or innermost(fit.model.optimizer).tfddl_options.by_count:
        return
    anyone = allreduce(tf.cast(step_state(fit.model).uneven, tf.int32), ReduceOp.MAX, name="uneven")
    if anyone.numpy():
        fit.warned_of_uneven = True
        if current().cluster.rank == 0:
            warnings.warn(UNEVEN, stacklevel=2)


def _recorded(fit: FitState, epoch: int) -> dict[str, Any]:
    """An epoch's logs with what callbacks have added: Keras hands each list of them a copy."""
    history = getattr(fit.model, "history", None)
    if history is None or not history.epoch or history.epoch[-1] != epoch:
        return {}
    return {name: values[-1] for name, values in history.history.items()}


def _results(original: Callable[..., Any], self: Any, logs: Any) -> Any:
    fit = current().fit if is_started() else None
    if fit is None or fit.model is not self or not (fit.training or fit.validating):
        return original(self, logs)
    was_training, fit.training = fit.training, False
    if was_training:
        resume.end_resumed_epoch(fit)
        if fit.together:
            _agree_on_early_end(fit)
        # Without a stop, an epoch of fewer steps than were wanted has no more data.
        is_at_end = fit.steps is not None and fit.done >= fit.steps
        fit.is_complete = is_at_end or not fit.model.stop_training
    if not fit.together:
        return original(self, logs)
    raise_on_all_ranks(fit)
    _sum_metrics(self)
    results = original(self, logs)
    return _job_s_own(self, results, training=was_training) if results is logs else results


def _agree_on_early_end(fit: FitState) -> None:
    """Lets an epoch end before its steps are done where all ranks' data has ended, as Keras does.

    Raises:
        DataError: This rank has no data for the next step, and others are in it, waiting.
    """
    steps = int(step_state(fit.model).steps.numpy())
    if fit.steps is None or steps >= fit.steps or fit.model.stop_training:
        return
    runtime = current()
    ran_out = f"ran out of data after {steps} of {fit.steps} steps of the epoch"
    try:
        if runtime.transport.compares:
            barrier(name=DisplayName(f"end of epoch {fit.epoch}, {ran_out}"))
        else:
            # Not by a collective: there, this one would meet the others' sum of gradients.
            runtime.gather_notes(f"the end of epoch {fit.epoch}", ran_out, timeout_s=_END_TIMEOUT_S)
    except (DisagreementError, StalledError) as error:
        raise DataError(
            f"rank {runtime.cluster.rank} {ran_out}, and not all other ranks did; they can't go on "
            "without it. Give every rank as many batches as the others, or use "
            f"tfddl.shard_dataset.\n{error}"
        ) from error


def _sum_metrics(model: Any) -> None:
    """Makes the state of the metrics the job's: results don't average, states add up."""
    variables = [
        variable
        for metric in model.metrics
        for variable in metric.variables
        if not scope.is_summed_on_read(variable)
    ]
    totals = grouped_allreduce(
        [tf.convert_to_tensor(v) for v in variables], ReduceOp.SUM, name=DisplayName("metrics")
    )
    for variable, total in zip(variables, totals, strict=True):
        variable.assign(total)


def _job_s_own(model: Any, logs: Any, *, training: bool) -> Any:
    """The job's logs where a user's own `train_step` returned others than Keras would.

    What is called as a metric of the model that has been updated is the metric's result, which may
    be a dictionary of several; of anything else, which is of the last step alone, it is the mean
    over the ranks by their examples in that step.
    """
    if not isinstance(logs, dict) or not logs:
        return logs
    metered = {
        metric.name: metric.result()
        for metric in model.metrics
        if metric.name in logs and any(np.any(np.asarray(v)) for v in metric.variables)
    }
    names = sorted(set(logs) - set(metered))
    if not names:
        return metered
    examples = last_examples(model, training=training)
    values = [tf.reduce_mean(tf.cast(logs[name], tf.float32)) for name in names]
    # Not value * 0 of a stand-in, which need not be a number.
    parts = [examples * value if examples else tf.zeros_like(value) for value in values]
    *sums, total = grouped_allreduce(
        [*parts, tf.constant(float(examples))],
        ReduceOp.SUM,
        name=DisplayName(f"logs {', '.join(names)}"),
    )
    means = [tf.math.divide_no_nan(part, total) for part in sums]
    return {**dict(zip(names, means, strict=True)), **metered}
