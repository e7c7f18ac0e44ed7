"""The Dice coefficient, as losses and as a metric.

Of two masks it is twice their intersection over the sum of their areas, 2 |A ∩ B| / (|A| + |B|): 1
where they are equal, 0 where they are disjoint.

On several workers: a mean over *examples* is the weighted mean of the workers' means, so that
`dice_crossentropy` and `dice` are on N workers what they are in one process. The Dice over a *whole
batch* is a ratio of sums, which isn't the mean of the parts' ratios: with `dice_coefficient` and
`dice_loss` each worker computes value and gradient of its own batch, and their mean is close to
one process' value, not equal. `exact_dice_loss` sums numerator and denominator over the workers
first, and is equal.

References:
    V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation, Milletari,
    Navab, Ahmadi, 2016, https://arxiv.org/abs/1606.04797: the soft Dice as a loss.
"""

from typing import Any

import keras
from keras import ops

from tfddl._src.gradients import sum_over_ranks

_PACKAGE = "tfddl.segmentation"


@keras.saving.register_keras_serializable(_PACKAGE)
def dice_coefficient(y_true: Any, y_pred: Any, smooth: float = 1.0) -> Any:
    """The Dice coefficient over the whole batch, as if it were one large image.

    On several workers a rank's value is that of its own batch; see the top of this file.

    Args:
        y_true: Masks, any shape, 0 or 1.
        y_pred: Probabilities of the same shape, 0..1.
        smooth: Added to numerator and denominator, so that two empty masks have a Dice of 1.

    Returns:
        A scalar in float32.
    """
    y_true, y_pred = ops.cast(y_true, "float32"), ops.cast(y_pred, "float32")
    intersection = ops.sum(y_true * y_pred)
    return (2 * intersection + smooth) / (ops.sum(y_true) + ops.sum(y_pred) + smooth)


@keras.saving.register_keras_serializable(_PACKAGE)
def dice_loss(y_true: Any, y_pred: Any) -> Any:
    """The negative `dice_coefficient` of the batch: -1 is perfect.

    On several workers a rank's value is that of its own batch; see the top of this file.

    Args:
        y_true: Masks, any shape, 0 or 1.
        y_pred: Probabilities of the same shape, 0..1.

    Returns:
        A scalar in float32.
    """
    return -dice_coefficient(y_true, y_pred)


@keras.saving.register_keras_serializable(_PACKAGE)
def exact_dice_loss(y_true: Any, y_pred: Any) -> Any:
    """The negative `dice_coefficient` of the global batch, over the images of all workers.

    In training (in `fit`, or within `tfddl.loss_count` in a custom loop, around the loss *and*
    `apply_gradients`) both sums are summed over the workers: all have the same value, and train as
    one process with the global batch would. All ranks must compute it together there.

    In `evaluate` and in validation it is that of the worker's own batch, like `dice_loss`, since
    workers may run different numbers of steps there. The mean over all batches is logged, weighted
    by their numbers of images.

    Sample weights aren't supported: Keras would multiply them with the loss of the whole batch.

    Args:
        y_true: Masks, any shape, 0 or 1.
        y_pred: Probabilities of the same shape, 0..1.

    Returns:
        A scalar in float32.
    """
    y_true, y_pred = ops.cast(y_true, "float32"), ops.cast(y_pred, "float32")
    own = ops.stack([ops.sum(y_true * y_pred), ops.sum(y_true) + ops.sum(y_pred)])
    sums = sum_over_ranks(own)
    # The quotient of the sums, not the sum of quotients: that is what one process would compute of
    # all images.
    return -(2 * sums[0] + 1) / (sums[1] + 1)


@keras.saving.register_keras_serializable(_PACKAGE)
def dice_crossentropy(y_true: Any, y_pred: Any) -> Any:
    """One minus each image's own soft Dice, plus its mean binary cross-entropy.

    The Dice doesn't depend on the size of the mask; the cross-entropy has a useful gradient at
    every pixel from the first step on. A loss per example: exact on several workers.

    Args:
        y_true: Masks, (batch, height, width, 1), 0 or 1.
        y_pred: Probabilities of the same shape, 0..1.

    Returns:
        One loss per image, (batch,), in float32.
    """
    crossentropy = keras.losses.binary_crossentropy(ops.cast(y_true, "float32"), y_pred)
    return 1 - _image_dice(y_true, y_pred, smooth=1.0) + ops.mean(crossentropy, axis=(1, 2))


@keras.saving.register_keras_serializable(_PACKAGE)
def dice(y_true: Any, y_pred: Any) -> Any:
    """The Dice coefficient of each image's mask: the pixels with a probability of at least 0.5.

    Given to `compile(metrics=[dice])`, its mean over the examples; exact on several workers.

    Args:
        y_true: Masks, (batch, height, width, 1), 0 or 1.
        y_pred: Probabilities of the same shape, 0..1.

    Returns:
        One coefficient per image, (batch,), in float32; 1 where both masks are empty.
    """
    # Matters for empty masks only: otherwise the denominator is at least 1.
    return _image_dice(y_true, ops.cast(y_pred >= 0.5, "float32"), smooth=1e-7)


def _image_dice(y_true: Any, y_pred: Any, *, smooth: float) -> Any:
    y_true, y_pred = ops.cast(y_true, "float32"), ops.cast(y_pred, "float32")
    pixels = tuple(range(1, len(y_pred.shape)))
    intersection = ops.sum(y_true * y_pred, axis=pixels)
    areas = ops.sum(y_true, axis=pixels) + ops.sum(y_pred, axis=pixels)
    return (2 * intersection + smooth) / (areas + smooth)
