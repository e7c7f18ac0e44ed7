"""Moving statistics of BatchNormalization, pooled over the ranks.

Every rank normalizes by its own batch, and by itself would keep moving statistics of its own
examples only: what rank 0 saves, and what each rank validates with, would know nothing of the
others' data. The pooled mean is the mean of the means, by the number of examples; the pooled
variance is the mean of the variances plus the variance of the means, since the mean of the
variances alone leaves out how far the ranks lie apart.

With ``synchronized=True`` (see `sync_batch_norm`) there is nothing to pool.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfddl._src.collectives import DisplayName, ReduceOp, allreduce
from tfddl._src.keras_hooks.patching import private
from tfddl._src.runtime import current

_ROUNDING = 1e-6
"""Relative: about ten times float32's (1.2e-7), which squares of means are rounded by."""

_AVERAGED = ("moving_stddev", "renorm_mean", "renorm_stddev")
"""Further state of a BatchNormalization with renorm=True, in Keras that has it."""


def sync_moving_statistics(model: keras.Model, *, count: Any = None) -> None:
    """Makes the moving statistics of BatchNormalization those of all ranks' examples.

    For loops written by hand, before a validation or a save; `fit` pools in every step. All ranks
    must call it together, having trained on different examples since they last had the same
    statistics.

    Args:
        model: With any number of BatchNormalization layers, also in models within it.
        count: Scalar, >= 0: how many examples this rank has trained on since. Without it, every
            rank has the same weight.

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
        tf.concat([[weight], weight * means], axis=0), ReduceOp.SUM, name=DisplayName("means")
    )
    pooled = first[1:] / first[0]
    # Around the pooled mean, because E[x²] - E[x]² would cancel where means are large.
    spread = allreduce(
        weight * (variances + (means - pooled) ** 2), ReduceOp.SUM, name=DisplayName("spread")
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
    changed then travels with the gradients, and all ranks get what one process would have that
    normalized each rank's examples by themselves: the step's mean is that of all examples, its
    variance that of all examples around it.
    """

    def __init__(self, model: keras.Model, local: Sequence[Any] = ()) -> None:
        """Notes the statistics' present values.

        Args:
            model: With any number of BatchNormalization layers, also in models within it.
            local: Variables that stay each rank's own.
        """
        own = {id(variable) for variable in local}
        layers = [
            layer
            for layer in _layers(model)
            if layer.trainable
            and layer.momentum < 1
            and not layer.synchronized
            and id(layer.moving_mean) not in own
        ]
        self.variables = [
            *(layer.moving_mean for layer in layers),
            *(layer.moving_variance for layer in layers),
            *(getattr(layer, n) for layer in layers for n in _AVERAGED if hasattr(layer, n)),
        ]
        """Those that `take` makes alike on all ranks."""
        self._lengths = [variable.shape[0] for variable in self.variables]
        self._num_means = sum(self._lengths[: len(layers)])
        self._rates = [
            1 - layer.momentum for layer in layers for _ in range(layer.moving_mean.shape[0])
        ]
        self._before = _joined(self.variables)

    def change(self, dtype: tf.DType) -> tf.Tensor:
        """What this rank's own batch has changed of the variables, and the means' changes squared.

        Returns:
            Shape (n,), where n is known and the same on all ranks.
        """
        # One tensor: many small ones cost more time than what is computed with them.
        changes = tf.cast(_joined(self.variables), dtype) - tf.cast(self._before, dtype)
        return tf.concat([changes, changes[: self._num_means] ** 2], axis=0)

    def take(self, changes: tf.Tensor) -> None:
        """Sets the variables, given the mean over the ranks, by examples, of `change`."""
        if not self.variables:
            return
        num_means = self._num_means
        num_averaged = sum(self._lengths) - 2 * num_means
        means, variances, averaged, squares = tf.split(
            changes, [num_means, num_means, num_averaged, num_means]
        )
        # E[x²] - E[x]² of the ranks' means: how far apart their batches lie, at the rate of the
        # moving variance. Where it is no more than the rounding of the squares, it is 0.
        spread = squares - means**2
        spread = tf.where(spread > _ROUNDING * squares, spread, tf.zeros_like(spread))
        # Not variances + spread / rate: TensorFlow adds that to what was before in one operation or
        # two, in a process' first step otherwise than later, and so rounds otherwise: a resumed run
        # wouldn't end in the same bits.
        rates = tf.constant(self._rates, changes.dtype)
        pooled = tf.concat([means, (rates * variances + spread) / rates, averaged], axis=0)
        after = tf.split(tf.cast(self._before, pooled.dtype) + pooled, self._lengths)
        for variable, new in zip(self.variables, after, strict=True):
            variable.assign(tf.cast(new, variable.dtype))


def synchronized(model: Any) -> list[Any]:
    """The moving statistics that need no pooling: they are made of the moments of all ranks."""
    layers = [layer for layer in _layers(model) if layer.synchronized]
    return [variable for layer in layers for variable in layer.non_trainable_variables]


def _joined(variables: Sequence[Any]) -> tf.Tensor:
    """The values of variables of one dimension, concatenated, in the widest of their dtypes."""
    values = [tf.convert_to_tensor(variable) for variable in variables]
    wide = tf.float64 if any(value.dtype == tf.float64 for value in values) else tf.float32
    return tf.concat([tf.zeros(0, wide), *(tf.cast(value, wide) for value in values)], axis=0)


def _layers(model: Any) -> list[Any]:
    """The BatchNormalization layers that have state, wherever in the model."""
    # Layer._flatten_layers (keras/src/layers/layer.py): `model.layers` has those of the top only.
    return [
        layer
        for layer in private(model, "_flatten_layers")()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.built
    ]
