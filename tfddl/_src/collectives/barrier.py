"""barrier: all ranks wait until all have called it."""

import tensorflow as tf

from tfddl._src.collectives.autograph import no_autograph
from tfddl._src.collectives.fusion import all_gather
from tfddl._src.collectives.negotiation import CollectiveRequest, negotiate, serialized
from tfddl._src.collectives.process_sets import ProcessSet, group_of


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
        all_gather(bound, tf.zeros([1], tf.int32))

    wait()
