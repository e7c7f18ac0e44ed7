"""`keras.layers.BatchNormalization(synchronized=True)` normalizes by the batch of all ranks.

Without TensorFlow's strategy Keras would silently take the rank's own batch; with it, it subtracts
two large squares where the mean is far from zero. Everything else stays Keras': the moving
statistics, which are alike on all ranks then, renorm, and what is saved.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfddl._src.keras_hooks.patching import wrap_method
from tfddl._src.moments import moments_of_all_ranks
from tfddl._src.runtime import current, is_started


def install() -> None:
    """Puts the hook in place."""
    wrap_method(keras.layers.BatchNormalization, "_moments", ("inputs", "mask"), _moments)


def _moments(original: Callable[..., Any], self: Any, inputs: Any, mask: Any) -> Any:
    if not (self.synchronized and is_started() and current().cluster.size > 1):
        return original(self, inputs, mask)
    if mask is not None:
        mask = tf.expand_dims(tf.convert_to_tensor(mask), -1)
    return moments_of_all_ranks(tf.convert_to_tensor(inputs), self._reduction_axes, mask)
