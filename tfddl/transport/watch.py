"""Ends operations for which not all ranks come.

TensorFlow's collectives have a timeout of their own, but keep a thread asleep for each operation
until it is over: a training of some steps per second soon runs out of threads. So operations count
here when they begin and end, and one thread looks whether they get on.
"""

import atexit
import threading
import time
from collections.abc import Callable

import tensorflow as tf

from tfddl.transport import service

_LOOKS = 5
"""How often to look within the time that is waited."""


class Watch:
    """Looks after the collectives of this process."""

    def __init__(self, timeout_s: float) -> None:
        """Begins to watch.

        Args:
            timeout_s: After how many seconds without any progress what is waiting is ended; 0 is
                never.
        """
        self._timeout_s = timeout_s
        with tf.device("CPU:0"):
            self._begun = tf.Variable(0, trainable=False, dtype=tf.int64, name="tfddl_begun")
            self._ended = tf.Variable(0, trainable=False, dtype=tf.int64, name="tfddl_ended")
        self._stop = threading.Event()
        if timeout_s > 0:
            thread = threading.Thread(target=self._look, name="tfddl-watch", daemon=True)
            thread.start()
            atexit.register(self._end, thread)

    def over(self, launch: Callable[[tf.Tensor], tf.Tensor], piece: tf.Tensor) -> tf.Tensor:
        """Launches an operation, and counts its beginning and its end."""
        with tf.device("CPU:0"):
            one = tf.constant(1, tf.int64)  # Made within, it would wait instead of what adds it.
        with tf.device("CPU:0"), tf.control_dependencies([piece]):
            begun = self._begun.assign_add(one, read_value=False)
        with tf.control_dependencies(_ops(begun)):
            result = launch(tf.identity(piece))
        with tf.device("CPU:0"), tf.control_dependencies([result]):
            ended = self._ended.assign_add(one, read_value=False)
        with tf.control_dependencies(_ops(ended)):
            return tf.identity(result)

    def counts(self) -> tuple[int, int]:
        """How many operations have begun and ended."""
        return int(self._begun.numpy()), int(self._ended.numpy())

    def _look(self) -> None:
        seen, since_s = (0, 0), time.monotonic()
        while not self._stop.wait(min(self._timeout_s / _LOOKS, 10.0)):
            now = self.counts()
            if now[0] == now[1] or now != seen:
                seen, since_s = now, time.monotonic()
            elif time.monotonic() - since_s >= self._timeout_s:
                service.end_collectives(
                    f"not all ranks have come to an operation within {self._timeout_s:g} s "
                    "(tfddl.init's timeout_s): one of them is stuck, or does something else"
                )
                return

    def _end(self, thread: threading.Thread) -> None:
        self._stop.set()
        thread.join(timeout=5)


def _ops(operation: object) -> list[object]:
    """What to wait for: nothing where it was run at once."""
    return [] if operation is None or tf.executing_eagerly() else [operation]
