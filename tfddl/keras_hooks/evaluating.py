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

from tfddl.collectives import allgather
from tfddl.data import find_share
from tfddl.keras_hooks import whole_data
from tfddl.keras_hooks.compiling import acts_on
from tfddl.keras_hooks.patching import wrap_method
from tfddl.keras_hooks.session import Fit
from tfddl.runtime import current, is_started

_LOG = logging.getLogger("tfddl")
_PATIENCE_S = 15.0
_BATCH_SIZE = 32  # Keras' default.
_PIECE_BYTES = 16 << 20


def install() -> None:
    """Puts the hooks in place."""
    wrap_method(keras.Model, "evaluate", ("x", "y"), _evaluate)
    wrap_method(keras.Model, "predict", ("x", "batch_size"), _predict)


def _evaluate(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    fit: Fit | None = current().fit if is_started() else None
    if fit is not None and fit.model is self:
        # What `fit` itself evaluates is evaluated by all ranks; a callback may do so on one.
        with _in_fit(fit, validates=bool(kwargs.get("_use_cached_eval_dataset"))):
            return original(self, *args, **kwargs)
    if not acts_on(self.optimizer):
        return original(self, *args, **kwargs)
    call = inspect.signature(original).bind(self, *args, **kwargs)
    given = call.arguments
    parts = [given.get(name) for name in ("x", "y", "sample_weight")]
    with _company("evaluate"):
        is_whole = whole_data.is_whole(parts, name="evaluate")
    if find_share(parts[0]) is None and is_whole:
        parts = _first_steps(parts, given)
        given["x"], given["y"], given["sample_weight"], _ = whole_data.cut(*parts)
    _one_progress_bar(given)
    fit = Fit(model=self, together=True, share=None, validating=True, datasets=(given.get("x"),))
    with _session(fit):
        return original(*call.args, **call.kwargs)


def _predict(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    fit: Fit | None = current().fit if is_started() else None
    if not acts_on(self.optimizer) or (fit is not None and fit.model is self):
        with _in_fit(fit, validates=False):
            return original(self, *args, **kwargs)
    call = inspect.signature(original).bind(self, *args, **kwargs)
    given = call.arguments
    share = find_share(given["x"])
    with _company("predict"):
        # Asked for every kind of data, because ranks may have got different ones.
        is_whole = whole_data.is_whole(given["x"], name="predict")
    if is_whole:
        return _predict_whole(original, call)
    _one_progress_bar(given)
    if share is None:
        return original(*call.args, **call.kwargs)
    steps = given.get("steps") or share.plan.steps
    mine = original(*call.args, **call.kwargs)
    return _in_order(mine, share.plan, steps=min(steps, share.plan.steps))


def _predict_whole(original: Callable[..., Any], call: inspect.BoundArguments) -> Any:
    given = call.arguments
    (x,) = _first_steps([given["x"]], given)
    start, stop = whole_data.share(whole_data.length(x))
    # A rank without an example runs the first, so that it knows what a prediction looks like.
    low, high = (start, stop) if start < stop else (0, 1)
    given["x"] = whole_data.rows(x, low, high)
    _one_progress_bar(given)
    mine = original(*call.args, **call.kwargs)
    return tf.nest.map_structure(lambda rows: _gathered(rows[: stop - start]), mine)


def _in_order(mine: Any, plan: Any, *, steps: int) -> Any:
    """All ranks' predictions of a plan's first steps, in the order of the data."""
    rank = current().cluster.rank
    batches = [plan.batch(epoch=0, step=step, rank=rank) for step in range(steps)]
    counts = np.concatenate([np.full(len(b.indices), b.count > 0) for b in batches])
    indices = np.concatenate([b.indices for b in batches])[counts]
    order = np.argsort(_gathered(indices), kind="stable")
    return tf.nest.map_structure(lambda rows: _gathered(rows[counts])[order], mine)


def _gathered(rows: np.ndarray) -> np.ndarray:
    """The rows of all ranks, in rank order, in pieces that don't take much memory twice."""
    row_bytes = max(1, rows.itemsize * int(np.prod(rows.shape[1:])))
    size = max(1, _PIECE_BYTES // row_bytes)
    lengths = allgather(tf.constant([len(rows)], tf.int64), name="predictions").numpy()
    pieces: list[list[np.ndarray]] = [[] for _ in lengths]
    for start in range(0, int(lengths.max()), size):
        arrived = allgather(tf.constant(rows[start : start + size]), name="predictions").numpy()
        ends = np.cumsum(np.clip(lengths - start, 0, size))
        for rank, piece in enumerate(np.split(arrived, ends[:-1])):
            pieces[rank].append(piece)
    return np.concatenate([piece for of_rank in pieces for piece in of_rank])


def _first_steps(parts: list[Any], given: dict[str, Any]) -> list[Any]:
    """Where only some steps are asked for, the examples of those."""
    steps = given.pop("steps", None)
    if steps is None:
        return parts
    end = steps * (given.get("batch_size") or _BATCH_SIZE)
    return [whole_data.rows(part, 0, end) for part in parts]


def _one_progress_bar(given: dict[str, Any]) -> None:
    if current().cluster.rank:
        given.setdefault("verbose", 0)


@contextmanager
def _company(name: str) -> Iterator[None]:
    """Says so where the other ranks don't come."""
    rank = current().cluster.rank
    timer = threading.Timer(_PATIENCE_S, _LOG.warning, args=(_ALONE, name, rank, name))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


_ALONE = (
    "%s on rank %d has been waiting for the other ranks: it is the job's, and all ranks must call "
    "it together. For one rank alone, keras.Model(model.inputs, model.outputs).%s(…) does it."
)


@contextmanager
def _session(fit: Fit) -> Iterator[None]:
    runtime = current()
    before = runtime.fit, runtime.epoch
    runtime.fit, runtime.epoch = fit, None
    try:
        yield
    finally:
        runtime.fit, runtime.epoch = before


@contextmanager
def _in_fit(fit: Fit | None, *, validates: bool) -> Iterator[None]:
    """While a fit that is running evaluates or predicts."""
    if fit is None:
        yield
        return
    runtime = current()
    before = fit.training, fit.validating, runtime.resume
    fit.training, fit.validating, runtime.resume = False, validates, None
    try:
        yield
    finally:
        fit.training, fit.validating, runtime.resume = before
