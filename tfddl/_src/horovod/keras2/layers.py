"""Layers with the arguments that Keras 3 has dropped."""

import functools
import inspect
from typing import Any

import keras

from tfddl._src.horovod.keras2.deprecations import PATCH_MARK, DeprecationWarnings
from tfddl.errors import UnsupportedError


def install(deprecations: DeprecationWarnings) -> None:
    """Patches Keras. It is idempotent."""
    layer: Any = keras.layers.BatchNormalization
    original = layer.__init__
    if hasattr(original, PATCH_MARK):
        return

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if "fused" in kwargs:
            # How it is computed, not what.
            kwargs.pop("fused")
            deprecations.warn_once(
                "BatchNormalization(fused=…)", "BatchNormalization(…) without it."
            )
        for name in ("renorm", "virtual_batch_size"):
            if kwargs.pop(name, None):
                raise UnsupportedError(
                    f"BatchNormalization({name}=…) is of Keras 2. HINT: leave it out; "
                    "synchronized=True normalizes over the batches of all workers."
                )
        original(self, *args, **kwargs)

    # Keras looks at it in two ways, of which one sees through `wraps` (`Operation.__new__`).
    setattr(__init__, "__signature__", inspect.signature(original))  # noqa: B010
    setattr(__init__, PATCH_MARK, True)
    layer.__init__ = __init__
