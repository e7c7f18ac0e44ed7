"""Batch normalization over the examples of all workers."""

from typing import Any

import keras


def SyncBatchNormalization(fused: bool = False, **kwargs: Any) -> keras.layers.BatchNormalization:
    """A ``keras.layers.BatchNormalization(synchronized=True)``.

    It is Keras' own layer: models with it load anywhere. All ranks must train it together.

    Args:
        fused: Must be False, as in Horovod.
        **kwargs: As for `keras.layers.BatchNormalization`.

    Raises:
        ValueError: ``fused`` is True.
    """
    if fused:
        raise ValueError(
            "fused is True; SyncBatchNormalization must not be fused. HINT: leave it out."
        )
    return keras.layers.BatchNormalization(synchronized=True, **kwargs)
