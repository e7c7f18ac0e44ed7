"""The state of a running `fit`: taken from all ranks, and given back to them."""

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
from tfddl._src.keras_hooks import FitState, builtin_callbacks, resume
from tfddl._src.keras_hooks.optimizer import innermost
from tfddl._src.runtime import current
from tfddl._src.sharding import BlockPlan, CompletedSpan, Order, Position
from tfddl.errors import CheckpointError

_LOG = logging.getLogger("tfddl")


def take(fit: FitState, logs: Any, *, best: Mapping[str, Any]) -> Snapshot | None:
    """The state after the steps that are done. All ranks must call it together.

    Weights and optimizer are alike on all ranks, and come from rank 0. What isn't alike (random
    states, other state that isn't trained, metrics) comes from every rank.

    Args:
        fit: The fit.
        logs: Its latest.
        best: What the best checkpoint so far is told by; kept along.

    Returns:
        On rank 0 a copy of the state, which later steps don't change; elsewhere None. None on all
        ranks where the loss of one of them isn't finite, or its data can't be read: such a state
        is nothing to go on from.
    """
    if not _is_sound_everywhere(fit, logs):
        return None
    own = _own_states(fit)
    is_within = fit.steps is not None and 0 < fit.done < fit.steps and not fit.is_complete
    metrics = _metrics(fit) if is_within else []
    if current().cluster.rank:
        return None
    model, optimizer = fit.model, fit.model.optimizer
    best_weights = builtin_callbacks.get_best_weights(fit.callbacks)
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
    position = fit.position()
    history = getattr(fit.model, "history", None)
    meta = {
        "size": current().cluster.size,
        "epoch": position.epoch,
        "consumed": position.consumed,
        "stretches": [[s.size, s.batch_size, s.steps] for s in position.spans],
        "data": _data(fit),
        "finished": builtin_callbacks.stopped_early(fit.callbacks),
        "iterations": int(innermost(optimizer).iterations.numpy()),
        "optimizer": _kind(optimizer),
        "model": _describe(model.variables),
        "slots": _describe(optimizer.variables),
        "best": dict(best),
        "metrics": len(metrics[0]) if metrics else 0,
        "best_weights": [len(weights) for weights in best_weights],
        "memory": builtin_callbacks.get_states(fit.callbacks),
        "history": {
            "epoch": [] if history is None else history.epoch,
            "logs": {} if history is None else history.history,
        },
    }
    return Snapshot(copy.deepcopy(meta), arrays)


def restore(fit: FitState, snapshot: Snapshot | None) -> "Restored":
    """Puts all ranks where an earlier run was. All ranks must call it together.

    Args:
        fit: A fit whose callbacks have begun; its model and optimizer are built.
        snapshot: On rank 0 what was taken; elsewhere None.

    Raises:
        CheckpointError: On all ranks: it is of another model, optimizer or data set.
        UnsupportedError: On all ranks: it is within an epoch, where the data can't be entered.
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
    # First what can be refused; then what changes the training.
    resume.resume_from(fit, position, size=meta["size"])
    if snapshot is not None:
        assign(model.variables, arrays, "model")
        assign(optimizer.variables, arrays, "optimizer")
    fresh = [tf.identity(tf.convert_to_tensor(v)) for v in _seeds(model)]
    broadcast_variables([*model.variables, *optimizer.variables])
    own = {name: array for name, array in arrays.items() if name.startswith("rank-")}
    _give_own_states(model, broadcast_object(own), fresh, size=meta["size"])
    best_weights = [
        [arrays.get(f"best-weights-{i}/{j:04d}") for j in range(length)]
        for i, length in enumerate(meta["best_weights"])
    ]
    builtin_callbacks.restore_states(fit.callbacks, meta["memory"], broadcast_object(best_weights))
    history = getattr(model, "history", None)
    if history is not None:
        history.epoch[:] = meta["history"]["epoch"]
        history.history.update(meta["history"]["logs"])
    metrics = _metrics_of_rank(broadcast_object(_metrics_in(arrays, meta)), size=meta["size"])
    return Restored(position, finished=meta["finished"], best=meta["best"], metrics=metrics)


class Restored:
    """What a fit goes on from."""

    def __init__(
        self, position: Position, *, finished: bool, best: Mapping[str, Any], metrics: Sequence[Any]
    ) -> None:
        self.position = position
        self.best = best
        self.finished = finished
        """Whether an EarlyStopping had ended the training."""
        self._metrics = list(metrics)

    def add_metrics(self, fit: FitState) -> None:
        """Adds what the metrics had seen of the epoch before.

        After the epoch's first step, because Keras makes metrics in it.
        """
        if not self._metrics:
            return
        variables = _metric_variables(fit.model)
        if len(variables) == len(self._metrics):
            for variable, array in zip(variables, self._metrics, strict=True):
                variable.assign_add(array)
        else:
            _LOG.warning(
                "the model's metrics aren't those of the checkpoint; those of epoch %d tell of the "
                "steps since it only",
                fit.epoch,
            )
        self._metrics = []


def _is_sound_everywhere(fit: FitState, logs: Any) -> bool:
    loss = (logs or {}).get("loss", 0.0)
    broken = int(not math.isfinite(float(loss)) or fit.failure() is not None)
    if fit.together:
        broken = int(allreduce(tf.constant(broken), ReduceOp.MAX, name=DisplayName("loss")).numpy())
    return not broken


def _own_states(fit: FitState) -> list[dict[int, np.ndarray]]:
    """What each rank has different from rank 0: variables of the model, by number."""
    if not fit.together:
        return []
    trained = {id(v) for v in fit.model.trainable_variables}
    states = {i: np.asarray(v) for i, v in enumerate(fit.model.variables) if id(v) not in trained}
    # A frozen network isn't trained either: only what differs travels.
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
    """Gives a rank what it had; one that is new draws from seeds that nobody had."""
    rank = current().cluster.rank
    if rank >= size:
        for seed, value in zip(_seeds(model), fresh, strict=True):
            seed.assign(value)
        return
    for name, array in own.items():
        whose, number = name.removeprefix("rank-").split("/")
        if int(whose) == rank:
            model.variables[int(number)].assign(array)


def _metrics(fit: FitState) -> list[list[np.ndarray]]:
    """The state of the metrics, of each rank."""
    return allgather_object([np.asarray(v) for v in _metric_variables(fit.model)])


def _metrics_in(arrays: Mapping[str, np.ndarray], meta: dict[str, Any]) -> list[list[np.ndarray]]:
    if not arrays or not meta["metrics"]:
        return []
    numbers = range(meta["metrics"])
    return [[arrays[f"metrics-{rank}/{i:04d}"] for i in numbers] for rank in range(meta["size"])]


def _metrics_of_rank(of_ranks: list[list[np.ndarray]], *, size: int) -> list[np.ndarray]:
    """A rank's own again; with another number of workers, rank 0 has what all had."""
    cluster = current().cluster
    if not of_ranks or cluster.size == size:
        return of_ranks[cluster.rank] if of_ranks else []
    totals = [np.sum(values, axis=0) for values in zip(*of_ranks, strict=True)]
    return [total if cluster.rank == 0 else np.zeros_like(total) for total in totals]


def _metric_variables(model: Any) -> list[Any]:
    return [variable for metric in model.metrics for variable in metric.variables]


def _seeds(model: Any) -> list[Any]:
    return [v for v in model.variables if v.name == "seed_generator_state"]


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
    """Refuses a checkpoint of another model or optimizer."""
    kind = _kind(fit.model.optimizer)
    if meta["optimizer"] != kind:
        raise CheckpointError(
            f"The checkpoint is of a training with {meta['optimizer']}, and the model is compiled "
            f"with {kind}. {_OTHER}"
        )
    check_model(fit.model, meta)
    _compare("optimizer", meta["slots"], fit.model.optimizer.variables, essence=_SHAPED)


def check_model(model: Any, meta: dict[str, Any]) -> None:
    """Refuses a checkpoint of another model.

    Raises:
        CheckpointError: With the first variable that differs.
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
        f"here it is {has}, of {len(found)}. {_OTHER}"
    )


def _check_data(fit: FitState, meta: dict[str, Any]) -> None:
    """Refuses to go on within an epoch of other data."""
    found = _data(fit)
    if found is not None and meta["data"] is not None and found != meta["data"]:
        raise CheckpointError(
            f"The checkpoint is within epoch {meta['epoch']} of other data: "
            f"{_say(meta['data'])}; now {_say(found)}. Which examples are left can't be told. "
            "Go on with the same data, order and seed, or start anew in another folder."
        )


def _data(fit: FitState) -> dict[str, Any] | None:
    """What an epoch's order depends on."""
    if fit.share is None:
        return None
    plan = fit.share.plan
    order = Order.BLOCK if isinstance(plan, BlockPlan) else Order.GLOBAL
    return {
        "examples": int(plan.num_examples),
        "order": order.value,
        "seed": None if plan.seed is None else int(plan.seed),
    }


def _say(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


_OTHER = "Give the callback another folder, or make the model that the checkpoint is of."

# Of the description of a variable, what has to be alike. Names of layers may count on: the second
# model of a notebook has a "dense_1" for a "dense". Slots are named after those.
_NAMED = re.compile(r"[^/]*$")
_SHAPED = re.compile(r"\S+ \([\d, ]*\)$")
