"""Networks to train, each a function that returns a plain, uncompiled Keras model.

Usage::

    from tfddl.models import unet

    model = unet((96, 96, 3), filters=(8, 16, 32, 64))
    model.compile("adam", loss="binary_crossentropy")
"""

from tfddl.models.unet import unet as unet

__all__ = ["unet"]
