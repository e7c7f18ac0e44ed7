"""The stacks of this process' threads: which could begin an operation, and where they wait."""

from __future__ import annotations

import linecache
import sys
import sysconfig
import threading
from pathlib import Path
from types import FrameType

UNKNOWN_THREAD = 0
"""A thread that Python hasn't made, of which nothing is known: one of TensorFlow's."""

# Prefixes of the names of our threads that begin no operation by themselves.
_OWN_THREADS = (
    *("tfddl-endpoint", "tfddl-progress", "tfddl-stall-inspector", "tfddl-writer"),
    *("tfddl-channel", "tfddl-receiver"),
)

# Private modules of TensorFlow, compared by their path: where these move, a deadlock is found
# after `Timeouts.deadlock_s` instead of at once, and nothing else changes.
# The file of a thread's last frame while TensorFlow runs a graph, or a collective, for it.
_IN_TENSORFLOW = (
    "tensorflow/python/eager/execute.py",
    "tensorflow/python/ops/gen_collective_ops.py",
)

# The directory of a frame under which functions of a `tf.data` pipeline are traced.
_IN_TF_DATA = "tensorflow/python/data/"

_LIBRARIES = tuple(
    {
        str(Path(__file__).resolve().parents[3]) + "/",  # tfddl
        *(
            sysconfig.get_path(name) + "/"
            for name in ("stdlib", "platstdlib", "purelib", "platlib")
        ),
    }
)


def is_sole_caller(waiting: int) -> bool:
    """Whether no other thread of this process could begin an operation while one waits.

    True only where that is certain. A graph calls Python in threads of TensorFlow; then the thread
    that has called the graph is one more, and waits until TensorFlow is done. Operations of one
    graph run one after the other. Any other thread that Python has made could begin an operation.

    Args:
        waiting: the thread that waits in an operation, by `threading.get_ident`, or
            `UNKNOWN_THREAD`, where TensorFlow does.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    callers = 0
    # A snapshot under the GIL, of CPython only. Threads that C++ has made appear while they are in
    # Python.
    for ident, frame in sys._current_frames().items():
        if ident == waiting or names.get(ident, "").startswith(_OWN_THREADS):
            continue
        if _is_python_thread(waiting) or not frame.f_code.co_filename.endswith(_IN_TENSORFLOW):
            return False
        callers += 1
    return callers == (0 if _is_python_thread(waiting) else 1)


def is_in_pipeline() -> bool:
    """Whether the caller is part of a `tf.data` pipeline, whose threads Python doesn't list.

    Either a function of a pipeline that is being traced, or Python that a thread of TensorFlow
    calls, outside of any graph of ours.
    """
    # Python makes a dummy object for a thread that C++ has made when that thread calls Python.
    if isinstance(threading.current_thread(), threading._DummyThread):
        return True
    frame: FrameType | None = sys._getframe()
    while frame is not None and _IN_TF_DATA not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


def find_user_line(waiting: int) -> str:
    """The line of the user's program that has led to an operation.

    Args:
        waiting: the thread that waits in it. For one that Python hasn't made, the main thread's
            line is returned: most likely that has called the graph.

    Returns:
        "train.py, line 17: loss = step(x)"; "" where it isn't known.
    """
    frames = sys._current_frames()
    ident = waiting if _is_python_thread(waiting) else threading.main_thread().ident
    frame = frames.get(ident or 0)
    while frame is not None and not _is_user_code(frame):
        frame = frame.f_back
    if frame is None:
        return ""
    # Read from another thread, the line may have moved on by now: it is for people only.
    name, number = frame.f_code.co_filename, frame.f_lineno
    line = linecache.getline(name, number).strip()
    return f"{name}, line {number}" + (f": {line}" if line else "")


def _is_python_thread(ident: int) -> bool:
    return any(
        thread.ident == ident and not isinstance(thread, threading._DummyThread)
        for thread in threading.enumerate()
    )


def _is_user_code(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return not name.startswith((*_LIBRARIES, "<frozen")) and "/site-packages/" not in name
