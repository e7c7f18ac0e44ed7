"""join: this rank has nothing more to give, and waits for the others."""

import tensorflow as tf

from tfddl._src.collectives.autograph import no_autograph
from tfddl._src.collectives.negotiation import CollectiveRequest, negotiate
from tfddl._src.collectives.process_sets import ProcessSet, group_of


@no_autograph
def join(*, name: str | None = None, process_set: ProcessSet | None = None) -> tf.Tensor:
    """Says that this rank has no more data, and returns once all ranks have said so.

    Usage::

        for batch in my_batches:  # some ranks have more of them
            train_step(batch)
        last = tfddl.join()
        tfddl.broadcast_variables(model.variables, root_rank=last)

    Until then the others go on: in their reductions (`allreduce`, and gradients) this rank counts
    as zeros. An average is still divided by the number of all ranks; gradients of tfddl's own
    optimizer and tape are divided by the count of the examples there are. Other operations
    (`allgather`, `broadcast`, `alltoall`, `reducescatter`) raise on all ranks that call them, as in
    Horovod. How long it waits has no limit; a rank that is lost is noticed, here and there. Call it
    when no other thread of this rank is in an operation of these ranks.

    Args:
        name: How messages call it.
        process_set: Between which ranks; without it, all.

    Returns:
        Scalar, int32: the rank that has joined last (it has taken part in most operations), the
        same on every rank.

    Raises:
        UnsupportedError: Between several hosts with several workers each, with RING or NCCL; or a
            process set that this rank isn't in.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    group = group_of(process_set)
    bound = negotiate(group, CollectiveRequest.of(group, "join", name, []), compare=False)
    return tf.gather(tf.constant(group.ranks), bound.process_group.join(signature=bound.signature))
