"""All ranks start a `fit` from the same state, except for what has to differ."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from tfddl._src.collectives import broadcast_variables
from tfddl._src.keras_hooks import compiled_step, consistency, virtual_fit
from tfddl._src.keras_hooks.compile import evaluates_together
from tfddl._src.keras_hooks.fit_state import BroadcastCallback, FitState, job_callbacks
from tfddl._src.keras_hooks.optimizer import innermost
from tfddl._src.keras_hooks.seeds import derive_seeds_per_rank
from tfddl._src.keras_hooks.step_state import step_state


def compare_before_callbacks(fit: FitState) -> None:
    """Stops all ranks where their plans differ. All ranks must call it together.

    Raises:
        DisagreementError: On every rank, with what each has.
        UnsupportedError: On every rank, where none knows the number of steps.
    """
    step_state(fit.model).clear_stop()  # A fit that failed may have left a request to stop.
    plan = consistency.TrainingPlan.of(fit.model, fit)
    if plan.root_rank is not None:
        # The ranks may come with different step counts and rates: they get those of one of them,
        # before callbacks look at these.
        plan = dataclasses.replace(plan, iterations=0, learning_rate="")
    consistency.compare_plans(plan, validation_is_free=_validation_is_free(fit))
    if plan.root_rank is not None:
        _broadcast_state(fit, plan.root_rank)


def synchronize(fit: FitState) -> None:
    """Compares the plans with what callbacks have changed, and gives all ranks the same state.

    All ranks must call it together.

    Raises:
        DisagreementError: On every rank, with what each has.
    """
    plan = consistency.TrainingPlan.of(fit.model, fit)
    fit.validates_together = consistency.compare_plans(
        plan, validation_is_free=_validation_is_free(fit)
    )
    _broadcast_state(fit, plan.root_rank or 0)
    compiled_step.compare_processors(fit.model)
    if virtual_fit.virtual_workers_of(fit.model) is None:
        derive_seeds_per_rank(fit.model)
    else:
        virtual_fit.training_states(fit.model).derive_seeds()


def broadcast_model(
    model: Any, optimizers: Iterable[Any], root_rank: int, *, own: Sequence[Any]
) -> None:
    """Gives all ranks one rank's weights of a model and state of its optimizers.

    All ranks must call it together.

    Args:
        model: Built.
        optimizers: Likewise.
        root_rank: Whose state, 0 <= root_rank < size.
        own: Variables that stay each rank's own, with what optimizers keep for them.
    """
    # Optimizer.add_variable_from_reference (keras/src/optimizers/base_optimizer.py) names a slot
    # "<path of its variable, / as _>_<name>".
    slots = tuple(f"{getattr(v, 'path', v.name).replace('/', '_')}_" for v in own)
    weights = [v for v in model.weights if not any(v is mine for mine in own)]
    state = [v for one in optimizers for v in one.variables if not v.name.startswith(slots)]
    broadcast_variables([*weights, *state], root_rank)


def _validation_is_free(fit: FitState) -> bool:
    return not evaluates_together(fit.model.optimizer)


def _broadcast_state(fit: FitState, root_rank: int) -> None:
    own = [*innermost(fit.model.optimizer).tfddl_options.local]
    for callback in job_callbacks(fit):
        if isinstance(callback, BroadcastCallback):
            own.extend(callback.local_variables)
    broadcast_model(fit.model, [fit.model.optimizer], root_rank, own=own)
