"""The state of a model, made the same on all ranks."""

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from tfddl.collectives.operations import grouped_broadcast
from tfddl.runtime import current


def broadcast_variables(variables: Iterable[Any], root_rank: int = 0) -> None:
    """Sets variables to what one rank has. All ranks must call it together.

    Args:
        variables: `keras.Variable` or `tf.Variable`, the same number, dtypes and shapes on all
            ranks, such as ``model.variables`` or ``optimizer.variables``.
        root_rank: Whose values.

    Raises:
        DisagreementError: Ranks have different variables.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    variables = list(variables)
    if current().cluster.size == 1:
        return
    values = grouped_broadcast(
        [tf.convert_to_tensor(v) for v in variables], root_rank, name="variables"
    )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
