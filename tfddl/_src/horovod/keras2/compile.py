"""`compile` with the arguments that Keras 3 has dropped."""

import functools
from typing import Any

import keras

from tfddl._src.horovod.keras2.deprecations import PATCH_MARK, DeprecationWarnings
from tfddl._src.horovod.keras2.generators import replace_method
from tfddl.errors import UnsupportedError

_DROPPED = ("experimental_run_tf_function", "sample_weight_mode")
_REFUSED = {
    "target_tensors": "pass the targets to fit, or a tf.data.Dataset of inputs and targets",
}


def install(deprecations: DeprecationWarnings) -> None:
    """Patches Keras. It is idempotent."""
    # Patched where it is defined (`Trainer`): a `compile` of `keras.Model` itself would look like a
    # user's override, which Keras doesn't call when it loads a model.
    home: Any = next(base for base in keras.Model.__mro__ if "compile" in vars(base))
    original = home.compile
    if hasattr(original, PATCH_MARK):
        return

    @functools.wraps(original)
    def compile(self: Any, *args: Any, **kwargs: Any) -> Any:
        for name in _DROPPED:
            if name in kwargs:
                kwargs.pop(name)
                deprecations.warn_once(f"compile({name}=…)", "compile(…) without it.")
        for name, modern in _REFUSED.items():
            if kwargs.pop(name, None) is not None:
                raise UnsupportedError(
                    f"compile({name}=…) is of TensorFlow 1's graphs. HINT: {modern}."
                )
        return original(self, *args, **kwargs)

    replace_method(home, original, compile)
