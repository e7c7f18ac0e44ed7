"""Sample weights, which tell padding examples from those that count.

The specs here are those of one example: `tf.TensorSpec`, nested as Keras takes it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfddl._src.data.structure import unbatched
from tfddl.errors import UnsupportedError

PADDING_WEIGHT = np.float32(-0.0)
"""The sample weight of a padding example.

Negative zero equals zero (IEEE 754), so it is zero to every loss and weighted metric; its sign bit
tells it from a weight of zero that the user gave."""


def num_weights(specs: Any) -> int:
    """The number of leaves, at the end, that are sample weights."""
    return len(tf.nest.flatten(specs[2])) if isinstance(specs, tuple) and len(specs) == 3 else 0


def has_float_weights(specs: Any) -> bool:
    """Whether examples of these specs have weights, and all of them can be -0.0."""
    leaves = tf.nest.flatten(specs)
    weights = leaves[len(leaves) - num_weights(specs) :]
    return bool(weights) and all(leaf.dtype.is_floating for leaf in weights)


def add_weight_specs(specs: Any) -> Any:
    """The same specs, with sample weights that can be -0.0.

    Raises:
        UnsupportedError: There is no y, so there is no loss to weight.
    """
    if not isinstance(specs, tuple) or len(specs) not in (2, 3):
        raise UnsupportedError(
            "Some worker needs a padding example, whose loss is weighted by 0, but the data has no "
            "y to compute a loss with. It happens with batch_size=1 where the number of workers "
            "doesn't divide that of the examples, or where fewer examples than workers are left of "
            "an epoch that is resumed. HINT: use a batch_size of at least 2, or fewer workers."
        )
    if len(specs) == 2:
        return (*specs, tf.TensorSpec((), tf.float32))
    weights = tf.nest.map_structure(_floating, specs[2])
    return (*specs[:2], weights)


def weight_rows(rows: Sequence[np.ndarray], specs: Any, count: int) -> list[np.ndarray]:
    """The arrays of a batch, with sample weights that say whether it counts.

    Args:
        rows: An array per leaf; without weights where only `add_weight_specs` has added them.
        specs: What `add_weight_specs` returned; or the data's own, whose weights, if they have
            any that can't be -0.0, then stay as they are.
        count: How many examples count: all or none, 0.
    """
    rows = list(rows)
    leaves = tf.nest.flatten(specs)
    if len(rows) < len(leaves):
        rows.append(np.ones(len(rows[0]), np.float32))
    if has_float_weights(specs):
        for i in range(len(leaves) - num_weights(specs), len(leaves)):
            weights = rows[i].astype(leaves[i].dtype.as_numpy_dtype, copy=False)
            # -0.0 + 0 is 0.0: a user's -0.0 must not look like a padding example.
            rows[i] = weights + 0 if count else np.full_like(weights, PADDING_WEIGHT)
    return rows


def weight_batch(element: Any, counts: tf.Tensor) -> Any:
    """A batch with sample weights that say whether it counts, in a graph.

    Args:
        element: (x, y) or (x, y, sample_weight), batched.
        counts: Boolean scalar.

    Returns:
        (x, y, sample_weight), all weights -0.0 where the batch doesn't count.

    Raises:
        UnsupportedError: There is no y.
    """
    wanted = add_weight_specs(unbatched(element))
    if len(element) == 2:
        examples = tf.shape(tf.nest.flatten(element)[0])[:1]
        element = (*element, tf.ones(examples, tf.float32))

    def set_weights(given: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
        given = tf.cast(given, spec.dtype)
        padding = tf.fill(tf.shape(given), tf.constant(-0.0, given.dtype))
        # A user's -0.0 becomes 0.0. Not by adding 0, which TensorFlow's graph optimizer (grappler's
        # arithmetic optimizer) removes.
        return tf.where(counts, tf.where(given == 0, tf.zeros_like(given), given), padding)

    return (*element[:2], tf.nest.map_structure(set_weights, element[2], wanted[2]))


def _floating(spec: tf.TensorSpec) -> tf.TensorSpec:
    return spec if spec.dtype.is_floating else tf.TensorSpec(spec.shape, tf.float32)
