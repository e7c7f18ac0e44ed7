"""broadcast, and its gradient."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from tfddl._src.collectives.autograph import no_autograph
from tfddl._src.collectives.dense import (
    Gradient,
    differentiable_positions,
    gradient_op,
    reduce_dense,
    with_none,
)
from tfddl._src.collectives.fusion import (
    cast_for_transfer,
    fuse,
    fused_positions,
    transfer_dtype,
)
from tfddl._src.collectives.negotiation import (
    CollectiveRequest,
    WrongArgumentError,
    failing_together,
    negotiate,
    serialized,
)
from tfddl._src.collectives.process_sets import Group, ProcessSet, group_of


@no_autograph
def broadcast(
    tensor: tf.Tensor,
    root_rank: int = 0,
    *,
    name: str | None = None,
    process_set: ProcessSet | None = None,
) -> tf.Tensor:
    """Gives every rank the tensor of one. All ranks must call it together.

    Args:
        tensor: Any shape, the same on all ranks, numbers or bool; only the root's values matter.
        root_rank: Whose values: a rank of the job, not its place in the process set.
        name: How messages call it.
        process_set: Between which ranks; without it, all.

    Returns:
        Bit for bit what the root has. Its gradient is the *sum* of all ranks' gradients on the
        root, and zeros elsewhere: every rank's loss depends on the root's tensor, and its
        derivative of the sum of the losses is wanted. (Under Horovod's names it is their average,
        as in Horovod.)

    Raises:
        DisagreementOpError: Ranks came with different dtypes, shapes or roots.
        WrongArgumentError: There is no such rank in the set.
        UnsupportedError: A dtype that can't be sent, or a process set that this rank isn't in.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    return grouped_broadcast([tensor], root_rank, name=name, process_set=process_set)[0]


@no_autograph
def grouped_broadcast(
    tensors: Sequence[tf.Tensor],
    root_rank: int = 0,
    *,
    name: str | None = None,
    process_set: ProcessSet | None = None,
) -> list[tf.Tensor]:
    """Broadcasts several tensors at once; see `broadcast`. Small ones travel together."""
    return broadcast_in(group_of(process_set), tensors, root_rank, name=name)


@no_autograph
def broadcast_in(
    group: Group, tensors: Sequence[tf.Tensor], root_rank: int, *, name: str | None
) -> list[tf.Tensor]:
    """`grouped_broadcast` in a group."""
    tensors = [tf.convert_to_tensor(t) for t in tensors]
    if not tensors:
        return []

    @tf.custom_gradient
    @serialized(group)
    def spread(*inputs: tf.Tensor) -> tuple[list[tf.Tensor], Gradient]:
        request = CollectiveRequest.of(group, f"broadcast from rank {root_rank}", name, inputs)
        bound = negotiate(group, request.fused(group))
        with failing_together(bound):
            root = _place(group, root_rank)
        outputs = fuse(
            bound,
            inputs,
            lambda p: bound.process_group.broadcast(p, root, signature=bound.signature),
        )

        def gradient(*upstream: tf.Tensor) -> list[tf.Tensor | None]:
            places = differentiable_positions(inputs)
            arrived = [upstream[i] for i in places]
            # All ranks' losses depend on the root's tensor: its gradient is the sum (or Horovod's
            # average) of theirs.
            totals = reduce_dense(group, arrived, gradient_op(group), name=name)
            # Not a plain zero elsewhere: differentiated again, all have to call what the root does.
            mine = [tf.where(group.rank == root, t, tf.zeros_like(t)) for t in totals]
            return with_none(places, mine, len(inputs))

        return outputs, gradient

    return list(spread(*tensors))


@no_autograph
def broadcast_each(  # noqa: PLR0913 - both ends of what travels
    group: Group,
    specs: Sequence[tf.TensorSpec],
    root_rank: int,
    *,
    name: str | None,
    read: Callable[[int], tf.Tensor],
    write: Callable[[int, tf.Tensor], object],
) -> None:
    """`grouped_broadcast`, in a group, of tensors that needn't be in memory all at once.

    Eagerly no more of them are read than travel together, and these are written before the next
    ones are read. It has no gradient.

    Args:
        group: Who takes part.
        specs: Of the tensors, whose shapes are known.
        root_rank: As for `broadcast`.
        name: How messages call it.
        read: Gives a tensor, by its position in `specs`.
        write: Gets what the root has at a position; isn't called on the root.
    """

    @serialized(group)
    def spread() -> None:
        request = CollectiveRequest.of(group, f"broadcast from rank {root_rank}", name, specs)
        bound = negotiate(group, request.fused(group))
        with failing_together(bound):
            root = _place(group, root_rank)
            for spec in specs:
                transfer_dtype(bound, spec.dtype)
        for members in fused_positions(bound, specs):
            sent = [cast_for_transfer(bound, read(i)) for i in members]
            arrived = bound.process_group.broadcast(sent, root, signature=bound.signature)
            for i, tensor in zip(members, arrived, strict=True):
                if group.rank != root:
                    write(i, tf.cast(tensor, specs[i].dtype))

    if specs:
        spread()


def _place(group: Group, root_rank: int) -> int:
    """The root's place in the group."""
    if root_rank not in group.ranks:
        known = f"0..{group.size - 1}" if group.is_world else f"one of {list(group.ranks)}"
        text = f"root_rank is {root_rank}; it must be {known}."
        raise WrongArgumentError(None, None, text)
    return group.ranks.index(root_rank)
