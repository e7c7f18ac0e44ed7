"""barrier: all ranks wait until all have called it."""

import tensorflow as tf

from tfddl._src.collectives.autograph import no_autograph
from tfddl._src.collectives.negotiation import CollectiveRequest, negotiate, serialized
from tfddl._src.collectives.process_sets import ProcessSet, group_of
from tfddl._src.comm.native import ReduceOp


@no_autograph
def barrier(*, name: str | None = None, process_set: ProcessSet | None = None) -> None:
    """Returns once every rank has called it.

    Inside a `tf.function`, the ops after it run once every rank has come.

    Args:
        name: How messages call it.
        process_set: Between which ranks; without it, all.

    Raises:
        DisagreementOpError: Ranks called something else.
        UnsupportedError: A process set that this rank isn't in.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    group = group_of(process_set)

    @serialized(group)
    def wait() -> None:
        bound = negotiate(group, CollectiveRequest.of(group, "barrier", name, []))
        # Not a gather, which ranks that have joined can't be left out of.
        bound.process_group.all_reduce(
            [tf.zeros([1], tf.int32)], ReduceOp.SUM, signature=bound.signature
        )

    wait()
