"""What scripts ask of variables, which were TensorFlow's own in Keras 2."""

from typing import Any

import keras

from tfddl._src.horovod.keras2.deprecations import DeprecationWarnings


class Reference:
    """Stands for a variable in sets and dictionaries, as ``tf.Variable.ref()`` does."""

    def __init__(self, variable: Any) -> None:
        self._variable = variable

    def deref(self) -> Any:
        """The variable."""
        return self._variable

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reference) and other._variable is self._variable

    def __hash__(self) -> int:
        return id(self._variable)


def install(telling: DeprecationWarnings) -> None:
    """Puts the compatibility in place."""

    def ref(self: Any) -> Reference:
        telling.once("variable.ref()", "id(variable), or variable.path, for Keras' variables.")
        return Reference(self)

    def device(self: Any) -> str:
        telling.once("variable.device", "variable.value.device.")
        name: str = self.value.device
        return name

    if not hasattr(keras.Variable, "ref"):
        keras.Variable.ref = ref
    if not hasattr(keras.Variable, "device"):
        keras.Variable.device = property(device)
