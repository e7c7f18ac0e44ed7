"""`evaluate` and `predict` of a job: the data dealt out, metrics exact, predictions in order."""

import inspect
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfddl._src.collectives import DisplayName, allgather
from tfddl._src.data import clear_errors, find_shard
from tfddl._src.heartbeat import Stage
from tfddl._src.keras_hooks import replicated_data, scope, scope_data
from tfddl._src.keras_hooks.compile import evaluates_together
from tfddl._src.keras_hooks.data_errors import raise_on_all_ranks, reraise_data_errors
from tfddl._src.keras_hooks.fit_state import FitState
from tfddl._src.keras_hooks.patching import wrap_method
from tfddl._src.runtime import calling_line, current, is_started
from tfddl.errors import TfddlError, UnsupportedError

_LOG = logging.getLogger("tfddl")
_PATIENCE_S = 5.0
PIECE_BYTES = 16 << 20
"""How much each rank sends at once of the predictions that all ranks get."""


def install() -> None:
    """Puts the hooks in place."""
    wrap_method(keras.Model, "evaluate", ("x", "y"), _evaluate)
    wrap_method(keras.Model, "predict", ("x", "batch_size"), _predict)


def _evaluate(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    fit: FitState | None = current().fit if is_started() else None
    if fit is not None and fit.model is self:
        # What `fit` itself evaluates is evaluated by all ranks; a callback may do so on one.
        validates = bool(kwargs.get("_use_cached_eval_dataset"))
        with _in_fit(fit, Stage.EVALUATING, validates=validates and fit.validates_together):
            results = original(self, *args, **kwargs)
        if validates and not fit.validates_together and (failure := fit.failure()) is not None:
            raise failure  # Where all validate, all raise it.
        return results
    call = inspect.signature(original).bind(self, *args, **kwargs)
    given = call.arguments
    with _outside_of_fit(given, Stage.EVALUATING) as session:
        if not evaluates_together(getattr(self, "optimizer", None)):
            return original(*call.args, **call.kwargs)
        parts = [given.get(name) for name in ("x", "y", "sample_weight")]
        with _company("model.evaluate", calling_line()):
            is_whole = replicated_data.is_replicated(
                parts, name=DisplayName(_CALL.format("model.evaluate"))
            )
        if is_whole:
            steps, batch_size = given.pop("steps", None), given.get("batch_size")
            parts = replicated_data.take_steps(parts, steps=steps, batch_size=batch_size)
            given["x"], given["y"], given["sample_weight"] = replicated_data.shard_arrays(*parts)
        elif scope.contains(self) and isinstance(given.get("x"), tf.data.Dataset):
            given["x"] = scope_data.shard_batches(given["x"], weigh=True)
        _one_progress_bar(given)
        session(
            FitState(model=self, together=True, share=None, validating=True, datasets=(parts[0],))
        )
        return original(*call.args, **call.kwargs)


def _predict(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    fit: FitState | None = current().fit if is_started() else None
    if fit is not None and fit.model is self:
        with _in_fit(fit, Stage.PREDICTING, validates=False):
            return original(self, *args, **kwargs)
    call = inspect.signature(original).bind(self, *args, **kwargs)
    given = call.arguments
    share = find_shard(given["x"])
    with _outside_of_fit(given, Stage.PREDICTING) as session:
        together = evaluates_together(getattr(self, "optimizer", None))
        if together:
            with _company("model.predict", calling_line()):
                # Asked for every kind of data, because ranks may have got different ones.
                label = DisplayName(_CALL.format("model.predict"))
                is_whole = replicated_data.is_replicated(given["x"], name=label)
            if is_whole:
                return _predict_whole(original, call)
            _one_progress_bar(given)
        if share is None or not (together or current().cluster.size == 1):
            return original(*call.args, **call.kwargs)
        session(job := FitState(model=self, together=together, share=None, datasets=(given["x"],)))
        mine = original(*call.args, **call.kwargs)
        if together:
            raise_on_all_ranks(job)
        return _in_order(mine, share.plan, steps=given.get("steps"))


def _predict_whole(original: Callable[..., Any], call: inspect.BoundArguments) -> Any:
    given = call.arguments
    steps, batch_size = given.pop("steps", None), given.get("batch_size")
    (x,) = replicated_data.take_steps([given["x"]], steps=steps, batch_size=batch_size)
    start, stop = replicated_data.own_range(replicated_data.num_examples(x))
    # A rank without an example runs the first, so that it knows what a prediction looks like.
    low, high = (start, stop) if start < stop else (0, 1)
    given["x"] = replicated_data.take_rows(x, low, high)
    _one_progress_bar(given)
    mine = original(*call.args, **call.kwargs)
    return tf.nest.map_structure(lambda rows: gather_rows(rows[: stop - start]), mine)


def _in_order(mine: Any, plan: Any, *, steps: int | None) -> Any:
    """All ranks' predictions of a plan's first steps, in the order of the data."""
    rank = current().cluster.rank
    # Keras runs whole executions of steps, maybe a few more than it was asked for.
    batches = [plan.batch(epoch=0, step=step, rank=rank) for step in range(plan.steps)]
    counts = np.concatenate([np.full(len(b.indices), b.count > 0) for b in batches])
    indices = np.concatenate([b.indices for b in batches])
    if steps is not None:
        done = len(tf.nest.flatten(mine)[0])
        counts, indices = counts[:done], indices[:done]
    order = np.argsort(gather_rows(indices[counts]), kind="stable")
    return tf.nest.map_structure(lambda rows: gather_rows(rows[counts])[order], mine)


def gather_rows(rows: Any, *, piece_bytes: int = PIECE_BYTES) -> np.ndarray:
    """The rows of all ranks, in rank order, in pieces that don't take much memory twice.

    All ranks must call it together.

    Args:
        rows: Numbers of any shape; the first dimension may differ between ranks, and be 0.
        piece_bytes: What a rank sends at once, at least one row; the same on all ranks.

    Raises:
        UnsupportedError: What a model predicted isn't an array of numbers.
    """
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "biufV":
        raise UnsupportedError(
            f"predict returned {type(rows).__name__} of {getattr(rows, 'dtype', 'no dtype')}, "
            "which can't be gathered from the ranks; numbers can. Predict with a model that isn't "
            "compiled with the DistributedOptimizer, on a share of tfddl.shard_range."
        )
    if current().cluster.size == 1:
        return rows
    row_bytes = max(1, rows.itemsize * int(np.prod(rows.shape[1:])))
    size = max(1, piece_bytes // row_bytes)
    lengths = allgather(tf.constant([len(rows)], tf.int64), name=DisplayName("predictions")).numpy()
    pieces: list[list[np.ndarray]] = [[] for _ in lengths]
    for start in range(0, int(lengths.max()), size):
        arrived = allgather(
            tf.constant(rows[start : start + size]), name=DisplayName("predictions")
        ).numpy()
        ends = np.cumsum(np.clip(lengths - start, 0, size))
        for rank, piece in enumerate(np.split(arrived, ends[:-1])):
            pieces[rank].append(piece)
    return np.concatenate([piece for of_rank in pieces for piece in of_rank])


def _one_progress_bar(given: dict[str, Any]) -> None:
    if current().cluster.rank:
        given.setdefault("verbose", 0)


@contextmanager
def _company(name: str, line: str) -> Iterator[None]:
    """Says which call waits where the other ranks don't come: soon in the log, then in the error.

    Args:
        name: What was called.
        line: From where; see `tfddl._src.runtime.calling_line`.
    """
    rank = current().cluster.rank
    hint = _ALONE.format(name=name, rank=rank, line=line)
    said = f"rank {rank} has waited for the other ranks in {name} for {_PATIENCE_S:g} s. {hint}"
    timer = threading.Timer(_PATIENCE_S, _LOG.warning, args=("%s", said))
    timer.daemon = True
    timer.start()
    try:
        yield
    except (TfddlError, tf.errors.OpError) as error:
        error.add_note(hint)
        raise
    finally:
        timer.cancel()


_CALL = "{}, which all ranks call together"

_ALONE = (
    "On rank {rank}, {name} was called by {line}. With tfddl.DistributedOptimizer, and under "
    "tfddl.strategy().scope(), it is the job's: all ranks must call it together. HINT: call it "
    "outside of what only some ranks do (if tfddl.rank() == 0). For one rank alone, take a model "
    "that isn't compiled so, such as keras.Model(model.inputs, model.outputs)"
)


@contextmanager
def _outside_of_fit(given: dict[str, Any], stage: Stage) -> Iterator[Callable[[FitState], None]]:
    """While no fit is running, as far as this model and its data are concerned."""
    if not is_started():
        yield lambda _: None
        return
    runtime = current()
    before = runtime.fit, runtime.epoch, runtime.resume
    clear_errors(given.get("x"))
    runtime.fit, runtime.epoch, runtime.resume = None, None, None

    def begin(fit: FitState) -> None:
        runtime.fit = fit
        runtime.epoch = (
            0  # A share then has the order of the first epoch, whatever it was made for.
        )

    try:
        with reraise_data_errors((given.get("x"),)), runtime.board.in_stage(stage):
            yield begin
    finally:
        runtime.fit, runtime.epoch, runtime.resume = before


@contextmanager
def _in_fit(fit: FitState, stage: Stage, *, validates: bool) -> Iterator[None]:
    """While a fit that is running evaluates or predicts with its own model."""
    runtime = current()
    before = fit.training, fit.validating, runtime.resume
    fit.training, fit.validating, runtime.resume = False, validates, None
    try:
        with runtime.board.in_stage(stage):
            yield
    finally:
        fit.training, fit.validating, runtime.resume = before
