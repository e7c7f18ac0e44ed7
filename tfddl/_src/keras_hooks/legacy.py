"""A warning where `tf.keras` is Keras 2, whose models tfddl can't train."""

import functools
import warnings
from collections.abc import Mapping

VARIABLE = "TF_USE_LEGACY_KERAS"

# The only values that TensorFlow takes for yes (tensorflow/python/util/lazy_loader.py).
_YES = ("true", "True", "1")


def warn_of_keras_2(environ: Mapping[str, str]) -> None:
    """Warns, once in a process, where TensorFlow has been told that `tf.keras` is Keras 2.

    Some engines set it for all their users: Ray Train does. Models of Keras 3 train all the same,
    since tfddl itself uses nothing of `tf.keras`.

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
