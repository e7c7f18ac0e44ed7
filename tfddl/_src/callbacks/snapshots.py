"""The state of a running `fit`: taken from all ranks, and restored on them.

Names of arrays: ``model/0000`` and ``optimizer/0000`` (variables by number, of rank 0),
``rank-1/0003`` (what a rank has different from rank 0), ``metrics-1/0000``, ``best-weights-0/0000``
(of each EarlyStopping).
"""

import copy
import hashlib
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfddl._src.checkpoint import Snapshot
from tfddl._src.collectives import (
    DisplayName,
    ReduceOp,
    allgather_object,
    allreduce,
    broadcast_object,
    broadcast_variables,
)
from tfddl._src.keras_hooks import FitState, builtin_callbacks, resume, virtual_fit
from tfddl._src.keras_hooks.optimizer import innermost, planned_size
from tfddl._src.keras_hooks.seeds import seed_states
from tfddl._src.runtime import current
from tfddl._src.sharding import BlockPlan, CompletedSpan, Order, Position
from tfddl.errors import CheckpointError

_LOG = logging.getLogger("tfddl")


def take(fit: FitState, logs: Any, *, best: Mapping[str, Any]) -> Snapshot | None:
    """The state after the steps that are done. All ranks must call it together.

    Weights and optimizer are alike on all ranks, and come from rank 0. What isn't alike (random
    states, other state that isn't trained, metrics) comes from every rank.

    Args:
        fit: The running fit.
        logs: Its latest logs.
        best: By what the best checkpoint so far is known; saved with the rest.

    Returns:
        On rank 0 a copy of the state, which later steps don't change; elsewhere None. None on all
        ranks where the loss of one of them isn't finite, or its data can't be read: training
        couldn't go on from such a state.
    """
    if not _is_sound_everywhere(fit, logs):
        return None
    is_virtual = virtual_fit.virtual_workers_of(fit.model) is not None
    states = virtual_fit.training_states(fit.model) if is_virtual else None
    own = _own_states(fit) if states is None else states.layer_states()
    is_within = fit.steps is not None and 0 < fit.done < fit.steps and not fit.is_complete
    metrics: list[list[np.ndarray]] = []
    if is_within:
        metrics = _metrics(fit) if states is None else states.metrics()
    if current().cluster.rank:
        return None
    model, optimizer = fit.model, fit.model.optimizer
    best_weights = builtin_callbacks.get_best_weights(fit.callbacks)
    # np.asarray may share memory with what a read of a variable returned. While that lives,
    # TensorFlow's updates write elsewhere (PrepareToUpdateVariable,
    # tensorflow/core/kernels/training_op_helpers.h).
    arrays = {
        **_named("model", [np.asarray(v) for v in model.variables]),
        **_named("optimizer", [np.asarray(v) for v in optimizer.variables]),
    }
    for rank, state in enumerate(own):
        arrays |= {f"rank-{rank}/{i:04d}": array for i, array in state.items()}
    for rank, values in enumerate(metrics):
        arrays |= _named(f"metrics-{rank}", values)
    for i, weights in enumerate(best_weights):
        arrays |= _named(f"best-weights-{i}", weights)
    meta = {
        **_describe_fit(fit),
        "best": dict(best),
        "metrics": len(metrics[0]) if metrics else 0,
        "best_weights": [len(weights) for weights in best_weights],
    }
    return Snapshot(copy.deepcopy(meta), arrays)  # Keras appends to the lists of the history.


def _describe_fit(fit: FitState) -> dict[str, Any]:
    """What a checkpoint says of a fit, beside arrays; fit for JSON."""
    model, optimizer, position = fit.model, fit.model.optimizer, fit.position()
    history = getattr(model, "history", None)
    return {
        "size": planned_size(optimizer),
        "virtual_workers": virtual_fit.virtual_workers_of(model),
        "arithmetic": virtual_fit.describe_arithmetic(model),
        "epoch": position.epoch,
        "consumed": position.consumed,
        "stretches": [[s.size, s.batch_size, s.steps] for s in position.spans],
        "batch_size": None if fit.shard is None else int(fit.shard.plan.batch_size),
        "data": _data(fit),
        "finished": builtin_callbacks.stopped_early(fit.callbacks),
        "iterations": int(innermost(optimizer).iterations.numpy()),
        "optimizer": _kind(optimizer),
        "model": _describe(model.variables),
        "slots": _describe(optimizer.variables),
        "memory": builtin_callbacks.get_states(fit.callbacks),
        "history": {
            "epoch": [] if history is None else history.epoch,
            "logs": {} if history is None else history.history,
        },
    }


def restore(fit: FitState, snapshot: Snapshot | None) -> "Restored":
    """Gives all ranks the state of an earlier run. All ranks must call it together.

    Args:
        fit: A fit whose callbacks have begun; its model and optimizer are built.
        snapshot: On rank 0 what `take` returned; elsewhere None.

    Raises:
        CheckpointError: On all ranks: it is of another model, optimizer or data set.
        UnsupportedError: On all ranks: it is within an epoch, where the data can't be resumed.
    """
    meta: dict[str, Any] = broadcast_object(None if snapshot is None else dict(snapshot.meta))
    arrays = {} if snapshot is None else snapshot.arrays
    model, optimizer = fit.model, fit.model.optimizer
    _check(fit, meta)
    position = Position(
        meta["epoch"], meta["consumed"], tuple(CompletedSpan(*s) for s in meta["stretches"])
    )
    if position.consumed:
        _check_data(fit, meta)
        _check_batch_size(fit, meta)
    # First what may raise; then what changes the training.
    resume.resume_from(fit, position, size=meta["size"])
    if snapshot is not None:
        assign(model.variables, arrays, "model")
        assign(optimizer.variables, arrays, "optimizer")
    # This run's own seeds, for ranks that the earlier one didn't have.
    fresh = [tf.identity(tf.convert_to_tensor(v)) for v in seed_states(model)]
    broadcast_variables([*model.variables, *optimizer.variables])
    own = {name: array for name, array in arrays.items() if name.startswith("rank-")}
    own = broadcast_object(own)
    of_ranks = broadcast_object(_metrics_in(arrays, meta))
    if meta.get("virtual_workers"):
        _give_virtual_states(model, own, of_ranks, size=meta["size"])
        of_ranks = []
    else:
        _give_own_states(model, own, fresh, size=meta["size"])
    best_weights = [
        [arrays.get(f"best-weights-{i}/{j:04d}") for j in range(length)]
        for i, length in enumerate(meta["best_weights"])
    ]
    builtin_callbacks.restore_states(fit.callbacks, meta["memory"], broadcast_object(best_weights))
    history = getattr(model, "history", None)
    if history is not None:
        history.epoch[:] = meta["history"]["epoch"]
        history.history.update(meta["history"]["logs"])
    metrics = _metrics_of_rank(of_ranks, size=meta["size"])
    return Restored(position, finished=meta["finished"], best=meta["best"], metrics=metrics)


class Restored:
    """What a fit has been restored to."""

    def __init__(
        self, position: Position, *, finished: bool, best: Mapping[str, Any], metrics: Sequence[Any]
    ) -> None:
        self.position = position
        self.best = best
        self.finished = finished
        """Whether an EarlyStopping had ended the training."""
        self._metrics = list(metrics)

    def add_metrics(self, fit: FitState) -> None:
        """Adds the metrics' state of the part of the epoch that the earlier run trained on.

        To be called after the epoch's first step.
        """
        # CompileMetrics makes the metrics in the first step, from the shapes of the outputs
        # (keras/src/trainers/compile_utils.py); before it there are no variables to set.
        if not self._metrics:
            return
        variables = _metric_variables(fit.model)
        if len(variables) == len(self._metrics):
            for variable, array in zip(variables, self._metrics, strict=True):
                variable.assign_add(array)
        else:
            _LOG.warning(
                "the model's metrics aren't those of the checkpoint; those of epoch %d are of the "
                "steps since it only",
                fit.epoch,
            )
        self._metrics = []


def _is_sound_everywhere(fit: FitState, logs: Any) -> bool:
    loss = (logs or {}).get("loss", 0.0)
    broken = int(not math.isfinite(float(loss)) or fit.data_error() is not None)
    if fit.together:
        broken = int(allreduce(tf.constant(broken), ReduceOp.MAX, name=DisplayName("loss")).numpy())
    return not broken


def _own_states(fit: FitState) -> list[dict[int, np.ndarray]]:
    """The variables of the model that differ between ranks, by number: of each rank, its values."""
    if not fit.together:
        return []
    trained = {id(v) for v in fit.model.trainable_variables}
    states = {i: np.asarray(v) for i, v in enumerate(fit.model.variables) if id(v) not in trained}
    # A frozen network isn't trained either, and may be large: digests tell what differs, and only
    # that is sent.
    digests = allgather_object(
        {
            i: hashlib.blake2b(array.tobytes(), digest_size=16).digest()
            for i, array in states.items()
        }
    )
    different = {i for i in states if len({known[i] for known in digests}) > 1}
    return allgather_object({i: states[i] for i in different})


def _give_own_states(
    model: Any, own: dict[str, np.ndarray], fresh: Sequence[tf.Tensor], *, size: int
) -> None:
    """Gives a rank the variables that it had; one that is new keeps its fresh seeds."""
    rank = current().cluster.rank
    if rank >= size:
        for seed, value in zip(seed_states(model), fresh, strict=True):
            seed.assign(value)
        return
    for name, array in own.items():
        whose, number = name.removeprefix("rank-").split("/")
        if int(whose) == rank:
            model.variables[int(number)].assign(array)


def _give_virtual_states(
    model: Any, own: dict[str, np.ndarray], metrics: Sequence[Any], *, size: int
) -> None:
    """Gives the virtual workers of this process what they had, wherever they ran."""
    of_workers: list[dict[int, np.ndarray]] = [{} for _ in range(size)]
    for name, array in own.items():
        whose, number = name.removeprefix("rank-").split("/")
        of_workers[int(whose)][int(number)] = array
    virtual_fit.training_states(model).restore(of_workers, metrics)


def _metrics(fit: FitState) -> list[list[np.ndarray]]:
    """The state of each rank's metrics."""
    return allgather_object([np.asarray(v) for v in _metric_variables(fit.model)])


def _metrics_in(arrays: Mapping[str, np.ndarray], meta: dict[str, Any]) -> list[list[np.ndarray]]:
    if not arrays or not meta["metrics"]:
        return []
    numbers = range(meta["metrics"])
    return [[arrays[f"metrics-{rank}/{i:04d}"] for i in numbers] for rank in range(meta["size"])]


def _metrics_of_rank(of_ranks: list[list[np.ndarray]], *, size: int) -> list[np.ndarray]:
    """The rank's own again; with another number of workers, rank 0 gets the sum of all.

    States add up: at the end of the epoch the ranks' states are summed anyway.
    """
    cluster = current().cluster
    if not of_ranks or cluster.size == size:
        return of_ranks[cluster.rank] if of_ranks else []
    totals = [np.sum(values, axis=0) for values in zip(*of_ranks, strict=True)]
    return [total if cluster.rank == 0 else np.zeros_like(total) for total in totals]


def _metric_variables(model: Any) -> list[Any]:
    return [variable for metric in model.metrics for variable in metric.variables]


def assign(variables: Sequence[Any], arrays: Mapping[str, np.ndarray], prefix: str) -> None:
    """Sets variables to the arrays of a snapshot."""
    for i, variable in enumerate(variables):
        variable.assign(arrays[f"{prefix}/{i:04d}"])


def _named(prefix: str, arrays: Sequence[Any]) -> dict[str, np.ndarray]:
    return {f"{prefix}/{i:04d}": array for i, array in enumerate(arrays)}


def _describe(variables: Sequence[Any]) -> list[str]:
    return [f"{v.path} {v.dtype} {tuple(v.shape)}" for v in variables]


def _kind(optimizer: Any) -> str:
    inner = innermost(optimizer)
    name = type(inner).__name__
    return name if inner is optimizer else f"{type(optimizer).__name__} of {name}"


def _check(fit: FitState, meta: dict[str, Any]) -> None:
    kind = _kind(fit.model.optimizer)
    if meta["optimizer"] != kind:
        raise CheckpointError(
            f"The checkpoint is of a training with {meta['optimizer']}; the model is compiled with "
            f"{kind}. {_OTHER}"
        )
    check_model(fit.model, meta)
    _check_virtual_workers(fit, meta)
    _compare("optimizer", meta["slots"], fit.model.optimizer.variables, essence=_SHAPED)


def _check_virtual_workers(fit: FitState, meta: dict[str, Any]) -> None:
    had, has = meta.get("virtual_workers"), virtual_fit.virtual_workers_of(fit.model)
    if had != has:
        raise CheckpointError(
            f"The checkpoint is of a training with virtual_workers={had}; the model is compiled "
            f"with virtual_workers={has}: batches, sums and random numbers would be others. HINT: "
            f"tfddl.DistributedOptimizer(…, virtual_workers={had}), with as many workers as you "
            "like up to that number; or give the callback another directory."
        )
    before, now = meta.get("arithmetic", ""), virtual_fit.describe_arithmetic(fit.model)
    if before != now and current().cluster.rank == 0:
        _LOG.warning(
            "training goes on, but not in the bits of an uninterrupted one: the checkpoint is of "
            "%s; now %s. HINT: resume on the same kind of processor, with the same TensorFlow and "
            "intra_op_threads",
            *(before, now),
        )


def check_model(model: Any, meta: dict[str, Any]) -> None:
    """Refuses a checkpoint of another model.

    Raises:
        CheckpointError: The first variable that differs is in the text.
    """
    _compare("model", meta["model"], model.variables, essence=_NAMED)


def _compare(
    title: str, known: Sequence[str], variables: Sequence[Any], *, essence: re.Pattern[str]
) -> None:
    found = _describe(variables)
    theirs, ours = ([essence.findall(text) for text in texts] for texts in (known, found))
    if theirs == ours:
        return
    pairs = enumerate(zip(theirs, ours, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(known), len(found)))
    had, has = (texts[at] if at < len(texts) else "nothing" for texts in (known, found))
    raise CheckpointError(
        f"The checkpoint is of another {title}: its variable number {at} of {len(known)} is {had}; "
        f"expected {has}, of {len(found)}. {_OTHER}"
    )


def _check_data(fit: FitState, meta: dict[str, Any]) -> None:
    found = _data(fit)
    if found is not None and meta["data"] is not None and found != meta["data"]:
        raise CheckpointError(
            f"The checkpoint is within epoch {meta['epoch']} of other data: "
            f"{_format(meta['data'])}; now {_format(found)}. Which examples are left isn't known. "
            "HINT: use the same data, order and seed, or start anew in another directory."
        )


def _check_batch_size(fit: FitState, meta: dict[str, Any]) -> None:
    """Of virtual workers the rest of an epoch is that of the same plan."""
    has = None if fit.shard is None else fit.shard.plan.batch_size
    had = meta.get("batch_size")
    if meta.get("virtual_workers") and None not in (had, has) and had != has:
        raise CheckpointError(
            f"The checkpoint is within epoch {meta['epoch']} of a training with "
            f"virtual_workers={meta['virtual_workers']} and batch_size={had}; fit got "
            f"batch_size={has}. HINT: take the same batch_size to the end of the epoch, or start "
            "anew in another directory."
        )


def _data(fit: FitState) -> dict[str, Any] | None:
    """What the order of an epoch's examples depends on."""
    if fit.shard is None:
        return None
    plan = fit.shard.plan
    order = Order.BLOCK if isinstance(plan, BlockPlan) else Order.GLOBAL
    return {
        "examples": int(plan.num_examples),
        "order": order.value,
        "seed": None if plan.seed is None else int(plan.seed),
    }


def _format(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


_OTHER = "HINT: give the callback another directory, or make the model that the checkpoint is of."

# What must be alike in the description of a variable: of a model's the last part of its path, dtype
# and shape, of an optimizer's dtype and shape. Keras numbers layers throughout a process, so that
# the second model of a notebook has a "dense_1" for a "dense"; slots are named after these.
_NAMED = re.compile(r"[^/]*$")
_SHAPED = re.compile(r"\S+ \([\d, ]*\)$")
