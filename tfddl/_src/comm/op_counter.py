"""Counts operations when they begin and end, eagerly and in graphs."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from tfddl._src.comm.lazy_variable import counter

Travel = Callable[[Sequence[tf.Tensor]], list[tf.Tensor]]
"""What comes of several tensors."""


class Tally:
    """How many operations have begun here, and how many have ended."""

    def __init__(self, device: str = "CPU:0") -> None:
        """Begins at 0.

        Args:
            device: Where to count: on the GPU where the tensors are on one, since an edge to the
                CPU waits for all that the GPU was given before.
        """
        self._device = device
        self._begun = counter("tfddl_begun", device)
        self._ended = counter("tfddl_ended", device)

    def over(self, travel: Travel, pack: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Launches an operation; it begins when the tensors are there."""
        with tf.device(self._device):
            one = tf.constant(1, tf.int64)  # Made within, it would wait instead of what adds it.
        with tf.device(self._device), tf.control_dependencies(list(pack)):
            begun = self._begun.value.assign_add(one, read_value=False)
        with tf.control_dependencies(_ops(begun)):
            arrived = travel([tf.identity(tensor) for tensor in pack])
        with tf.device(self._device), tf.control_dependencies(arrived):
            ended = self._ended.value.assign_add(one, read_value=False)
        with tf.control_dependencies(_ops(ended)):
            return [tf.identity(tensor) for tensor in arrived]

    def counts(self) -> tuple[int, int]:
        """How many have begun and ended; any thread may ask."""
        return self._begun.number, self._ended.number


def _ops(operation: object) -> list[object]:
    """What to wait for: nothing where it was run at once."""
    return [] if operation is None or tf.executing_eagerly() else [operation]
