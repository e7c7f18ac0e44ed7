"""Names of TensorFlow 1: what TensorFlow 2 keeps in `tf.compat.v1`, and what can't work.

`tf.ConfigProto`, `tf.set_random_seed`, `tf.logging` and the like are found where they are now. What
a graph for a session begins with changes to graphs, see `graph_mode`; in a script that has made
something of Keras it raises an error that names the modern line, and so does eagerly what only a
graph can use.
"""

import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import tensorflow as tf

from tfddl._src.horovod.keras2 import graph_mode, sessions, tf1_layers
from tfddl._src.horovod.keras2.deprecations import (
    PATCH_MARK,
    DeprecationWarnings,
    is_called_by_script,
)
from tfddl.errors import UnsupportedError

_OF = "TensorFlow 1"

_RENAMED = {
    "ConfigProto": "nothing: hvd.init() sets up GPUs, and tf.config.threading the threads",
    "GPUOptions": "nothing: hvd.init() sets up GPUs",
    "FixedLenFeature": "tf.io.FixedLenFeature",
    "VarLenFeature": "tf.io.VarLenFeature",
    "app": "absl.app",
    "decode_csv": "tf.io.decode_csv",
    "decode_raw": "tf.io.decode_raw",
    "flags": "absl.flags",
    "gfile": "tf.io.gfile",
    "get_default_graph": "nothing: operations run as they are written",
    "global_variables_initializer": "nothing: variables have their values from the start",
    "is_nan": "tf.math.is_nan",
    "local_variables_initializer": "nothing: variables have their values from the start",
    "log": "tf.math.log",
    "logging": "tf.get_logger()",
    "mod": "tf.math.mod",
    "parse_example": "tf.io.parse_example",
    "parse_single_example": "tf.io.parse_single_example",
    "py_func": "tf.py_function",
    "python_io": "tf.io.TFRecordWriter",
    "random_normal": "tf.random.normal",
    "random_uniform": "tf.random.uniform",
    "read_file": "tf.io.read_file",
    "rsqrt": "tf.math.rsqrt",
    "set_random_seed": "tf.random.set_seed",
    "to_float": "tf.cast(x, tf.float32)",
    "to_int32": "tf.cast(x, tf.int32)",
}
"""What replaces a name; for others it is the same one in `tf.compat.v1`."""

_LOOP = "model.fit, or a tf.GradientTape with hvd.DistributedGradientTape"
_GRAPH_ONLY = {
    "placeholder": "the data itself, as an argument of model.fit or of a tf.function",
    "sparse_placeholder": "the data itself, as an argument of a tf.function",
    "get_collection": "model.variables",
    "layers": "keras.layers",
    "variable_scope": "a keras.Model, which owns its variables",
    "get_variable": "tf.Variable, or a layer of keras.layers",
}
"""Names of `tf` that need a graph, and what replaces them."""

_BEGIN_GRAPHS = ("placeholder", "sparse_placeholder", "get_variable", "variable_scope")
"""Of these, what no script calls that trains with Keras."""

_NEED_NO_GRAPH = ("layers", "SessionRunHook")
"""Of these and the next ones: `tf.layers` looks for itself, and hooks are classes to inherit."""

_GRAPH_ONLY_TRAIN = {
    "MonitoredTrainingSession": _LOOP,
    "MonitoredSession": _LOOP,
    "SingularMonitoredSession": _LOOP,
    "Supervisor": _LOOP,
    "Scaffold": _LOOP,
    "SessionRunHook": "keras.callbacks.Callback",
    "StopAtStepHook": "model.fit(epochs=…, steps_per_epoch=…)",
    "LoggingTensorHook": "keras.callbacks.Callback",
    "CheckpointSaverHook": "tfddl.callbacks.Checkpoint",
    "Saver": "tf.train.Checkpoint, or model.save",
    "AdadeltaOptimizer": "keras.optimizers.Adadelta",
    "AdagradOptimizer": "keras.optimizers.Adagrad",
    "AdamOptimizer": "keras.optimizers.Adam",
    "FtrlOptimizer": "keras.optimizers.Ftrl",
    "GradientDescentOptimizer": "keras.optimizers.SGD",
    "MomentumOptimizer": "keras.optimizers.SGD(momentum=…)",
    "RMSPropOptimizer": "keras.optimizers.RMSprop",
    "exponential_decay": "keras.optimizers.schedules.ExponentialDecay",
    "piecewise_constant": "keras.optimizers.schedules.PiecewiseConstantDecay",
}
"""Names of `tf.train` that need a graph, and what replaces them."""

_GONE = {
    "contrib": "what it held is in TensorFlow Addons or in Keras; tf.contrib.data.AUTOTUNE is "
    "tf.data.AUTOTUNE",
    "estimator": "write a keras.Model, and model.fit; it has ModeKeys only",
}
"""Modules that no TensorFlow 2.16 and newer has."""

_WARN_BY_THEMSELVES = (
    "Session",
    "InteractiveSession",
    "disable_eager_execution",
    "disable_v2_behavior",
    "enable_eager_execution",
    "enable_v2_behavior",
    "reset_default_graph",
)
_EAGER = ("enable_eager_execution", "enable_v2_behavior")
_NOT_EAGER = ("disable_eager_execution", "disable_v2_behavior")


def install(deprecations: DeprecationWarnings) -> None:
    """Patches `tf`, `tf.train`, `tf.image` and `tf.compat.v1`. It is idempotent."""
    v1 = tf.compat.v1
    if not hasattr(v1.Session, PATCH_MARK):
        _replace_in_v1(deprecations, v1)
    v1.layers = _Layers()
    _fall_back(deprecations, tf, v1, "tf", _GRAPH_ONLY)
    _fall_back(deprecations, tf.train, v1.train, "tf.train", _GRAPH_ONLY_TRAIN)
    _fall_back(deprecations, tf.image, v1.image, "tf.image", {})
    _fall_back(deprecations, tf.random, v1.random, "tf.random", {})
    if not hasattr(tf.data.Dataset, "make_one_shot_iterator"):
        for name in ("make_one_shot_iterator", "make_initializable_iterator"):
            modern = "iter(dataset) in a loop; model.fit takes the dataset itself"
            setattr(tf.data.Dataset, name, _iterator(name, modern))


def _replace_in_v1(deprecations: DeprecationWarnings, v1: Any) -> None:
    for name in ("Session", "InteractiveSession"):
        setattr(v1, name, sessions.make_session(deprecations, getattr(v1, name)))
    setattr(v1.Session, PATCH_MARK, True)
    v1.get_default_graph = sessions.make_default_graph(v1.get_default_graph)
    v1.reset_default_graph = _nothing(
        deprecations, "tf.reset_default_graph()", v1.reset_default_graph
    )
    for name in _EAGER:
        setattr(v1, name, _enable_eagerly(deprecations, name))
    for name in _NOT_EAGER:
        old = f"tf.{name}(), which has no effect before the first tf.placeholder or the like,"
        setattr(v1, name, _nothing(deprecations, old, getattr(v1, name)))
    for name in ("placeholder", "sparse_placeholder"):
        setattr(v1, name, _beginning(f"tf.{name}", _GRAPH_ONLY[name], getattr(v1, name)))
    name = "MonitoredTrainingSession"
    original = getattr(v1.train, name)
    setattr(v1.train, name, _refusing(f"tf.train.{name}", _GRAPH_ONLY_TRAIN[name], original))


def _fall_back(
    deprecations: DeprecationWarnings,
    module: ModuleType,
    old: Any,
    path: str,
    graph_only: Mapping[str, str],
) -> None:
    """Lets scripts find in a module what its counterpart of TensorFlow 1 has."""

    def __getattr__(name: str) -> Any:
        missing = f"module {module.__name__!r} has no attribute {name!r}"
        if name.startswith("_") or not is_called_by_script():
            raise AttributeError(missing)
        if path == "tf" and name == "estimator":
            return _Estimator(missing)
        if path == "tf" and name in _GONE:
            raise AttributeError(f"{missing}: it is of {_OF}. HINT: {_GONE[name]}.")
        if path == "tf" and name in _BEGIN_GRAPHS and tf.executing_eagerly():
            return _beginning(f"tf.{name}", graph_only[name], getattr(old, name))
        if name in graph_only and name not in _NEED_NO_GRAPH and tf.executing_eagerly():
            return _refusing(f"{path}.{name}", graph_only[name])
        try:
            found = getattr(old, name)
        except (AttributeError, ImportError):
            raise AttributeError(missing) from None
        if name in _WARN_BY_THEMSELVES:
            return found
        prefix = path.replace("tf", "tf.compat.v1", 1)
        modern = _RENAMED.get(name, f"{prefix}.{name}, or what TensorFlow 2 has for it")
        deprecations.warn_once(f"{path}.{name}", f"{modern}.", of=_OF)
        return found

    module.__getattr__ = __getattr__  # type: ignore[method-assign]


class _Refused:
    """A name that raises when it is called or looked into."""

    def __init__(self, message: str) -> None:
        self._message = message

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise UnsupportedError(self._message)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UnsupportedError(self._message)


def _refusing(name: str, modern: str, original: Callable[..., Any] | None = None) -> Any:
    message = (
        f"{name} is of {_OF}: it needs a graph that a session runs, and TensorFlow 2 runs "
        f"operations as they are written. HINT: write {modern}."
    )
    refused = _Refused(message)
    if original is None:
        return refused

    def function(*args: Any, **kwargs: Any) -> Any:
        return (refused if tf.executing_eagerly() else original)(*args, **kwargs)

    return function


def _beginning(name: str, modern: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """What a graph begins with: makes the script one for sessions, or is refused."""
    refusing = _refusing(name, modern, original)

    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        if graph_mode.is_possible():
            graph_mode.enter(name)
        return refusing(*args, **kwargs)

    return function


def _iterator(name: str, modern: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        def original(*args: Any, **kwargs: Any) -> Any:
            return getattr(tf.compat.v1.data, name)(self, *args, **kwargs)

        return _beginning(f"dataset.{name}", modern, original)(*args, **kwargs)

    return method


class _Layers:
    """`tf.layers`; TensorFlow 2.16's own needs Keras 2."""

    def __getattr__(self, name: str) -> Any:
        function: Any = getattr(tf1_layers, name, None)
        if name.startswith("_") or getattr(function, "__module__", None) != tf1_layers.__name__:
            raise AttributeError(
                f"tf.layers has no {name} here: it is of {_OF}. HINT: build it of tf.get_variable."
            )
        return _beginning(f"tf.layers.{name}", _GRAPH_ONLY["layers"], function)


class _Estimator:
    """What is left of `tf.estimator`: the names of modes."""

    class ModeKeys:
        """For what a model's function builds its graph."""

        TRAIN = "train"
        EVAL = "eval"
        PREDICT = "infer"

    def __init__(self, missing: str) -> None:
        self._missing = missing

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self._missing}: it is of {_OF}. HINT: {_GONE['estimator']}.")


def _nothing(
    deprecations: DeprecationWarnings, old: str, original: Callable[[], Any]
) -> Callable[[], Any]:
    @functools.wraps(original)
    def function() -> Any:
        if not tf.executing_eagerly():
            return original()
        deprecations.warn_once(old, "nothing: operations run as they are written.", of=_OF)
        return None

    return function


def _enable_eagerly(deprecations: DeprecationWarnings, name: str) -> Callable[..., None]:
    def function(config: Any = None, *args: Any, **kwargs: Any) -> None:
        deprecations.warn_once(f"tf.{name}(…)", "nothing: it is so from the start.", of=_OF)
        if config is not None:
            sessions.take_over(config)

    return function
