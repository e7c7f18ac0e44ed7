"""Python's own part of the threads of TensorFlow in which graphs call Python.

Python keeps a state for each thread that it runs in. For a thread that C++ has made, as those of
TensorFlow, it makes one when C++ calls Python (`PyGILState_Ensure`), and destroys it when that is
over, with the memory of its stack: at every call, some 0.04 ms, about half of what a call takes.
"""

import ctypes
import threading

_MAX_KEPT = 64
"""States are never given back: TensorFlow's threads live as long as the process. Should they come
and go, it isn't worth more memory than these take."""

_LOCK = threading.Lock()


class _Thread(threading.local):
    """Of each thread, for as long as its state lives."""

    is_kept = False


_THREAD = _Thread()
_num_kept = [0]


def keep_thread_state() -> None:
    """Keeps Python's state of the calling thread from now on; for threads that C++ has made.

    The state counts how often it is needed, and is destroyed when that is no more. So it is needed
    once more, for good. See "Non-Python created threads" in Python's C API; in threads that Python
    has made, this changes nothing.
    """
    if _THREAD.is_kept:
        return
    _THREAD.is_kept = True
    with _LOCK:
        if _num_kept[0] >= _MAX_KEPT:
            return
        _num_kept[0] += 1
    ctypes.pythonapi.PyGILState_Ensure()
