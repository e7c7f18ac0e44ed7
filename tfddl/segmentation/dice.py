"""The Dice coefficient, as a loss and as a metric.

For two masks it is twice what they share over what they cover together, 2 |A ∩ B| / (|A| + |B|):
1 where they are equal, 0 where they don't touch.

What several workers compute: a mean over *examples* is put together exactly from any shares of a
batch, so `dice_crossentropy` and `dice` give on N workers what they give in one process. A Dice
over the *whole batch* is a ratio of sums over all its images, which is not the mean of such ratios
over parts of it: with `dice_coefficient` and `dice_loss` each worker computes the value (and the
gradient) of its own share, and the workers' mean of them is near one process' value, not equal.
`exact_dice_loss` adds up the sums of all workers first, and is equal.
"""

from typing import Any

import keras
from keras import ops

from tfddl._src.gradients import sum_over_ranks

_PACKAGE = "tfddl.segmentation"


@keras.saving.register_keras_serializable(_PACKAGE)
def dice_coefficient(y_true: Any, y_pred: Any, smooth: float = 1.0) -> Any:
    """The Dice coefficient over the whole batch, as if it were one large image.

    Over several workers a rank's value is that of its own share; see the top of this file.

    Args:
        y_true: Masks, any shape, 0 or 1.
        y_pred: Probabilities of the same shape, 0..1.
        smooth: Added above and below, so that two empty masks have a Dice of 1.

    Returns:
        A scalar in float32.
    """
    y_true, y_pred = ops.cast(y_true, "float32"), ops.cast(y_pred, "float32")
    shared = ops.sum(y_true * y_pred)
    return (2 * shared + smooth) / (ops.sum(y_true) + ops.sum(y_pred) + smooth)


@keras.saving.register_keras_serializable(_PACKAGE)
def dice_loss(y_true: Any, y_pred: Any) -> Any:
    """The negative `dice_coefficient` of the batch: -1 is perfect.

    Over several workers a rank's value is that of its own share; see the top of this file.

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

    In training (in `fit`, or within `tfddl.loss_count` in a loop by hand, around the loss *and*
    `apply_gradients`) the workers add up both sums of the ratio: all have the same value, and
    train as one process with the whole batch would. All ranks must compute it together there.

    In `evaluate` and in validation it is that of the worker's own batch, like `dice_loss`: workers
    may take different numbers of steps there. What is logged is the mean over the batches of all
    workers, by their numbers of images.

    Not meant for sample weights, which Keras multiplies with the loss of the whole batch.

    Args:
        y_true: Masks, any shape, 0 or 1.
        y_pred: Probabilities of the same shape, 0..1.

    Returns:
        A scalar in float32.
    """
    y_true, y_pred = ops.cast(y_true, "float32"), ops.cast(y_pred, "float32")
    own = ops.stack([ops.sum(y_true * y_pred), ops.sum(y_true) + ops.sum(y_pred)])
    sums = sum_over_ranks(own)
    return -(2 * sums[0] + 1) / (sums[1] + 1)


@keras.saving.register_keras_serializable(_PACKAGE)
def dice_crossentropy(y_true: Any, y_pred: Any) -> Any:
    """One minus each image's own soft Dice, plus its mean binary cross-entropy.

    The Dice looks at the mask as a whole, however small it is; the cross-entropy has a useful
    gradient at every pixel from the first step on. A loss of examples: exact on several workers.

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
    # Too small to be seen in any other case: the denominator is then at least 1.
    return _image_dice(y_true, ops.cast(y_pred >= 0.5, "float32"), smooth=1e-7)


def _image_dice(y_true: Any, y_pred: Any, *, smooth: float) -> Any:
    y_true, y_pred = ops.cast(y_true, "float32"), ops.cast(y_pred, "float32")
    pixels = tuple(range(1, len(y_pred.shape)))
    shared = ops.sum(y_true * y_pred, axis=pixels)
    covered = ops.sum(y_true, axis=pixels) + ops.sum(y_pred, axis=pixels)
    return (2 * shared + smooth) / (covered + smooth)
