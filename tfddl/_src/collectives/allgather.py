"""allgather, and its gradient."""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from tfddl._src.collectives.autograph import no_autograph
from tfddl._src.collectives.dense import (
    Gradient,
    differentiable_positions,
    gradient_op,
    reduce_dense,
    with_none,
)
from tfddl._src.collectives.fusion import all_gather, cast_for_transfer
from tfddl._src.collectives.negotiation import (
    CollectiveRequest,
    NoDimensionError,
    failing_together,
    negotiate,
    serialized,
)
from tfddl._src.collectives.process_sets import Group, ProcessSet, group_of


@no_autograph
def allgather(
    tensor: tf.Tensor, *, name: str | None = None, process_set: ProcessSet | None = None
) -> tf.Tensor:
    """Joins the tensors of all ranks on the first dimension. All ranks must call it together.

    Args:
        tensor: At least one dimension; the first may differ per rank (and be 0), the others and
            the dtype may not. Numbers or bool.
        name: How messages call it.
        process_set: Between which ranks; without it, all.

    Returns:
        Shape (sum of the first dimensions, ...), in rank order, the same on every rank. Its
        gradient is the rank's own rows of the *sum* of all ranks' gradients: every rank's loss
        depends on these rows, and their derivative of the sum of the losses is wanted. (Under
        Horovod's names it is their average, as in Horovod.)

    Raises:
        DisagreementOpError: Ranks came with different dtypes or inner dimensions.
        NoDimensionError: The tensor has no dimension.
        UnsupportedError: A dtype that can't be sent, or a process set that this rank isn't in.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    return grouped_allgather([tensor], name=name, process_set=process_set)[0]


@no_autograph
def grouped_allgather(
    tensors: Sequence[tf.Tensor],
    *,
    name: str | None = None,
    process_set: ProcessSet | None = None,
) -> list[tf.Tensor]:
    """Gathers several tensors at once; see `allgather`. Those of one dtype travel together."""
    return allgather_in(group_of(process_set), list(tensors), name=name)


@no_autograph
def stack(
    tensor: tf.Tensor,
    *,
    about: Sequence[str] = (),
    name: str | None = None,
    process_set: ProcessSet | None = None,
) -> tf.Tensor:
    """Stacks the tensors of all ranks; unlike `allgather` it needs no round trip for the lengths.

    All ranks must call it together. It has no gradient.

    Args:
        tensor: Shape (n,), the same on all ranks.
        about: What else has to be alike on all ranks, a line each; messages tell what differs.
        name: How messages call it.
        process_set: Between which ranks; without it, all.

    Returns:
        Shape (size, n), in rank order, the same on every rank. Ranks that have joined have zeros.

    Raises:
        DisagreementOpError: Ranks came with different dtypes or lengths, or about something else.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    group = group_of(process_set)

    @serialized(group)
    def stacked() -> tf.Tensor:
        bound = negotiate(group, CollectiveRequest.of(group, "stack", name, [tensor]).about(about))
        signature = dataclasses.replace(bound.signature, joinable=True)
        bound = dataclasses.replace(bound, signature=signature)
        return all_gather(bound, tf.stop_gradient(tensor))

    return stacked()


@no_autograph
def allgather_in(
    group: Group,
    tensors: Sequence[tf.Tensor],
    *,
    operation: str = "allgather",
    name: str | None,
) -> list[tf.Tensor]:
    """`grouped_allgather` in a group, for an operation that messages call so."""
    if not tensors:
        return []

    @tf.custom_gradient
    @serialized(group)
    def joined(*inputs: tf.Tensor) -> tuple[list[tf.Tensor], Gradient]:
        request = CollectiveRequest.of(group, operation, name, inputs, free_first_dimension=True)
        bound = negotiate(group, request)
        with failing_together(bound):
            NoDimensionError.check(operation, name, inputs)
            sent = [cast_for_transfer(bound, tensor) for tensor in inputs]
        # How many rows each rank has of each tensor; and these.
        rows, arrived = bound.process_group.gather_rows(sent, signature=bound.signature)

        def gradient(*upstream: tf.Tensor) -> list[tf.Tensor | None]:
            places = differentiable_positions(inputs)
            arrived = [upstream[i] for i in places]
            totals = reduce_dense(group, arrived, gradient_op(group), name=name)
            ends = tf.reduce_sum(rows[: group.rank + 1], axis=0)
            mine = [
                tf.ensure_shape(total[ends[i] - rows[group.rank, i] : ends[i]], inputs[i].shape)
                for i, total in zip(places, totals, strict=True)
            ]
            return with_none(places, mine, len(inputs))

        outputs = [tf.cast(rows, t.dtype) for rows, t in zip(arrived, inputs, strict=True)]
        return outputs, gradient

    return list(joined(*[tf.convert_to_tensor(t) for t in tensors]))
