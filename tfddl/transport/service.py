"""What TensorFlow's runtime does between workers, and has no public API for."""

import tensorflow as tf
from tensorflow.python.eager import context


def end_collectives(text: str) -> None:
    """Ends all collectives of this process that wait, and all that follow.

    Args:
        text: What the `tf.errors.DeadlineExceededError` of each of them says.
    """
    context.context().abort_collective_ops(tf.errors.DEADLINE_EXCEEDED, text)
