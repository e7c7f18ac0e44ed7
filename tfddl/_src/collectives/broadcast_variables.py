"""The state of a model, made the same on all ranks."""

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from tfddl._src.collectives.broadcast import grouped_broadcast
from tfddl._src.collectives.negotiation import DisplayName
from tfddl._src.collectives.process_sets import ProcessSet, group_of


def broadcast_variables(
    variables: Iterable[Any], root_rank: int = 0, *, process_set: ProcessSet | None = None
) -> None:
    """Sets variables to what one rank has. All ranks must call it together.

    Args:
        variables: `keras.Variable` or `tf.Variable`, the same number, dtypes and shapes on all
            ranks, such as ``model.variables`` or ``optimizer.variables``.
        root_rank: Whose values: a rank of the job, not its place in the process set.
        process_set: Between which ranks; without it, all.

    Raises:
        DisagreementOpError: Ranks have different variables.
        WrongArgumentError: There is no such rank in the set.
        UnsupportedError: A process set that this rank isn't in.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    variables = list(variables)
    if group_of(process_set).size == 1:
        return
    values = grouped_broadcast(
        [tf.convert_to_tensor(v) for v in variables],
        root_rank,
        name=DisplayName("variables"),
        process_set=process_set,
    )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
