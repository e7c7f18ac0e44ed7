"""A variable of our own that is made when it is first used.

`tfddl.init()` runs no TensorFlow operation, since `tfddl.strategy()` has to come before the first
one of the process. So counters that live in graphs are made when the first graph wants them.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import tensorflow as tf

from tfddl._src.comm.tensorflow_private import eager_mode

_Result = TypeVar("_Result")


class LazyVariable:
    """A variable that belongs to no model, no scope and no graph."""

    def __init__(self, make: Callable[[], tf.Variable]) -> None:
        """Makes nothing yet.

        Args:
            make: Makes it; called by `create_outside_graph`.
        """
        self._make = make
        self._variable: tf.Variable | None = None
        self._lock = threading.Lock()

    @property
    def value(self) -> tf.Variable:
        """The variable, created at the first use."""
        with self._lock:
            if self._variable is None:
                self._variable = create_outside_graph(self._make)
            return self._variable

    def set(self, value: bool) -> None:
        """Changes the variable; nothing where nobody has made it."""
        with self._lock:
            if self._variable is not None:
                self._variable.assign(value)

    @property
    def number(self) -> int:
        """What an integer variable holds; 0 where nobody has made it."""
        # Without the lock: the stall inspector and the reporter of progress ask from threads of
        # their own, while `value` may be making it.
        return 0 if self._variable is None else int(self._variable.numpy())


@tf.autograph.experimental.do_not_convert
def call_outside_graph(function: Callable[[], _Result]) -> _Result:
    """Calls a function eagerly while a graph may be made."""

    def call() -> _Result:
        with eager_mode():
            return function()

    # Graphs, devices, scopes and strategies are thread-local in TensorFlow: a new thread has none.
    with ThreadPoolExecutor(1) as outside:
        return outside.submit(call).result()


def create_outside_graph(make: Callable[[], tf.Variable]) -> tf.Variable:
    """Makes a variable while a graph may be made.

    It is made in another thread: a `tf.function` that is traced a second time, for other arguments,
    allows no new variables, not even in an init_scope; and a strategy's scope would make it one of
    the strategy's.
    """
    return call_outside_graph(make)


def counter(name: str, device: str = "CPU:0") -> LazyVariable:
    """A scalar int64 that starts at 0."""

    def make() -> tf.Variable:
        with tf.device(device):
            return tf.Variable(0, trainable=False, dtype=tf.int64, name=name)

    return LazyVariable(make)
