"""What TensorFlow's runtime does between workers, and has no public door for.

Its coordination service, which `MultiWorkerMirroredStrategy` starts, keeps *notes*: short texts
that all ranks can read, whatever they are doing; nobody has to call anything together. A job of
one worker has none.
"""

import contextlib

import tensorflow as tf
from tensorflow.python.eager import context


def put(key: str, text: str) -> None:
    """Writes a note; what was under the key before is gone.

    Raises:
        OpError: TensorFlow's: the rank that keeps the notes has ended.
    """
    with contextlib.suppress(tf.errors.NotFoundError):
        context.context().delete_config_key_value(key)
    context.context().set_config_key_value(key, text)


def get(key: str) -> str:
    """Reads a note, and waits until it is there.

    Raises:
        OpError: As `put`.
    """
    text: str = context.context().get_config_key_value(key)
    return text


def end_collectives(text: str) -> None:
    """Ends all collectives of this process that wait, and all that follow.

    Args:
        text: What the `tf.errors.DeadlineExceededError` of each of them says.
    """
    context.context().abort_collective_ops(tf.errors.DEADLINE_EXCEEDED, text)
