"""Whether the layer call that is running trains, which Keras 2 told by a global variable."""

from typing import Any

from tfddl._src.keras_hooks.patching import changed, private, private_module
from tfddl.errors import UnsupportedError

# Layer.__call__ keeps the context of the outermost call under this name
# (keras/src/layers/layer.py, Keras 3.11 to 3.15).
_STATE = "keras.src.backend.common.global_state"
_NAME = "current_call_ctx"


def training_of_call() -> bool | None:
    """The `training` argument of the layer call that is running; None where there is none.

    Raises:
        UnsupportedError: A Keras that we don't know.
    """
    context: Any = private(private_module(_STATE), "get_global_attribute")(_NAME)
    if context is None:
        return None
    if hasattr(context, "get_value"):  # Keras 3.12 and newer
        found: bool | None = context.get_value("training")
        return found
    if not hasattr(context, "training"):
        raise UnsupportedError(changed("CallContext.training is gone"))
    older: bool | None = context.training
    return older
