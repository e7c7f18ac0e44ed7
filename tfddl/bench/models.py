"""The models that are trained to measure the speed of it, and their data."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfddl.bench.config import Workload
from tfddl.models import unet

_CLASSES = 1000


def make_model(workload: Workload) -> keras.Model:
    """The model, its weights at random, not compiled."""
    return _MODELS[workload.model](workload)


def make_optimizer(workload: Workload) -> keras.optimizers.Optimizer:
    """What the model is usually trained with."""
    if workload.model == "embedding":
        return keras.optimizers.SGD(1e-2)  # The one that touches only the rows of a batch.
    if workload.model in ("resnet50", "mlp"):
        return keras.optimizers.SGD(1e-2, momentum=0.9)
    return keras.optimizers.Adam(1e-3)


def make_loss(workload: Workload) -> keras.losses.Loss:
    """The mean over the batch."""
    if workload.model == "unet":
        return keras.losses.BinaryCrossentropy()
    return keras.losses.SparseCategoricalCrossentropy()


def make_batch(workload: Workload, rank: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The examples that a rank has in every step: nothing has to be read or decoded."""
    rng = np.random.default_rng(rank)
    shape = (workload.batch_size, *workload.shape)
    if workload.vocabulary:
        x: Any = rng.integers(0, workload.vocabulary, shape, np.int32)
    else:
        x = rng.random(shape, np.float32)
    y: Any
    if workload.model == "unet":
        y = rng.integers(0, 2, (*shape[:-1], 1)).astype(np.float32)
    else:
        y = rng.integers(0, _CLASSES, workload.batch_size)
    return tf.constant(x), tf.constant(y)


def gradient_mb(model: keras.Model) -> float:
    """MB of all gradients of one step, sparse ones as if they were dense."""
    variables = model.trainable_variables
    return sum(int(np.prod(v.shape)) * tf.as_dtype(v.dtype).size for v in variables) / 1e6


def _unet(workload: Workload) -> keras.Model:
    height, width, channels = workload.shape
    return unet((height, width, channels), filters=(8, 16, 32, 64, 128))


def _resnet50(workload: Workload) -> keras.Model:
    return keras.applications.ResNet50(weights=None, input_shape=workload.shape, classes=_CLASSES)


def _classifier(workload: Workload, *hidden: layers.Layer) -> keras.Model:
    dtype = "int32" if workload.vocabulary else "float32"
    ends = layers.Dense(_CLASSES, activation="softmax")
    return keras.Sequential([keras.Input(workload.shape, dtype=dtype), *hidden, ends])


def _mlp(workload: Workload, *units: int) -> keras.Model:
    hidden = [layers.Dense(n, activation="relu") for n in units]
    return _classifier(workload, layers.Flatten(), *hidden)


def _embedding(workload: Workload) -> keras.Model:
    embedding = layers.Embedding(workload.vocabulary, 64)
    return _classifier(workload, embedding, layers.GlobalAveragePooling1D())


def _transformer(workload: Workload, width: int = 64, blocks: int = 2) -> keras.Model:
    inputs = keras.Input(workload.shape, dtype="int32")
    x = layers.Embedding(workload.vocabulary, width)(inputs)
    for _ in range(blocks):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(4, width // 4)(x, x))
        hidden = layers.Dense(4 * width, activation="relu")(x)
        x = layers.LayerNormalization()(x + layers.Dense(width)(hidden))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(_CLASSES, activation="softmax")(x))


_MODELS: dict[str, Callable[[Workload], keras.Model]] = {
    "unet": _unet,
    "resnet50": _resnet50,
    "mlp": lambda workload: _mlp(workload, 1024, 1024, 1024),
    "mlp100k": lambda workload: _mlp(workload, 80, 80),
    "lstm": lambda workload: _classifier(workload, layers.LSTM(64)),
    "transformer": _transformer,
    "embedding": _embedding,
}
