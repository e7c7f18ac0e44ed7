"""barrier."""

import tensorflow as tf

from tfddl.collectives.agreement import Signature, agree
from tfddl.collectives.process_sets import ProcessSet, group_of


def barrier(*, name: str | None = None, process_set: ProcessSet | None = None) -> None:
    """Returns once every rank has called it.

    Inside a `tf.function`, the ops after it run once every rank has come.

    Args:
        name: How messages call it.
        process_set: Between which ranks; without it, all.

    Raises:
        RanksDisagreeError: Ranks called something else.
        UnsupportedError: A process set that this rank isn't in.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    group = group_of(process_set)
    word = tf.zeros([1], tf.int32)
    agree(group, Signature.of(group, "barrier", name, [])).transport.all_gather(word)
