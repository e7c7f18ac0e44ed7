"""`keras.layers.BatchNormalization(synchronized=True)` normalizes by the batch of all ranks.

Keras' `moments(synchronized=True)` (keras/src/backend/tensorflow/nn.py) sums over the replicas of a
`tf.distribute` strategy. Without one it silently takes the rank's own batch. With one it computes
the variance as E[x²] − E[x]² in float32, which cancels where the mean is far from zero (a variance
of 6.8e-3 for 5.7e-3 at mean 100). Everything else stays Keras': the moving statistics, which are
then alike on all ranks, renorm, and what is saved.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfddl._src.keras_hooks.patching import private, wrap_method
from tfddl._src.moments import moments_of_all_ranks
from tfddl._src.runtime import current, is_started
from tfddl._src.step_context import current_step


def install() -> None:
    """Hooks into `BatchNormalization._moments`."""
    # BatchNormalization.call (keras/src/layers/normalization/batch_normalization.py) takes mean and
    # variance of the batch from it, without the reduced dimensions.
    wrap_method(keras.layers.BatchNormalization, "_moments", ("inputs", "mask"), _moments)


def _moments(original: Callable[..., Any], self: Any, inputs: Any, mask: Any) -> Any:
    is_virtual = is_started() and current_step().virtual_workers is not None
    is_job = is_started() and (current().cluster.size > 1 or is_virtual)
    if not (self.synchronized and is_job):
        return original(self, inputs, mask)
    if mask is not None:
        mask = tf.expand_dims(tf.convert_to_tensor(mask), -1)
    return moments_of_all_ranks(
        tf.convert_to_tensor(inputs), private(self, "_reduction_axes"), mask
    )
