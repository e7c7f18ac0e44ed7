"""`tf.keras` may be Keras 2, of which tfddl knows nothing: then it says so."""

import functools
import warnings
from collections.abc import Mapping

VARIABLE = "TF_USE_LEGACY_KERAS"

# The only ones that TensorFlow takes for yes.
_YES = ("true", "True", "1")


def warn_of_keras_2(environ: Mapping[str, str]) -> None:
    """Warns, once in a process, where TensorFlow has been told to take Keras 2.

    Some set this for all their users: Ray Train does. Models of Keras 3 train all the same, since
    tfddl itself takes nothing from `tf.keras`.

    Args:
        environ: The environment.
    """
    if environ.get(VARIABLE) in _YES:
        _warn(environ[VARIABLE])


@functools.cache
def _warn(value: str) -> None:
    warnings.warn(
        f"{VARIABLE} is {value!r} in the environment (Ray Train sets it): so tf.keras is Keras 2 "
        "where tf_keras is installed, and tfddl trains models of Keras 3 only. "
        'HINT: write "import keras", which is Keras 3 all the same; or unset the variable before '
        f'TensorFlow is imported, os.environ.pop("{VARIABLE}", None), and after Ray Train is',
        stacklevel=4,  # The line that calls `tfddl.init`.
    )
