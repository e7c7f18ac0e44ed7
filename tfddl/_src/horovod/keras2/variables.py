"""Variables: `ref()` and `device`, since Keras 2's variables were TensorFlow's."""

from typing import Any

import keras

from tfddl._src.horovod.keras2.deprecations import DeprecationWarnings


class Reference:
    """A hashable reference to a variable, like that of ``tf.Variable.ref()``."""

    def __init__(self, variable: Any) -> None:
        self._variable = variable

    def deref(self) -> Any:
        """The variable that was referred to."""
        return self._variable

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reference) and other._variable is self._variable

    def __hash__(self) -> int:
        # Unique as long as this reference keeps the variable alive.
        return id(self._variable)


def install(deprecations: DeprecationWarnings) -> None:
    """Patches Keras. It is idempotent."""

    def ref(self: Any) -> Reference:
        deprecations.warn_once(
            "variable.ref()", "id(variable), or variable.path, for Keras' variables."
        )
        return Reference(self)

    def device(self: Any) -> str:
        deprecations.warn_once("variable.device", "variable.value.device.")
        name: str = self.value.device
        return name

    if not hasattr(keras.Variable, "ref"):
        keras.Variable.ref = ref
    if not hasattr(keras.Variable, "device"):
        keras.Variable.device = property(device)
