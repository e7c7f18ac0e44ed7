"""In which order an optimizer updates the variables of a graph: group by group.

When the sums of all gradients are there at once, TensorFlow begins with the updates of all
variables, and has what they compute on the way in memory at once: with Adam, several times the
gradients. (Plain Keras applies each gradient once it is there, while the next one is computed.)
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfddl._src.collectives import fusion
from tfddl._src.gradients import Gradient

GROUP_BYTES = 16 * 2**20
"""Of the gradients of variables that are updated at once."""


class UpdateOrder:
    """The updates of a step: each group of variables waits for the one before it."""

    def __init__(self) -> None:
        """Has no updates yet."""
        self._graph: Any = None
        self._num_bytes = 0
        self._before: list[tf.Operation] = []
        self._group: list[tf.Operation] = []

    @classmethod
    def of(cls, gradients: Sequence[Gradient]) -> "UpdateOrder | None":
        """That of the gradients of a step; None where they are so few that nothing has to wait."""
        total = sum(_num_bytes(gradient) for gradient in gradients if gradient is not None)
        return cls() if total > fusion.AT_ONCE_BYTES else None

    @contextlib.contextmanager
    def next_update(self, gradient: Any) -> Iterator[None]:
        """Within it the operations of the next variable's update are added to the graph.

        Args:
            gradient: Dense or sparse.
        """
        graph = tf.compat.v1.get_default_graph()
        num_bytes = _num_bytes(gradient)
        if graph is not self._graph:  # A branch, as of loss scaling, waits for itself only.
            self._graph, self._num_bytes, self._before, self._group = graph, 0, [], []
        # A gradient that is larger than a group is one of its own.
        elif self._group and self._num_bytes + num_bytes > GROUP_BYTES:
            self._num_bytes, self._before, self._group = 0, self._group, []
        self._num_bytes += num_bytes
        known = len(graph.get_operations())
        with tf.control_dependencies(self._before):
            yield
        # What writes to variables gives nothing out. A variable that is read, as `assign_sub` does
        # for callers, would be read in vain.
        self._group += [op for op in graph.get_operations()[known:] if not op.outputs]


def _num_bytes(gradient: Any) -> int:
    values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
    length = values.shape.num_elements()
    return 0 if length is None else int(length * values.dtype.size)
