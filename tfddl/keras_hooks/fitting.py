"""`fit` of a job: plans compared, state shared, logs and the end agreed upon."""

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfddl.collectives import (
    Label,
    ReduceOp,
    allreduce,
    broadcast_variables,
    grouped_allreduce,
    on_all_ranks,
)
from tfddl.data import find_share, forget_failures, repeats_share
from tfddl.errors import DataError, UnsupportedError
from tfddl.keras_hooks import comparing, plain_data, resuming, scope, stock, whole_data
from tfddl.keras_hooks.compiling import acts_on
from tfddl.keras_hooks.failing import raise_failures, readable_failures
from tfddl.keras_hooks.patching import wrap_method
from tfddl.keras_hooks.session import (
    BroadcastCallback,
    Fit,
    LastCallback,
    last_callbacks,
    running,
)
from tfddl.keras_hooks.steps import last_examples, state_of
from tfddl.optimizer import innermost
from tfddl.plan import BlockPlan, Order, Plan
from tfddl.progress import Stage
from tfddl.runtime import current, is_started

UNEVEN = (
    "Workers had different numbers of examples in a step, and their mean gradients were averaged "
    "as Horovod does: an example in a small batch weighs more than one in a large one. "
    "tfddl.DistributedOptimizer(optimizer) weighs them by their numbers, and "
    "tfddl.shard_dataset(x, y, batch_size=…) deals the examples out evenly: together they train as "
    "one process would."
)


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
    fit: Fit | None = None
    # The callbacks set the epoch that begins; outside of `fit` there is none.
    runtime.epoch = call.arguments.get("initial_epoch", 0)
    runtime.resume = None
    datasets = (call.arguments.get("x"), call.arguments.get("validation_data"))
    for dataset in datasets:
        forget_failures(dataset)
    try:
        with readable_failures(datasets), runtime.board.during(Stage.TRAINING):
            runtime.fit = fit = _session(self, call)
            return original(*call.args, **call.kwargs)
    finally:
        if fit is not None and fit.callbacks is not None:
            for callback in last_callbacks(fit.callbacks):
                callback.after_fit()
        runtime.fit, runtime.epoch, runtime.resume = before
        self._initial_epoch = None  # A later `fit` begins where it is told to.


def _session(model: Any, call: inspect.BoundArguments) -> Fit | None:
    """The `fit` that begins; None where the ranks train models of their own."""
    given = call.arguments
    together = acts_on(model.optimizer)
    if repeats_share(given.get("x")):
        raise UnsupportedError(
            "fit got a dataset of tfddl.shard_dataset with repeat() after it: TensorFlow begins "
            "the next pass before the epoch ends, on one rank sooner than on another, and examples "
            "would be mixed up. Leave repeat() out; fit makes a pass for every epoch by itself."
        )
    if not together:
        callbacks = stock.flat(given.get("callbacks"))
        if not any(isinstance(callback, BroadcastCallback) for callback in callbacks):
            _refuse_hidden_optimizers(model)
        if current().cluster.size > 1:
            _refuse_last_callbacks(callbacks)
            return None
    else:
        if scope.is_in(model):
            plain_data.share_out(given)
        _build(model, given.get("x"))
        _deal_out_validation(given)
        given["callbacks"] = stock.for_this_rank(given.get("callbacks"))
        if current().cluster.rank:
            given.setdefault("verbose", 0)  # One progress bar is enough.
    share = find_share(given.get("x"))
    return Fit(
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
        return x.tfddl_order if is_sliced else Fit.data
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
    if whole_data.is_whole(data, name=Label("validation data")):
        batch_size = given.get("validation_batch_size") or given.get("batch_size")
        parts = list(keras.utils.unpack_x_y_sample_weight(tuple(data)))
        parts = whole_data.first_steps(
            parts, steps=given.pop("validation_steps", None), batch_size=batch_size
        )
        given["validation_data"] = whole_data.cut(*parts)


def _refuse_last_callbacks(callbacks: Sequence[Any]) -> None:
    """A checkpoint of many models that don't know of each other is none."""
    for callback in callbacks:
        if isinstance(callback, LastCallback) and not isinstance(callback, BroadcastCallback):
            raise UnsupportedError(
                f"tfddl's {type(callback).__name__} needs a model that the ranks train together: "
                "compile it with tfddl.DistributedOptimizer(…)."
            )


def _refuse_hidden_optimizers(model: Any) -> None:
    """A distributed optimizer that `compile` wasn't told of would train without any agreement."""
    for name, value in vars(model).items():
        if acts_on(value):
            raise UnsupportedError(
                f"model.{name} is a DistributedOptimizer, but model.optimizer is not: fit would "
                "neither start the ranks from the same weights nor compare their plans. Pass one "
                "of the distributed optimizers on, super().compile(optimizer=…); or add "
                "tfddl.callbacks.BroadcastGlobalVariables(0), which gives all ranks the same "
                "weights after the first step."
            )


def _build(model: Any, x: Any) -> None:
    """Makes the variables before training starts, so that all ranks can start from the same.

    Keras would make them in the first step.
    """
    if model.built and all(layer.built for layer in model.layers):
        return
    if isinstance(x, tf.distribute.DistributedDataset):
        return  # Keras builds a model under the scope by itself.
    if isinstance(x, tf.data.Dataset):
        first = keras.utils.unpack_x_y_sample_weight(_first_batch(x))[0]
    elif isinstance(x, keras.utils.PyDataset):
        first = keras.utils.unpack_x_y_sample_weight(x[0])[0]
    elif hasattr(x, "__next__"):
        raise UnsupportedError(
            "The model has no variables yet, and a generator can't be asked for a batch twice: "
            "the ranks couldn't start from the same weights. Give the model an Input, or call it "
            "on one batch before fit."
        )
    else:
        first = tf.nest.map_structure(lambda leaf: tf.convert_to_tensor(leaf[:1]), x)
    with scope.of(model):
        model(first, training=False)


def _first_batch(dataset: tf.data.Dataset) -> Any:
    """A batch to build the model with; where one rank can't read its, all raise."""

    def read() -> Any:
        with readable_failures((dataset,)):
            return next(iter(dataset))

    return on_all_ranks(read, error=DataError)


def _on_train_begin(original: Callable[..., Any], self: Any, logs: Any = None) -> Any:
    fit = running(self)
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
    for callback in last_callbacks(self):
        callback.after_train_begin(fit)
    return result


def _begin_together(original: Callable[..., Any], self: Any, fit: Fit, logs: Any) -> Any:
    state_of(fit.model).forget_stop()  # A fit that failed may have left a wish to stop.
    facts = comparing.Facts.of(fit.model, fit)
    if facts.root_rank is None:
        comparing.compare(facts)
    else:  # The ranks may have made different numbers of steps, as long as they know whose count.
        comparing.compare(dataclasses.replace(facts, iterations=0, learning_rate=""))
        _broadcast_state(fit, facts.root_rank)
    result = original(self, logs)
    comparing.compare(comparing.Facts.of(fit.model, fit))
    _broadcast_state(fit, facts.root_rank or 0)
    _give_ranks_their_own_randomness(fit.model)
    return result


def _broadcast_state(fit: Fit, root_rank: int) -> None:
    """Gives all ranks the state of one, but for what is each rank's own."""
    own = [*innermost(fit.model.optimizer).tfddl_averaging.local]
    for callback in last_callbacks(fit.callbacks):
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
    fit = running(self)
    if fit is None:
        return original(self, epoch, logs)
    fit.epoch, fit.done, fit.is_complete = epoch, 0, False
    if fit.rest_of_epoch is not None:
        fit.done = fit.rest_of_epoch.skipped
    if fit.together:
        state_of(fit.model).steps.assign(fit.done)
    result = original(self, epoch, logs)
    if fit.together:
        comparing.compare_learning_rates(fit.model, epoch)
    for callback in last_callbacks(self):
        callback.after_epoch_begin(fit)
    fit.training = True
    return result


def _on_train_batch_end(
    original: Callable[..., Any], self: Any, batch: int, logs: Any = None
) -> Any:
    fit = running(self)
    if fit is None:
        _beat_here()
        return original(self, batch, logs)
    done = batch + 1 if fit.steps is None else min(batch + 1, fit.steps)
    current().board.count_step(epoch=fit.epoch, step=done)
    result = original(self, batch, logs)
    fit.done = done
    if fit.together:
        state = state_of(fit.model)
        if fit.model.stop_training or (fit.share is not None and fit.share.failure is not None):
            state.stop.assign(1.0)
        # value() is one operation; the variable's own numpy() takes several, in every step.
        fit.model.stop_training = bool(state.stop_agreed.value().numpy())
        if fit.model.stop_training:
            raise_failures(fit)
    for callback in last_callbacks(self):
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
    fit = running(self)
    if fit is None:
        return result
    if fit.together:
        state = state_of(fit.model)
        wanted = bool(fit.model.stop_training) or bool(state.stop.numpy())
        anyone = allreduce(tf.constant(int(wanted)), ReduceOp.MAX, name=Label("stop_training"))
        fit.model.stop_training = bool(anyone.numpy())
        state.forget_stop()
        _warn_of_uneven_steps(fit)
    for callback in last_callbacks(self):
        callback.after_epoch(fit, {**(logs or {}), **_recorded(fit, epoch)})
    return result


def _warn_of_uneven_steps(fit: Fit) -> None:
    """Says once that ranks' means were averaged though they are of different numbers."""
    if fit.warned_of_uneven or innermost(fit.model.optimizer).tfddl_averaging.by_count:
        return
    anyone = allreduce(tf.cast(state_of(fit.model).uneven, tf.int32), ReduceOp.MAX, name="uneven")
    if anyone.numpy():
        fit.warned_of_uneven = True
        if current().cluster.rank == 0:
            warnings.warn(UNEVEN, stacklevel=2)


def _recorded(fit: Fit, epoch: int) -> dict[str, Any]:
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
        resuming.end_rest(fit)
        at_end = not fit.model.stop_training if fit.steps is None else fit.done >= fit.steps
        fit.is_complete = at_end
    if not fit.together:
        return original(self, logs)
    if was_training:
        _check_epoch_is_complete(fit)
    raise_failures(fit)
    _sum_metrics(self)
    results = original(self, logs)
    return _job_s_own(self, results, training=was_training) if results is logs else results


def _check_epoch_is_complete(fit: Fit) -> None:
    """Raises on a rank without data for the next step; the others are in that step, and wait."""
    steps = int(state_of(fit.model).steps.numpy())
    if fit.steps is not None and steps < fit.steps and not fit.model.stop_training:
        raise DataError(
            f"rank {current().cluster.rank} ran out of data after {steps} of {fit.steps} steps of "
            "the epoch; the other ranks can't go on without it. Give every rank as many batches as "
            "steps_per_epoch says, or use tfddl.shard_dataset."
        )


def _sum_metrics(model: Any) -> None:
    """Makes the state of the metrics the job's: results don't average, states add up."""
    variables = [
        variable
        for metric in model.metrics
        for variable in metric.variables
        if not scope.sums_by_itself(variable)
    ]
    totals = grouped_allreduce(
        [tf.convert_to_tensor(v) for v in variables], ReduceOp.SUM, name=Label("metrics")
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
        name=Label(f"logs {', '.join(names)}"),
    )
    means = [tf.math.divide_no_nan(part, total) for part in sums]
    return {**dict(zip(names, means, strict=True)), **metered}
