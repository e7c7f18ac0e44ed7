"""Python's state of TensorFlow's threads, kept from one call to the next."""

import sys
import threading

import numpy as np
import tensorflow as tf

from tfddl._src.comm.thread_state import keep_thread_state


class _Local(threading.local):
    """What a thread has goes with its state."""

    calls = 0


def _calls_of_a_thread(*, keeps: bool) -> tuple[list[int], set[int]]:
    """How many calls before each one its thread remembers; and these threads."""
    local, found, threads = _Local(), [], set()

    def call(value: np.ndarray) -> np.ndarray:
        if keeps:
            keep_thread_state()
        found.append(local.calls)
        local.calls += 1
        threads.add(threading.get_ident())
        return value

    step = tf.function(lambda x: tf.numpy_function(call, [x], tf.int64))
    for number in range(4):
        assert step(tf.constant(number, tf.int64)).numpy() == number
    return found, threads


def test_a_thread_that_tensorflow_has_made_keeps_its_state() -> None:
    _, threads = _calls_of_a_thread(keeps=True)
    found, again = _calls_of_a_thread(keeps=True)
    assert len(found) == 4
    # A thread may run graphs only now and then; each knows its own calls.
    assert sum(before == 0 for before in found) == len(again)
    assert threading.get_ident() not in threads | again


def test_a_state_that_is_kept_calls_nothing() -> None:
    """Else waits would no longer be known to be all that a worker does."""
    _, threads = _calls_of_a_thread(keeps=True)
    assert not threads & sys._current_frames().keys()
