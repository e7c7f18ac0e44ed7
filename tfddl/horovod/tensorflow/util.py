"""The small helpers that scripts and tests import from here."""

import tensorflow as tf


def _executing_eagerly() -> bool:
    """Whether operations run as they are written."""
    return bool(tf.executing_eagerly())
