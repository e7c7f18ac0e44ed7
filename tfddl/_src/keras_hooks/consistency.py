"""Ranks compare what they are about to train, before the first step.

A difference would otherwise show as a hang (other numbers of steps: the ranks with more wait in
their next collective), or not at all (other data, other learning rates).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfddl._src.collectives import DisplayName, ReduceOp, allgather_object, allreduce
from tfddl._src.comm.native import format_ranks
from tfddl._src.keras_hooks import scope, virtual_fit
from tfddl._src.keras_hooks.compiled_step import is_compiled
from tfddl._src.keras_hooks.fit_state import BroadcastCallback, FitState, job_callbacks
from tfddl._src.keras_hooks.optimizer import innermost
from tfddl.errors import DisagreementError, UnsupportedError

_HINTS = {
    "steps": "use tfddl.shard_dataset(x, y, batch_size=…), which gives every rank the same number "
    "of steps, or pass steps_per_epoch={smallest} to fit on every rank.",
    "epochs": "pass the same epochs to fit on every rank.",
    "initial_epoch": "pass the same initial_epoch to fit on every rank, such as "
    "initial_epoch=tfddl.broadcast_object(initial_epoch).",
    "iterations": "start every rank from the same checkpoint, or from none; or load it on rank 0 "
    "and call tfddl.broadcast_variables(optimizer.variables) on every rank.",
    "validates": "pass validation_data (or validation_split) on every rank, or on none.",
    "validation_freq": "pass the same validation_freq to fit on every rank.",
    "optimizer": "compile with the same optimizer on every rank.",
    "jit_compile": 'compile with the same jit_compile=True or False on every rank; "auto" depends '
    "on the devices that a rank sees.",
    "learning_rate": "compile with the same learning rate on every rank.",
    "data": "give tfddl.shard_dataset the same data, batch_size, seed and order on every rank, or "
    "some examples would be seen twice and others never.",
    "callbacks": "give tfddl's callbacks to fit on every rank; files are written by rank 0 anyway.",
    "root_rank": "give BroadcastGlobalVariables the same root_rank on every rank.",
    "arithmetic": "with virtual_workers, start all ranks on the same kind of processor, with the "
    "same TensorFlow, tfddl.init(intra_op_threads=…) and virtual_workers; or leave virtual_workers "
    "out: the ranks then agree to rounding.",
    "variables": "build the same model on every rank, and give its layers names if other models "
    "are built before it on some.",
}

_CALLBACK_HINT = (
    "give LearningRateScheduler, ReduceLROnPlateau and the like to fit on every rank, and let them "
    "decide by the epoch and the logs alone, which are the same everywhere."
)

_TITLES = {
    "steps": "steps per epoch",
    "initial_epoch": "initial_epoch",
    "iterations": "optimizer.iterations",
    "validates": "validation",
    "learning_rate": "learning rate",
    "callbacks": "tfddl's callbacks",
    "variables": "trainable variables",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What must be alike on all ranks when `fit` begins."""

    steps: int | None
    """None where the data has no known length."""

    epochs: int
    initial_epoch: int
    iterations: int
    validates: bool
    validation_freq: str
    data: str
    optimizer: str
    learning_rate: str
    callbacks: tuple[str, ...]
    """The names of tfddl's own, which the ranks run together."""

    root_rank: int | None
    """Whose state all ranks start from; None where no callback says so."""

    variables: tuple[str, ...]

    jit_compile: bool = False
    """Whether XLA compiles the steps, and rounds as it does."""

    arithmetic: str = ""
    """With virtual workers, what else the bits of a result depend on."""

    @classmethod
    def of(cls, model: Any, fit: FitState) -> "TrainingPlan":
        """The plan of a `fit` that is about to begin; builds the optimizer."""
        optimizer = innermost(model.optimizer)
        if not model.optimizer.built:
            with scope.of(model):
                model.optimizer.build(model.trainable_variables)
        return cls(
            steps=fit.steps,
            epochs=fit.epochs,
            initial_epoch=int(fit.initial_epoch),
            iterations=iterations(model),
            validates=fit.validates,
            validation_freq=fit.validation_freq,
            data=fit.data,
            optimizer=type(optimizer).__name__,
            # Nine digits tell any two float32 apart (IEEE 754).
            learning_rate=f"{float(tf.convert_to_tensor(optimizer.learning_rate)):.9g}",
            callbacks=tuple(type(callback).__name__ for callback in job_callbacks(fit)),
            root_rank=next(
                (
                    callback.root_rank
                    for callback in job_callbacks(fit)
                    if isinstance(callback, BroadcastCallback)
                ),
                None,
            ),
            variables=tuple(
                f"{v.path} {v.dtype} {tuple(v.shape)}" for v in model.trainable_variables
            ),
            jit_compile=is_compiled(model),
            arithmetic=virtual_fit.describe_arithmetic(model),
        )


def iterations(model: Any) -> int:
    """The number of steps that the model's optimizer has made."""
    return int(tf.convert_to_tensor(innermost(model.optimizer).iterations))


def compare_learning_rates(model: Any, epoch: int) -> None:
    """Stops all ranks where a callback has changed the learning rate on some of them only.

    All ranks must call it together.

    Raises:
        DisagreementError: On every rank, with what each has.
    """
    optimizer = innermost(model.optimizer)
    rate = tf.cast(tf.convert_to_tensor(optimizer.learning_rate), tf.float64)
    # The maximum of the negatives is minus the minimum: one small sum per epoch tells whether all
    # ranks are alike; who has what is asked only where they aren't.
    extremes = allreduce(
        tf.stack([rate, -rate]), ReduceOp.MAX, name=DisplayName("learning rate")
    ).numpy()
    if extremes[0] != -extremes[1]:
        rates = [f"{value:.9g}" for value in allgather_object(float(rate))]
        raise DisagreementError(
            f"The ranks have different learning rates in epoch {epoch}, and would drift apart.\n"
            f"{_difference('learning_rate', rates, hint=_CALLBACK_HINT)}"
        )


def compare_plans(plan: TrainingPlan, *, validation_is_free: bool) -> bool:
    """Stops all ranks where they differ. All ranks must call it together.

    Args:
        plan: This rank's.
        validation_is_free: Whether some ranks may validate where others don't.

    Returns:
        Whether all ranks validate together.

    Raises:
        DisagreementError: On every rank, with what each has.
        UnsupportedError: On every rank, where none knows the number of steps.
    """
    everyone = [TrainingPlan(**known) for known in allgather_object(dataclasses.asdict(plan))]
    differing = [
        field.name
        for field in dataclasses.fields(TrainingPlan)
        if len({getattr(known, field.name) for known in everyone}) > 1
    ]
    some_validate = validation_is_free and "validates" in differing
    paragraphs = [
        _difference(name, [getattr(known, name) for known in everyone])
        for name in differing
        if not (some_validate and name in ("validates", "validation_freq"))
    ]
    if paragraphs:
        raise DisagreementError(
            "The ranks are about to train differently; stopped before the first step.\n"
            + "\n".join(paragraphs)
        )
    if plan.steps is None:
        raise UnsupportedError(
            "fit got data of unknown length; the ranks must know that all of them will run the "
            "same number of steps. HINT: pass steps_per_epoch=… to fit on every rank, or use "
            "tfddl.shard_dataset."
        )
    return not some_validate


def compare_arithmetic(description: str) -> None:
    """Stops all ranks where what the bits of a result depend on differs.

    All ranks must call it together.

    Raises:
        DisagreementError: On every rank, with what each has.
    """
    everyone = allgather_object(description)
    if len(set(everyone)) > 1:
        raise DisagreementError(
            "The ranks are about to train differently; stopped before the first step.\n"
            f"{_difference('arithmetic', everyone)}"
        )


def _difference(name: str, values: Sequence[Any], *, hint: str | None = None) -> str:
    hint = _HINTS[name] if hint is None else hint
    if name == "steps":
        hint = hint.format(smallest=min(steps for steps in values if steps is not None))
        values = ["unknown" if steps is None else steps for steps in values]
    if name == "variables":
        values = _first_difference(values)
    if name == "callbacks":
        values = [", ".join(names) or "none" for names in values]
    by_value: dict[Any, list[int]] = {}
    for rank, value in enumerate(values):
        by_value.setdefault(value, []).append(rank)
    text = "; ".join(f"{format_ranks(ranks)}: {value}" for value, ranks in by_value.items())
    return f"  {_TITLES.get(name, name)}: {text}\n  HINT: {hint}"


def _first_difference(lists: Sequence[tuple[str, ...]]) -> list[str]:
    """What each rank has where the lists differ first."""
    longest = max(len(entries) for entries in lists)
    for i in range(longest):
        here = [entries[i] if i < len(entries) else "nothing" for entries in lists]
        if len(set(here)) > 1:
            return [f"number {i} is {entry}" for entry in here]
    return [f"{len(entries)} of them" for entries in lists]
