"""The U-Net: an encoder, a decoder and skip connections between their levels."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from tfddl.errors import ShardingError


def unet(
    image_shape: tuple[int, int, int],
    *,
    filters: Sequence[int] = (8, 16, 32, 64),
    scale: float = 1.0,
    momentum: float = 0.99,
    name: str = "unet",
) -> keras.Model:
    """Builds a U-Net that gives every pixel a probability.

    Each level is twice convolution, BatchNormalization and ReLU; 2x2 max-pooling leads down,
    transposed convolutions lead up, and every level of the decoder sees the encoder's output of
    the same size.

    Args:
        image_shape: (height, width, channels) of one image. Height and width must be divisible by
            2 ** (levels - 1), as each level but the last halves them.
        filters: How many filters the convolutions of each level have, from the full size down;
            its length is the number of levels.
        scale: What the input is multiplied by. 1 / 255 makes a model that takes raw bytes.
        momentum: Of the moving statistics of BatchNormalization, 0..1. They follow the data over
            about 1 / (1 - momentum) steps: take less than 0.99 where training is only a few
            hundred steps long, or validation lags behind.
        name: Of the model.

    Returns:
        An uncompiled model from (batch, height, width, channels) to (batch, height, width, 1), a
        probability in float32 under every dtype policy.

    Raises:
        ShardingError: There is no level, a number of filters is not positive, or the image can't be
            halved often enough.

    References:
        U-Net: Convolutional Networks for Biomedical Image Segmentation, 2015,
        https://arxiv.org/abs/1505.04597. Here the convolutions are padded, so that the output is
        as large as the input.
    """
    _check(image_shape, filters)
    inputs = keras.Input(image_shape, name="image")
    # Always there, also for a scale of 1: checkpoints of one fit the other.
    x = layers.Rescaling(scale, name="rescale")(inputs)

    skips = []
    for level, width in enumerate(filters[:-1]):
        x = _convolve_twice(x, width, momentum=momentum, name=f"down{level}")
        skips.append(x)
        x = layers.MaxPooling2D(2, name=f"down{level}_pool")(x)

    x = _convolve_twice(x, filters[-1], momentum=momentum, name="bottom")

    for level in reversed(range(len(skips))):
        width = filters[level]
        x = layers.Conv2DTranspose(width, 2, strides=2, name=f"up{level}_transpose")(x)
        x = layers.Concatenate(name=f"up{level}_concat")([skips[level], x])
        x = _convolve_twice(x, width, momentum=momentum, name=f"up{level}")

    # float32 even under mixed precision: a float16 probability next to 1 has no logarithm to train.
    outputs = layers.Conv2D(1, 1, activation="sigmoid", dtype="float32", name="mask")(x)
    return keras.Model(inputs, outputs, name=name)


def _check(image_shape: tuple[int, int, int], filters: Sequence[int]) -> None:
    if not filters or any(width < 1 for width in filters):
        raise ShardingError(
            f"filters are {list(filters)}; expected one positive number for each level, "
            "such as 8, 16, 32, 64."
        )
    height, width = image_shape[:2]
    multiple = 2 ** (len(filters) - 1)
    if height < 1 or width < 1 or height % multiple or width % multiple:
        raise ShardingError(
            f"The images are {height} x {width}, but a U-Net of {len(filters)} levels halves them "
            f"{len(filters) - 1} times: height and width must be multiples of {multiple}. "
            "HINT: choose another image size, or fewer levels (filters)."
        )


def _convolve_twice(x: Any, width: int, *, momentum: float, name: str) -> Any:
    for index in (1, 2):
        # No bias: the normalization that follows subtracts it again, and it would have no gradient.
        x = layers.Conv2D(
            width,
            3,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            name=f"{name}_conv{index}",
        )(x)
        x = layers.BatchNormalization(momentum=momentum, name=f"{name}_norm{index}")(x)
        x = layers.ReLU(name=f"{name}_relu{index}")(x)
    return x
