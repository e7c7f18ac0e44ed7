"""Scripts of TensorFlow 1 that build a graph for a session run as they were written.

TensorFlow 2 still has graphs and sessions; it only begins without them. The first line of a script
that needs a graph (`tf.placeholder`, `tf.get_variable`, `tf.layers`, an iterator of a dataset)
changes to them, for the whole process. A script that has made a layer of Keras, which needs eager
execution, is told what to write instead.
"""

import gc
import inspect
import logging
import sys
from collections.abc import Callable
from typing import Any

import tensorflow as tf

_LOG = logging.getLogger("tfddl")

_V1_MEANING = ("losses", "metrics", "summary")
"""Modules of `tf` that had other functions under the same names: `tf.losses.mean_squared_error`
gave one number."""

_V1_ARGUMENTS = {
    "": (
        "argmax",
        "argmin",
        "reduce_max",
        "reduce_mean",
        "reduce_min",
        "reduce_prod",
        "reduce_sum",
    ),
    "nn": ("dropout",),
}
"""Functions whose arguments had other meanings or names: the second one of `tf.nn.dropout` was the
share that is kept."""


def is_possible() -> bool:
    """Whether the script is one for sessions: it has made nothing of Keras."""
    if not tf.executing_eagerly():
        return False
    keras = sys.modules.get("keras")
    if keras is None:
        return True
    made = (keras.layers.Layer, keras.optimizers.Optimizer)
    return not any(issubclass(type(thing), made) for thing in gc.get_objects())


def enter(name: str) -> None:
    """Makes operations parts of the default graph from now on, in this process.

    Args:
        name: What the script has called, for the log.
    """
    v1 = tf.compat.v1
    inspect.unwrap(v1.disable_eager_execution)()  # `tensorflow1` has one without effect.
    for module in _V1_MEANING:
        setattr(tf, module, getattr(v1, module))
    for path, functions in _V1_ARGUMENTS.items():
        for function in functions:
            old = getattr(v1, path) if path else v1
            setattr(getattr(tf, path) if path else tf, function, getattr(old, function))
    for iterator in ("make_one_shot_iterator", "make_initializable_iterator"):
        setattr(tf.data.Dataset, iterator, _as_method(getattr(v1.data, iterator)))
    _LOG.warning(
        "%s is of TensorFlow 1: operations are parts of a graph from now on, which a session runs, "
        "and models of Keras can't be trained in this process.",
        name,
    )


def _as_method(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    return method
