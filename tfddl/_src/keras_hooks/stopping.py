"""All ranks end training, or an epoch, after the same step.

A rank that ended alone would leave the others waiting in a collective. Within an epoch the request
to stop travels with each step's gradients, and costs nothing; the step after the request is then
the last one on all ranks.
"""

import tensorflow as tf

from tfddl._src.collectives import DisplayName, ReduceOp, allreduce, barrier
from tfddl._src.keras_hooks.fit_state import FitState
from tfddl._src.keras_hooks.step_state import step_state
from tfddl._src.runtime import current
from tfddl.errors import DataError, DisagreementError, StalledError

_END_TIMEOUT_S = 60.0
"""How long a rank without data waits to hear that the others have none either, where it can't be
told at once that they have."""


def stop_within_epoch(fit: FitState) -> bool:
    """Whether this step is the last one on all ranks; sets ``stop_training`` accordingly.

    This rank's own request (``stop_training``, or data that can't be read) goes out with the next
    step.
    """
    state = step_state(fit.model)
    wanted = bool(fit.model.stop_training)
    if wanted or (fit.shard is not None and fit.shard.error is not None):
        state.stop.assign(1.0)
    # value() is one operation; the variable's own numpy() takes several, in every step.
    agreed = bool(state.stop_agreed.value().numpy())
    if agreed != wanted:  # Keras looks at whatever is set on a model, whether it has to track it.
        fit.model.stop_training = agreed
    return agreed


def stop_after_epoch(fit: FitState) -> None:
    """Sets ``stop_training`` on all ranks where any of them wants training to end.

    All ranks must call it together.
    """
    state = step_state(fit.model)
    wanted = bool(fit.model.stop_training) or bool(state.stop.numpy())
    anyone = allreduce(tf.constant(int(wanted)), ReduceOp.MAX, name=DisplayName("stop_training"))
    fit.model.stop_training = bool(anyone.numpy())
    state.clear_stop()


def agree_on_early_end(fit: FitState) -> None:
    """Lets an epoch end before its steps are done where all ranks' data has ended, as Keras does.

    All ranks must call it together, at the end of an epoch.

    Raises:
        DataError: This rank has no data for the next step, and others are in it, waiting.
    """
    steps = int(step_state(fit.model).steps.numpy())
    if fit.steps is None or steps >= fit.steps or fit.model.stop_training:
        return
    runtime = current()
    ran_out = f"ran out of data after {steps} of {fit.steps} steps of the epoch"
    try:
        if runtime.process_group.compares:
            barrier(name=DisplayName(f"end of epoch {fit.epoch}, {ran_out}"))
        else:
            # Not by a collective: there, this one would meet the others' sum of gradients.
            runtime.gather_notes(f"the end of epoch {fit.epoch}", ran_out, timeout_s=_END_TIMEOUT_S)
    except (DisagreementError, StalledError) as error:
        raise DataError(
            f"rank {runtime.cluster.rank} {ran_out}, and not all other ranks did; they can't go on "
            "without it. HINT: give every rank as many batches as the others, or use "
            f"tfddl.shard_dataset.\n{error}"
        ) from error
