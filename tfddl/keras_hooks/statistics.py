"""Moving statistics of BatchNormalization, pooled over the ranks.

Every rank normalizes by its own batch, and by itself would keep moving statistics of its own
examples only: what rank 0 saves, and what each rank validates with, would know nothing of the
others' data. The pooled mean is the mean of the means, by the number of examples; the pooled
variance is the mean of the variances plus the variance of the means, since the mean of the
variances alone leaves out how far the ranks lie apart.

With ``synchronized=True`` (see `normalizing`) there is nothing to pool.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfddl.collectives import Label, ReduceOp, allreduce
from tfddl.runtime import current

_ROUNDING = 1e-6

_AVERAGED = ("moving_stddev", "renorm_mean", "renorm_stddev")
"""Further state of a BatchNormalization with renorm=True."""


def pool_batch_normalization(model: keras.Model, *, count: Any = None) -> None:
    """Makes the moving statistics of BatchNormalization those of all ranks' examples.

    For loops written by hand, before a validation or a save; `fit` pools in every step. All ranks
    must call it together, having trained on different examples since they last had the same
    statistics.

    Args:
        model: With any number of BatchNormalization layers, also in models within it.
        count: Scalar, >= 0: how many examples this rank has trained on since. Without it, every
            rank weighs the same.

    Raises:
        DisagreementError: Ranks have different models.
        NotInitializedError: `tfddl.init()` has not been called.
    """
    layers = _layers(model)
    if current().cluster.size == 1 or not layers:
        return
    weight = tf.constant(1.0, tf.float64) if count is None else tf.cast(count, tf.float64)
    means, variances = (
        tf.concat([tf.cast(getattr(layer, name), tf.float64) for layer in layers], axis=0)
        for name in ("moving_mean", "moving_variance")
    )
    first = allreduce(
        tf.concat([[weight], weight * means], axis=0), ReduceOp.SUM, name=Label("means")
    )
    pooled = first[1:] / first[0]
    # Around the pooled mean, because the difference of two large squares would cancel.
    spread = allreduce(
        weight * (variances + (means - pooled) ** 2), ReduceOp.SUM, name=Label("spread")
    )
    if float(first[0]) == 0:
        return  # Nobody has trained: the statistics are alike.
    lengths = [layer.moving_mean.shape[0] for layer in layers]
    for layer, mean, variance in zip(
        layers, tf.split(pooled, lengths), tf.split(spread / first[0], lengths), strict=True
    ):
        layer.moving_mean.assign(tf.cast(mean, layer.moving_mean.dtype))
        layer.moving_variance.assign(tf.cast(variance, layer.moving_variance.dtype))


class MovingStatistics:
    """The moving statistics of a model's BatchNormalization during one step of all ranks.

    Made when the step begins, when they are alike on all ranks. What the rank's own batch has
    changed then travels with the gradients, and all ranks arrive at what one process that had
    normalized every rank's examples by themselves would have: the step's mean is that of all
    examples, its variance that of all examples around it.
    """

    def __init__(self, model: keras.Model) -> None:
        """Notes where the statistics stand."""
        layers = [
            layer
            for layer in _layers(model)
            if layer.trainable and layer.momentum < 1 and not layer.synchronized
        ]
        self._moments = [(layer.moving_mean, layer.moving_variance) for layer in layers]
        self._rates = [1 - layer.momentum for layer in layers]
        self._averaged = [
            getattr(layer, name) for layer in layers for name in _AVERAGED if hasattr(layer, name)
        ]
        self._before = [tf.identity(tf.convert_to_tensor(v)) for v in self.variables]

    @property
    def variables(self) -> list[Any]:
        """What `take` makes alike on all ranks."""
        return [v for pair in self._moments for v in pair] + self._averaged

    def change(self, dtype: tf.DType) -> list[tf.Tensor]:
        """What this rank's own batch has changed: of each variable, and the means' squares."""
        changes = [
            tf.cast(tf.convert_to_tensor(v), dtype) - tf.cast(before, dtype)
            for v, before in zip(self.variables, self._before, strict=True)
        ]
        return changes + [change**2 for change in changes[: 2 * len(self._rates) : 2]]

    def take(self, changes: Sequence[tf.Tensor]) -> None:
        """Takes in the mean over the ranks, by examples, of what `change` gave."""
        own, squares = changes[: len(self._before)], changes[len(self._before) :]
        pooled = list(own)
        for i, (rate, square) in enumerate(zip(self._rates, squares, strict=True)):
            # How far apart the ranks' batches lie, at the rate of the moving variance. Where it is
            # no more than the rounding of the squares, it is none.
            spread = square - own[2 * i] ** 2
            spread = tf.where(spread > _ROUNDING * square, spread, tf.zeros_like(spread))
            pooled[2 * i + 1] += spread / rate
        for variable, before, change in zip(self.variables, self._before, pooled, strict=True):
            new = tf.cast(before, change.dtype) + change
            variable.assign(tf.cast(new, before.dtype))


def synchronized(model: Any) -> list[Any]:
    """The moving statistics that are alike without any pooling: of the moments of all ranks."""
    layers = [layer for layer in _layers(model) if layer.synchronized]
    return [variable for layer in layers for variable in layer.non_trainable_variables]


def _layers(model: Any) -> list[Any]:
    """The BatchNormalization layers that have state, wherever in the model."""
    return [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.built
    ]
