"""An example that doesn't count is told by its sample weight.

The specs here are those of one example: `tf.TensorSpec`, nested as Keras takes it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfddl._src.data.structure import unbatched
from tfddl.errors import UnsupportedError

PADDING_WEIGHT = np.float32(-0.0)
"""The sample weight of an example that doesn't count.

Negative zero is zero to every loss and weighted metric, and yet can be told from a weight of zero
that the user gave."""


def num_weights(specs: Any) -> int:
    """How many of the leaves, at the end, are sample weights."""
    return len(tf.nest.flatten(specs[2])) if isinstance(specs, tuple) and len(specs) == 3 else 0


def has_float_weights(specs: Any) -> bool:
    """Whether examples of these specs have weights that can be -0.0."""
    leaves = tf.nest.flatten(specs)
    weights = leaves[len(leaves) - num_weights(specs) :]
    return bool(weights) and all(leaf.dtype.is_floating for leaf in weights)


def add_weight_specs(specs: Any) -> Any:
    """The same specs with weights that can be -0.0.

    Raises:
        UnsupportedError: There is no y, whose loss could be weighed.
    """
    if not isinstance(specs, tuple) or len(specs) not in (2, 3):
        raise UnsupportedError(
            "A worker without an example has to run one that doesn't count, and this needs y, "
            "whose loss can be weighed. It happens where the examples don't divide over the "
            "workers with batch_size=1, or where fewer examples than workers are left of an epoch "
            "that is taken up again. Use a batch_size of at least 2, or fewer workers."
        )
    if len(specs) == 2:
        return (*specs, tf.TensorSpec((), tf.float32))
    weights = tf.nest.map_structure(_floating, specs[2])
    return (*specs[:2], weights)


def weight_rows(rows: Sequence[np.ndarray], specs: Any, count: int) -> list[np.ndarray]:
    """The arrays of a batch with the weights that say whether it counts.

    Args:
        rows: An array per leaf; without the weights where `markable` added them.
        specs: What `markable` returned, or the specs of the data where weights can't be marked.
        count: How many examples count: all or none.
    """
    rows = list(rows)
    leaves = tf.nest.flatten(specs)
    if len(rows) < len(leaves):
        rows.append(np.ones(len(rows[0]), np.float32))
    if has_float_weights(specs):
        for i in range(len(leaves) - num_weights(specs), len(leaves)):
            weights = rows[i].astype(leaves[i].dtype.as_numpy_dtype, copy=False)
            # Adding zero turns a user's -0.0 into 0.0.
            rows[i] = weights + 0 if count else np.full_like(weights, PADDING_WEIGHT)
    return rows


def weight_batch(element: Any, counts: tf.Tensor) -> Any:
    """A batch as Keras takes it, with the weights that say whether it counts, in a graph."""
    wanted = add_weight_specs(unbatched(element))
    if len(element) == 2:
        examples = tf.shape(tf.nest.flatten(element)[0])[:1]
        element = (*element, tf.ones(examples, tf.float32))

    def weigh(given: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
        given = tf.cast(given, spec.dtype)
        stand_in = tf.fill(tf.shape(given), tf.constant(-0.0, given.dtype))
        # A user's -0.0 becomes 0.0; an addition of zero would be optimized away.
        return tf.where(counts, tf.where(given == 0, tf.zeros_like(given), given), stand_in)

    return (*element[:2], tf.nest.map_structure(weigh, element[2], wanted[2]))


def _floating(spec: tf.TensorSpec) -> tf.TensorSpec:
    return spec if spec.dtype.is_floating else tf.TensorSpec(spec.shape, tf.float32)
