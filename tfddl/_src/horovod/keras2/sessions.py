"""Sessions of TensorFlow 1: an object that takes over its configuration, and runs nothing."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from tfddl._src.horovod.keras2.deprecations import DeprecationWarnings
from tfddl.errors import UnsupportedError

_LOG = logging.getLogger("tfddl")

_MODERN = (
    "nothing: hvd.init() gives each local rank a GPU of its own and lets its memory grow; numbers "
    "of threads are tf.config.threading's."
)


class _Graph:
    """Stands for the default graph: operations run as they are written."""

    @contextmanager
    def as_default(self) -> Iterator["_Graph"]:
        """Changes nothing."""
        yield self

    def finalize(self) -> None:
        """Changes nothing."""


class Session:
    """What ``tf.Session(config=…)`` is under eager execution: its configuration is taken over."""

    def __init__(self, target: str = "", graph: Any = None, config: Any = None) -> None:
        self.graph = _Graph()
        if config is not None:
            take_over(config)

    def run(self, fetches: Any, feed_dict: Any = None, *args: Any, **kwargs: Any) -> None:
        """Accepts None, which is what `tf.global_variables_initializer()` is here.

        Raises:
            UnsupportedError: There is something to run.
        """
        if any(fetch is not None for fetch in tf.nest.flatten(fetches)):
            raise UnsupportedError(
                f"session.run({str(fetches)[:60]}…) needs a graph of TensorFlow 1, and TensorFlow "
                "2 runs operations as they are written. HINT: tensor.numpy() for a value, "
                "model.predict or model(x) for a model's output, a tf.function for a graph."
            )

    def close(self) -> None:
        """Changes nothing."""

    @contextmanager
    def as_default(self) -> Iterator["Session"]:
        """Changes nothing."""
        yield self

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def take_over(config: Any) -> None:
    """Does what a ConfigProto asks for where TensorFlow 2 can: threads, memory that grows.

    Only before TensorFlow's first operation; later it is logged what has no effect. The visible
    devices are not taken: `init` chooses each rank's.

    Args:
        config: A `tf.compat.v1.ConfigProto`.
    """
    threading, settings = tf.config.threading, []
    if intra := config.intra_op_parallelism_threads:
        change = (threading.set_intra_op_parallelism_threads, intra)
        settings.append((f"intra_op_parallelism_threads={intra}", *change))
    if inter := config.inter_op_parallelism_threads:
        change = (threading.set_inter_op_parallelism_threads, inter)
        settings.append((f"inter_op_parallelism_threads={inter}", *change))
    if config.gpu_options.allow_growth:
        settings.append(("gpu_options.allow_growth", _let_memory_grow, True))
    late = [name for name, change, value in settings if not _is_possible(change, value)]
    if late:
        _LOG.warning(
            "the session's %s has no effect: TensorFlow has run operations before. HINT: make the "
            "session before hvd.init() and before the first model.",
            " and ".join(late),
        )


def _let_memory_grow(grows: bool) -> None:
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, grows)


def _is_possible(change: Callable[[Any], None], value: Any) -> bool:
    try:
        change(value)
    except RuntimeError:  # TensorFlow says that its context is initialized.
        return False
    return True


def make_session(deprecations: DeprecationWarnings, real: Any) -> Callable[..., Any]:
    """A function in the place of TensorFlow 1's class: within a `tf.Graph` it makes a real one.

    Args:
        deprecations: Warns where the session is an inert one.
        real: The class.
    """

    def session(target: str = "", graph: Any = None, config: Any = None) -> Any:
        if not tf.executing_eagerly() or isinstance(graph, tf.Graph):
            return real(target, graph, config)
        deprecations.warn_once("tf.Session(config=…)", _MODERN, of="TensorFlow 1")
        return Session(target, graph, config)

    session.__name__, session.__doc__ = real.__name__, real.__doc__
    return session


def functions(deprecations: DeprecationWarnings) -> dict[str, Callable[..., Any]]:
    """`K.get_session`, `K.set_session` and `K.manual_variable_initialization`."""
    current: list[Any] = []

    def get_session() -> Any:
        """The session that was set, or one that runs nothing."""
        deprecations.warn_once("K.get_session", "nothing.", of="TensorFlow 1")
        return current[0] if current else Session()

    def set_session(session: Any) -> None:
        """Keeps a session for `get_session`; its configuration was taken when it was made."""
        deprecations.warn_once("K.set_session", "nothing.", of="TensorFlow 1")
        current[:] = [session]

    def manual_variable_initialization(value: bool) -> None:
        """Has no effect: variables have their values from the start."""
        deprecations.warn_once("K.manual_variable_initialization", "nothing.", of="TensorFlow 1")

    return {
        "get_session": get_session,
        "set_session": set_session,
        "manual_variable_initialization": manual_variable_initialization,
    }


def make_default_graph(real: Callable[[], Any]) -> Callable[[], Any]:
    """`tf.get_default_graph`: within a `tf.Graph` that one, otherwise an inert one."""

    def get_default_graph() -> Any:
        return _Graph() if tf.executing_eagerly() else real()

    return get_default_graph
