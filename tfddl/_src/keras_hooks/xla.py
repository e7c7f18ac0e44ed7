"""Functions that XLA compiles within a step that it doesn't."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def compiled(function: Callable[[], Any]) -> Any:
    """Calls a function, in the graph that is being made, as one computation of XLA's.

    What it uses of the graph becomes its input. TensorFlow compiles it once for each combination of
    the inputs' shapes, when they first come.
    """
    return tf.function(function, autograph=False, jit_compile=True)()
