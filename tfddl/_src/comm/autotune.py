"""In how many pieces at once sums travel fastest: a measurement of a second at most."""

import time

import tensorflow as tf

from tfddl._src.comm.chunking import DEFAULT_PIECES, MOST_PIECES, WHOLE_BYTES
from tfddl._src.comm.native import ReduceOp
from tfddl._src.comm.process_group import ProcessGroup
from tfddl._src.comm.tensorflow_group import TensorFlowGroup

_CANDIDATES = (1, 4, DEFAULT_PIECES, MOST_PIECES)
_ROUNDS = 3
_ENOUGH_S = 0.7


def measured_pieces(transport: TensorFlowGroup) -> int:
    """Adds up some megabytes in one piece and in several, for most of a second.

    All ranks of the transport must call it together; nobody else.

    Returns:
        The fastest number of pieces: the same on all ranks, since what counts for all of them is
        the time of the slowest. `DEFAULT_PIECES` where a round alone takes too long.
    """
    data = tf.zeros([WHOLE_BYTES // tf.float32.size])
    best_s = dict.fromkeys(_CANDIDATES, float("inf"))
    spent_s = 0.0
    for number in range(1 + _ROUNDS):
        for pieces in _CANDIDATES:
            took_s = _seconds(transport, transport.in_pieces(pieces), data)
            spent_s += took_s
            if number > 0:  # Before, the ranks have to find each other.
                best_s[pieces] = min(best_s[pieces], took_s)
            if spent_s > _ENOUGH_S:
                return _fastest(best_s)
    return _fastest(best_s)


def _fastest(best_s: dict[int, float]) -> int:
    if float("inf") in best_s.values():
        return DEFAULT_PIECES
    return min(best_s, key=lambda pieces: best_s[pieces])


def _seconds(clock: ProcessGroup, transport: ProcessGroup, data: tf.Tensor) -> float:
    """How long the slowest rank took for a sum."""
    began_s = time.perf_counter()
    transport.all_reduce(data, ReduceOp.SUM)
    took_s = time.perf_counter() - began_s
    return float(clock.all_reduce(tf.constant([took_s], tf.float64), ReduceOp.MAX).numpy()[0])
