"""barrier."""

import tensorflow as tf

from tfddl.collectives.dense import ReduceOp, Reducing, reduce_dense
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
    reducing = Reducing(op=ReduceOp.SUM)
    reduce_dense(group, [tf.zeros([], tf.int32)], reducing, name=name or "barrier")
