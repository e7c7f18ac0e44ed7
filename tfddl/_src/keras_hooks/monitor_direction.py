"""Whether Keras knows if a monitored metric gets better upwards or downwards."""

from typing import Any

from tfddl._src.keras_hooks.patching import private


def finds_direction(callback: Any) -> bool:
    """Lets a callback that monitors a metric find its direction, at the end of an epoch.

    Args:
        callback: An EarlyStopping, ModelCheckpoint or ReduceLROnPlateau in `fit`.

    Returns:
        False where it has to be told, by ``mode``: as for a metric that is a function.

    Raises:
        UnsupportedError: A Keras that we don't know.
    """
    # Sets `monitor_op`, by which callbacks know that it was done (keras/src/callbacks/
    # monitor_callback.py, Keras 3.11 to 3.15).
    find = private(callback, "_set_monitor_op")
    try:
        find()
    except ValueError:
        return False
    return True
