"""The state of a model, made the same on all ranks."""

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from tfddl._src.collectives.broadcast import broadcast_each, grouped_broadcast
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
    group = group_of(process_set)
    if group.size == 1:
        return
    name = DisplayName("variables")
    # What is read of a reference variable of TensorFlow 1 (float32_ref) is a float32.
    specs = [tf.TensorSpec(v.shape, tf.as_dtype(v.dtype).base_dtype) for v in variables]
    if all(spec.shape.is_fully_defined() for spec in specs):
        # Not all at once: with an optimizer's state, a model has three times its weights and more.
        broadcast_each(
            group,
            specs,
            root_rank,
            name=name,
            read=lambda i: tf.convert_to_tensor(variables[i]),
            write=lambda i, value: variables[i].assign(value),
        )
        return
    values = grouped_broadcast(
        [tf.convert_to_tensor(v) for v in variables], root_rank, name=name, process_set=process_set
    )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
