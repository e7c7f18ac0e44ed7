"""Moving statistics of BatchNormalization, pooled over the ranks."""

from typing import Any

import keras
import tensorflow as tf

from tfddl.collectives import ReduceOp, grouped_allreduce


def pool_batch_normalization(model: Any) -> None:
    """Makes the moving statistics those of all ranks' data. All ranks must call it together.

    Every rank has seen its own examples only. The pooled mean is the mean of the means; the pooled
    variance is the mean of the variances plus the variance of the means, since the mean of the
    variances alone leaves out how far the ranks lie apart.
    """
    layers = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.built
    ]
    if not layers:
        return
    names = ("moving_mean", "moving_variance")
    means, variances = ([tf.convert_to_tensor(getattr(la, n)) for la in layers] for n in names)
    pooled_means = grouped_allreduce(means, ReduceOp.AVERAGE, name="batch means")
    # Around the pooled mean, because the difference of two large squares would cancel.
    spread = [v + (m - p) ** 2 for v, m, p in zip(variances, means, pooled_means, strict=True)]
    pooled_variances = grouped_allreduce(spread, ReduceOp.AVERAGE, name="batch variances")
    for layer, mean, variance in zip(layers, pooled_means, pooled_variances, strict=True):
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance)
