"""Ranks compare what they are about to train, before the first step."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfddl.collectives import allgather_object
from tfddl.collectives.agreement import rank_names
from tfddl.errors import DisagreementError, UnsupportedError
from tfddl.optimizer import innermost

_HINTS = {
    "steps": "use tfddl.shard_dataset(x, y, batch_size=…), which gives every rank the same number "
    "of steps, or pass steps_per_epoch={smallest} to fit on every rank.",
    "epochs": "pass the same epochs to fit on every rank.",
    "initial_epoch": "pass the same initial_epoch to fit on every rank, such as "
    "initial_epoch=tfddl.broadcast_object(initial_epoch).",
    "iterations": "start every rank from the same checkpoint, or from none; or load it on rank 0 "
    "and call tfddl.broadcast_variables(optimizer.variables) on every rank.",
    "validates": "pass validation_data (or validation_split) on every rank, or on none.",
    "optimizer": "compile with the same optimizer on every rank.",
    "learning_rate": "compile with the same learning rate on every rank.",
    "variables": "build the same model on every rank, and give its layers names if other models "
    "are built before it on some.",
}

_TITLES = {
    "steps": "steps per epoch",
    "initial_epoch": "initial_epoch",
    "iterations": "optimizer.iterations",
    "validates": "validation",
    "learning_rate": "learning rate",
    "variables": "trainable variables",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What has to be alike on all ranks."""

    steps: int | None
    """None where the data has no known length."""

    epochs: int
    initial_epoch: int
    iterations: int
    validates: bool
    optimizer: str
    learning_rate: str
    variables: tuple[str, ...]

    @classmethod
    def of(cls, model: Any, params: dict[str, Any], fit: Any) -> "Facts":
        """Of a `fit` that is about to begin; builds the optimizer."""
        optimizer = innermost(model.optimizer)
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        return cls(
            steps=params["steps"],
            epochs=int(params["epochs"]),
            initial_epoch=int(fit.initial_epoch),
            iterations=iterations(model),
            validates=fit.validates,
            optimizer=type(optimizer).__name__,
            learning_rate=f"{float(tf.convert_to_tensor(optimizer.learning_rate)):.9g}",
            variables=tuple(
                f"{v.path} {v.dtype} {tuple(v.shape)}" for v in model.trainable_variables
            ),
        )


def iterations(model: Any) -> int:
    """How many steps the model's optimizer has made."""
    return int(tf.convert_to_tensor(innermost(model.optimizer).iterations))


def compare(facts: Facts) -> None:
    """Stops all ranks where they differ. All ranks must call it together.

    Raises:
        DisagreementError: On every rank, naming the ranks and what each has.
        UnsupportedError: On every rank, where none knows the number of steps.
    """
    everyone = [Facts(**known) for known in allgather_object(dataclasses.asdict(facts))]
    paragraphs = [
        _difference(field.name, [getattr(known, field.name) for known in everyone])
        for field in dataclasses.fields(Facts)
        if len({getattr(known, field.name) for known in everyone}) > 1
    ]
    if paragraphs:
        raise DisagreementError(
            "The ranks are about to train differently; stopped before the first step.\n"
            + "\n".join(paragraphs)
        )
    if facts.steps is None:
        raise UnsupportedError(
            "fit got data of unknown length. The ranks have to know that they will run the same "
            "number of steps: pass steps_per_epoch=… to fit on every rank, or use "
            "tfddl.shard_dataset."
        )


def _difference(name: str, values: Sequence[Any]) -> str:
    hint = _HINTS[name]
    if name == "steps":
        hint = hint.format(smallest=min(steps for steps in values if steps is not None))
        values = ["unknown" if steps is None else steps for steps in values]
    if name == "variables":
        values = _first_difference(values)
    by_value: dict[Any, list[int]] = {}
    for rank, value in enumerate(values):
        by_value.setdefault(value, []).append(rank)
    said = "; ".join(f"{rank_names(ranks)}: {value}" for value, ranks in by_value.items())
    return f"  {_TITLES.get(name, name)}: {said}\n  HINT: {hint}"


def _first_difference(lists: Sequence[tuple[str, ...]]) -> list[str]:
    """What each rank has where the lists differ first."""
    longest = max(len(entries) for entries in lists)
    for i in range(longest):
        here = [entries[i] if i < len(entries) else "nothing" for entries in lists]
        if len(set(here)) > 1:
            return [f"number {i} is {entry}" for entry in here]
    return [f"{len(entries)} of them" for entries in lists]
