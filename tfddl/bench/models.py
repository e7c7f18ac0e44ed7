"""The models that are trained to measure the speed of it, and their data."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfddl.bench.workloads import Workload
from tfddl.models import unet

_FILTERS = (8, 16, 32, 64, 128)
_CLASSES = 1000
_UNITS = 1024


def make_model(workload: Workload) -> keras.Model:
    """The model, its weights at random, not compiled."""
    shape = (workload.image_size, workload.image_size, 3)
    makers: dict[str, Callable[[], keras.Model]] = {
        "unet": lambda: unet(shape, filters=_FILTERS),
        "resnet50": lambda: keras.applications.ResNet50(
            weights=None, input_shape=shape, classes=_CLASSES
        ),
        "mlp": lambda: keras.Sequential(
            [
                keras.Input(shape),
                keras.layers.Flatten(),
                *(keras.layers.Dense(_UNITS, activation="relu") for _ in range(3)),
                keras.layers.Dense(_CLASSES, activation="softmax"),
            ]
        ),
    }
    return makers[workload.model]()


def make_optimizer(workload: Workload) -> keras.optimizers.Optimizer:
    """What the model is usually trained with."""
    if workload.model == "unet":
        return keras.optimizers.Adam(1e-3)
    return keras.optimizers.SGD(1e-2, momentum=0.9)


def make_loss(workload: Workload) -> keras.losses.Loss:
    """The mean over the batch."""
    if workload.model == "unet":
        return keras.losses.BinaryCrossentropy()
    return keras.losses.SparseCategoricalCrossentropy()


def make_batch(workload: Workload, rank: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The examples that a rank has in every step: nothing has to be read or decoded."""
    rng = np.random.default_rng(rank)
    shape = (workload.batch_size, workload.image_size, workload.image_size)
    x = rng.random((*shape, 3), np.float32)
    if workload.model == "unet":
        y: Any = rng.integers(0, 2, (*shape, 1)).astype(np.float32)
    else:
        y = rng.integers(0, _CLASSES, workload.batch_size)
    return tf.constant(x), tf.constant(y)


def gradient_bytes(model: keras.Model) -> int:
    """Bytes of all gradients of one step."""
    return sum(int(np.prod(v.shape)) * tf.as_dtype(v.dtype).size for v in model.trainable_variables)
