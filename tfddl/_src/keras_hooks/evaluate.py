"""`evaluate` and `predict` of a job: data sharded, metrics exact, predictions in order."""

import inspect
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfddl._src.collectives import DisplayName
from tfddl._src.data import clear_errors, epoch_state, find_shard
from tfddl._src.heartbeat import Stage
from tfddl._src.keras_hooks import (
    builtin_callbacks,
    replicated_data,
    scope,
    scope_data,
    virtual_data,
    virtual_fit,
)
from tfddl._src.keras_hooks.callback_events import Heartbeat, installed
from tfddl._src.keras_hooks.compile import evaluates_together
from tfddl._src.keras_hooks.data_errors import raise_on_all_ranks, reraise_data_errors
from tfddl._src.keras_hooks.fit_state import FitState, entered, running_fit
from tfddl._src.keras_hooks.patching import wrap_method
from tfddl._src.keras_hooks.predictions import gather_rows, in_order
from tfddl._src.keras_hooks.virtual_states import refuse_draws, with_own_seeds
from tfddl._src.runtime import calling_line, current, is_started
from tfddl.errors import TfddlError, UnsupportedError

_LOG = logging.getLogger("tfddl")
_WARN_AFTER_S = 5.0

_CALL = "{}, which all ranks call together"

_ALONE = (
    "On rank {rank}, {name} was called by {line}. With tfddl.DistributedOptimizer, and under "
    "tfddl.strategy().scope(), it is the job's: all ranks must call it together. HINT: call it "
    "outside of what only some ranks do (if tfddl.rank() == 0). For one rank alone, take a model "
    "that isn't compiled so, such as keras.Model(model.inputs, model.outputs)"
)


def install() -> None:
    """Hooks into `keras.Model.evaluate` and `predict`."""
    wrap_method(keras.Model, "evaluate", ("x", "y"), _evaluate)
    wrap_method(keras.Model, "predict", ("x", "batch_size"), _predict)


def _evaluate(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    if not is_started():
        return original(self, *args, **kwargs)
    call = inspect.signature(original).bind(self, *args, **kwargs)
    fit = running_fit(self)
    if fit is not None:
        # fit's own validation says so, in a keyword of which `evaluate` tells nobody else
        # (keras/src/backend/tensorflow/trainer.py). Callbacks may evaluate on one rank.
        if kwargs.get("_use_cached_eval_dataset"):
            return _validate(original, call, fit)
        _refuse_within_virtual_fit(self)
        with _within_fit(fit, Stage.EVALUATING, call.arguments, validates=False):
            return original(*call.args, **call.kwargs)
    with _outside_of_fit(Stage.EVALUATING, call.arguments):
        if not evaluates_together(getattr(self, "optimizer", None)):
            return original(*call.args, **call.kwargs)
        return _evaluate_together(original, call, self)


def _refuse_within_virtual_fit(model: Any) -> None:
    if virtual_fit.virtual_workers_of(model) is not None:
        raise UnsupportedError(
            "evaluate was called by a callback of the fit that trains this model with "
            "virtual_workers; expected it after fit: the metrics are still those of the virtual "
            "workers, one by one. HINT: pass validation_data to fit, or evaluate when fit has "
            "returned."
        )


def _validate(original: Callable[..., Any], call: inspect.BoundArguments, fit: FitState) -> Any:
    with (
        _within_fit(fit, Stage.EVALUATING, None, validates=fit.validates_together),
        virtual_fit.new_evaluation(fit.model),
    ):
        results = original(*call.args, **call.kwargs)
    if not fit.validates_together and (error := fit.data_error()) is not None:
        raise error  # Where all validate, all raise it.
    return results


def _evaluate_together(
    original: Callable[..., Any], call: inspect.BoundArguments, model: Any
) -> Any:
    given = call.arguments
    parts = [given.get(name) for name in ("x", "y", "sample_weight")]
    with _naming_absent_ranks("model.evaluate", calling_line()):
        # Asked for every kind of data, because ranks may have got different ones.
        name = DisplayName(_CALL.format("model.evaluate"))
        is_replicated = replicated_data.is_replicated(parts, name=name)
    virtual_workers = virtual_fit.virtual_workers_of(model)
    if is_replicated:
        steps, batch_size = given.pop("steps", None), given.get("batch_size")
        parts = replicated_data.take_steps(parts, steps=steps, batch_size=batch_size)
        if virtual_workers is None:
            given["x"], given["y"], given["sample_weight"] = replicated_data.shard_arrays(*parts)
        else:
            given["x"] = virtual_data.shard_arrays(parts, virtual_workers, batch_size=batch_size)
            given["y"] = given["sample_weight"] = None
    elif scope.contains(model) and isinstance(given.get("x"), tf.data.Dataset):
        given["x"] = scope_data.shard_batches(given["x"], pad=True)
    if virtual_workers is not None:
        given["x"] = virtual_data.group_batches(given["x"], virtual_workers, name="evaluate")
        virtual_fit.build_metrics(model, virtual_data.batch_spec(given["x"]))
    _report_on_rank_zero(given)
    job = FitState(model=model, together=True, shard=None, validating=True, datasets=(parts[0],))
    # A shard then has the order of the first epoch.
    with entered(job, epoch=0), virtual_fit.new_evaluation(model):
        return original(*call.args, **call.kwargs)


def _predict(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    if not is_started():
        return original(self, *args, **kwargs)
    call = inspect.signature(original).bind(self, *args, **kwargs)
    fit = running_fit(self)
    if fit is not None:
        with _within_fit(fit, Stage.PREDICTING, call.arguments, validates=False):
            return original(*call.args, **call.kwargs)
    with _outside_of_fit(Stage.PREDICTING, call.arguments):
        if evaluates_together(getattr(self, "optimizer", None)):
            return _predict_together(original, call, self)
        if find_shard(call.arguments["x"]) is not None and current().cluster.size == 1:
            return _predict_shard(original, call, self, together=False)
        return original(*call.args, **call.kwargs)


def _predict_together(
    original: Callable[..., Any], call: inspect.BoundArguments, model: Any
) -> Any:
    given = call.arguments
    with _naming_absent_ranks("model.predict", calling_line()):
        # Asked for every kind of data, because ranks may have got different ones.
        name = DisplayName(_CALL.format("model.predict"))
        is_replicated = replicated_data.is_replicated(given["x"], name=name)
    if is_replicated:
        return _predict_replicated(original, call, model)
    _report_on_rank_zero(given)
    if find_shard(given["x"]) is None:
        return original(*call.args, **call.kwargs)
    return _predict_shard(original, call, model, together=True)


def _predict_shard(
    original: Callable[..., Any], call: inspect.BoundArguments, model: Any, *, together: bool
) -> Any:
    given = call.arguments
    shard = find_shard(given["x"])
    assert shard is not None
    if given.get("steps") is not None:  # A step has a batch for each virtual worker.
        given["steps"] *= len(shard.ranks)
    job = FitState(model=model, together=together, shard=None, datasets=(given["x"],))
    with entered(job, epoch=0):  # The order that `in_order` puts right again.
        drawing = refuse_draws(model) if shard.virtual_workers is not None else nullcontext()
        with drawing:
            mine = original(*call.args, **call.kwargs)
            if together:
                raise_on_all_ranks(job)
        return in_order(mine, shard.plan, shard.ranks, steps=given.get("steps"))


def _predict_replicated(
    original: Callable[..., Any], call: inspect.BoundArguments, model: Any
) -> Any:
    given = call.arguments
    steps, batch_size = given.pop("steps", None), given.get("batch_size")
    (x,) = replicated_data.take_steps([given["x"]], steps=steps, batch_size=batch_size)
    _report_on_rank_zero(given)

    virtual_workers = virtual_fit.virtual_workers_of(model)
    ranges = replicated_data.own_ranges(replicated_data.num_examples(x), virtual_workers)

    def predict(index: int) -> Any:
        start, stop = ranges[index]
        # A rank without an example runs the first, to know the shape and dtype of a prediction.
        low, high = (start, stop) if start < stop else (0, 1)
        given["x"] = replicated_data.take_rows(x, low, high)
        if index:  # Callbacks are told of the first of the virtual workers.
            given["callbacks"], given["verbose"] = [Heartbeat()], 0
        mine = original(*call.args, **call.kwargs)
        return tf.nest.map_structure(lambda rows: rows[: stop - start], mine)

    # Each virtual worker by itself: what a row comes to may depend on its neighbours in a batch.
    if virtual_workers is None:
        mine = [predict(0)]
    else:
        mine = with_own_seeds(model, virtual_fit.own_workers_of(virtual_workers), predict)
    # What isn't an array of numbers is refused by `gather_rows`, not by NumPy.
    joined = mine[0]
    if len(mine) > 1:
        joined = tf.nest.map_structure(lambda *parts: np.concatenate(parts), *mine)
    return tf.nest.map_structure(gather_rows, joined)


def _report_on_rank_zero(given: dict[str, Any]) -> None:
    given["callbacks"] = builtin_callbacks.select_for_rank(given.get("callbacks"))
    if current().cluster.rank:
        given.setdefault("verbose", 0)  # One progress bar is enough.


@contextmanager
def _naming_absent_ranks(name: str, line: str) -> Iterator[None]:
    """Says what this rank waits in where the others don't call it: in the log, then in the error.

    Args:
        name: What was called.
        line: From where; see `tfddl._src.runtime.calling_line`.
    """
    rank = current().cluster.rank
    hint = _ALONE.format(name=name, rank=rank, line=line)
    text = f"rank {rank} has waited for the other ranks in {name} for {_WARN_AFTER_S:g} s. {hint}"
    timer = threading.Timer(_WARN_AFTER_S, _LOG.warning, args=("%s", text))
    timer.daemon = True
    timer.start()
    try:
        yield
    except (TfddlError, tf.errors.OpError) as error:
        error.add_note(hint)
        raise
    finally:
        timer.cancel()


@contextmanager
def _outside_of_fit(stage: Stage, given: dict[str, Any]) -> Iterator[None]:
    """While no fit is running, as far as this model and its data are concerned."""
    datasets = (given.get("x"),)
    clear_errors(given.get("x"))
    with (
        entered(None, epoch=None),
        reraise_data_errors(datasets),
        current().progress_page.in_stage(stage),
        installed(given, Heartbeat(), None),
    ):
        yield


@contextmanager
def _within_fit(
    fit: FitState, stage: Stage, given: dict[str, Any] | None, *, validates: bool
) -> Iterator[None]:
    """While a fit that is running evaluates or predicts with its own model.

    Args:
        fit: The running one.
        stage: What the launcher is shown.
        given: The arguments of a callback's call; None for validation, which has fit's callbacks.
        validates: Whether all ranks do so together.
    """
    before = fit.training, fit.validating, epoch_state().resume
    fit.training, fit.validating, epoch_state().resume = False, validates, None
    try:
        with current().progress_page.in_stage(stage):
            if given is None:
                yield
            else:
                with installed(given, Heartbeat(), None):
                    yield
    finally:
        fit.training, fit.validating, epoch_state().resume = before
