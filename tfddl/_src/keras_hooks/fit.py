"""`fit` of a job: what is checked and prepared before it, and what follows it.

What happens while it runs is in `callback_events` (its events), `initial_state`, `stopping` and
`logs`.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfddl._src.data import clear_errors, find_shard, repeats_shard
from tfddl._src.heartbeat import Stage
from tfddl._src.keras_hooks import (
    builtin_callbacks,
    model_building,
    replicated_data,
    resume,
    scope,
    scope_data,
    script_strategies,
    virtual_data,
    virtual_fit,
)
from tfddl._src.keras_hooks.callback_events import (
    EpochCallback,
    FirstCallback,
    LastCallback,
    installed,
)
from tfddl._src.keras_hooks.compile import trains_together
from tfddl._src.keras_hooks.data_errors import reraise_data_errors
from tfddl._src.keras_hooks.fit_state import (
    BroadcastCallback,
    FitState,
    JobCallback,
    entered,
    job_callbacks,
)
from tfddl._src.keras_hooks.interrupts import keyboard_interrupts
from tfddl._src.keras_hooks.patching import wrap_method
from tfddl._src.runtime import current, is_started
from tfddl._src.sharding import BlockPlan, Order, Plan
from tfddl.errors import UnsupportedError


def install() -> None:
    """Hooks into `keras.Model.fit`."""
    wrap_method(keras.Model, "fit", ("x", "y", "batch_size", "epochs"), _fit)


def _fit(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    if not is_started():
        return original(self, *args, **kwargs)
    call = inspect.signature(original).bind(self, *args, **kwargs)
    given = call.arguments
    if isinstance(given.get("x"), tf.data.Dataset):
        # Keras' default is True, and warns that a dataset isn't shuffled.
        given.setdefault("shuffle", False)
    epoch = given.get("initial_epoch", 0)
    datasets = (given.get("x"), given.get("validation_data"))
    for dataset in datasets:
        clear_errors(dataset)
    fit: FitState | None = None
    try:
        with reraise_data_errors(datasets), current().progress_page.in_stage(Stage.TRAINING):
            with entered(None, epoch=epoch):  # Preparing may read a first batch, of this epoch.
                fit = _prepare(self, given)
            first = EpochCallback() if fit is None else FirstCallback(fit)
            last = None if fit is None else LastCallback(fit)
            with entered(fit, epoch=epoch), installed(given, first, last), keyboard_interrupts():
                return original(*call.args, **call.kwargs)
    finally:
        for callback in () if fit is None else job_callbacks(fit):
            callback.after_fit()
        resume.clear_initial_epoch(self)


def _prepare(model: Any, given: dict[str, Any]) -> FitState | None:
    """Checks the arguments of `fit`, and replaces them where a job needs others.

    All ranks call it together, where they train one model.

    Returns:
        None where the ranks train models of their own.
    """
    script_strategies.refuse_other_strategies(model)
    if repeats_shard(given.get("x")):
        raise UnsupportedError(
            "fit got a dataset of tfddl.shard_dataset with repeat() after it: TensorFlow begins "
            "the next pass before the epoch ends, on one rank sooner than on another, and examples "
            "would be mixed up. HINT: leave repeat() out; fit makes a pass for every epoch by "
            "itself."
        )
    callbacks = builtin_callbacks.flatten_callbacks(given.get("callbacks"))
    together = trains_together(model.optimizer)
    if together:
        _prepare_together(model, given)
        callbacks = builtin_callbacks.flatten_callbacks(given["callbacks"])
    else:
        virtual_data.refuse_virtual_data(given.get("x"))
        if not any(isinstance(callback, BroadcastCallback) for callback in callbacks):
            _refuse_hidden_optimizers(model)
        if current().cluster.size > 1:
            _refuse_job_callbacks(callbacks)
            return None
    shard = find_shard(given.get("x"))
    return FitState(
        model=model,
        together=together,
        callbacks=callbacks,
        shard=shard,
        data=_describe(given.get("x"), None if shard is None else shard.plan),
        batch_spec=virtual_data.batch_spec(given.get("x")),
        epochs=given.get("epochs", 1),
        validation_freq=str(given.get("validation_freq", 1)),
        datasets=(given.get("x"), given.get("validation_data")),
        initial_epoch=given.get("initial_epoch", 0),
        validates=bool(given.get("validation_split")) or given.get("validation_data") is not None,
    )


def _prepare_together(model: Any, given: dict[str, Any]) -> None:
    if scope.contains(model):
        scope_data.shard_fit_data(given)
    model_building.build(model, given)
    virtual_workers = virtual_fit.virtual_workers_of(model)
    if virtual_workers is None:
        virtual_data.refuse_virtual_data(given.get("x"))
        replicated_data.shard_validation_data(given)
    else:
        virtual_data.group_fit_data(given, virtual_workers)
        virtual_fit.build_metrics(model, virtual_data.batch_spec(given["x"]))
    given["callbacks"] = builtin_callbacks.select_for_rank(given.get("callbacks"))
    if current().cluster.rank:
        given.setdefault("verbose", 0)  # One progress bar is enough.


def _describe(x: Any, plan: Plan | None) -> str:
    """What must be alike on all ranks of the data, as far as it is known."""
    if plan is None:
        is_sliced = isinstance(x, tf.data.Dataset) and hasattr(x, "tfddl_order")
        return x.tfddl_order if is_sliced else FitState.data
    order = Order.BLOCK if isinstance(plan, BlockPlan) else Order.GLOBAL
    return (
        f"{plan.num_examples} examples in {order} order, seed {plan.seed}, "
        f"batches of {plan.batch_size}"
    )


def _refuse_job_callbacks(callbacks: Sequence[Any]) -> None:
    """A checkpoint of many models that don't know of each other would hold rank 0's only."""
    for callback in callbacks:
        if isinstance(callback, JobCallback) and not isinstance(callback, BroadcastCallback):
            raise UnsupportedError(
                f"tfddl's {type(callback).__name__} needs a model that the ranks train together, "
                f"but its optimizer is none of tfddl's. HINT: compile it with "
                "tfddl.DistributedOptimizer(…)."
            )


def _refuse_hidden_optimizers(model: Any) -> None:
    """A distributed optimizer that `compile` doesn't know of would train without any agreement."""
    for name, value in vars(model).items():
        if trains_together(value):
            raise UnsupportedError(
                f"model.{name} is a DistributedOptimizer, but model.optimizer is not: fit would "
                "neither start the ranks from the same weights nor compare their plans. HINT: pass "
                "one of the distributed optimizers on, super().compile(optimizer=…); or add "
                "tfddl.callbacks.BroadcastGlobalVariables(0), which gives all ranks the same "
                "weights after the first step."
            )
