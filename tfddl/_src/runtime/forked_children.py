"""Forked children of a worker: they aren't the worker, and end when they are told to.

`multiprocessing`, as `keras.utils.PyDataset` uses it, forks by default. A child has a copy of all
that the worker knows, and none of its threads: so it takes no part in operations, writes no
progress, and keeps no sockets. TensorFlow's server handles SIGTERM (its preemption notifier takes a
note of it, for a thread that a child hasn't got), and so may we: in a child it has its usual
meaning again, which `Process.terminate()` and the end of a daemon process rely on.
"""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

_MASK = threading.local()


def in_children(disown: Callable[[], None], *, own_handler: Callable[[], Any]) -> None:
    """Arranges for all children that are forked from now on.

    Args:
        disown: called in each, before anything else runs there. Must not wait for locks, which
            threads that aren't there may hold.
        own_handler: what we ourselves have put in place for SIGTERM, if anything.
    """

    def begin() -> None:
        # One that comes before the child can reset its handler would be lost.
        _MASK.before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def end() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _MASK.before)

    def end_in_child() -> None:
        # TensorFlow's handler is unknown to Python, which says that it is the default.
        if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, None, own_handler()):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        disown()
        end()

    os.register_at_fork(before=begin, after_in_parent=end, after_in_child=end_in_child)
