"""What the threads of this process are doing: which of them could begin an operation, and where."""

from __future__ import annotations

import linecache
import sys
import sysconfig
import threading
from pathlib import Path
from types import FrameType

UNKNOWN_THREAD = 0
"""A thread that isn't Python's, of which nothing else is known."""

_OURS = (
    *("tfddl-endpoint", "tfddl-progress", "tfddl-stall-inspector", "tfddl-writer"),
    "tfddl-channel",
)
"""Threads that begin no operation by themselves, by the beginnings of their names."""

_IN_TENSORFLOW = (
    "tensorflow/python/eager/execute.py",
    "tensorflow/python/ops/gen_collective_ops.py",
)
"""The modules whose frame is the last of a thread that waits until TensorFlow has run a graph, or a
collective."""

_IN_TF_DATA = "tensorflow/python/data/"
"""The modules among whose frames functions of pipelines are traced."""

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

    True only where that is certain. A graph runs Python in threads of TensorFlow; then the thread
    that has called the graph is one more, and waits until TensorFlow is done. Operations of one
    graph run one after the other. Any other thread of Python's could begin an operation: we don't
    know what it is for.

    Args:
        waiting: the thread that waits in an operation, by `threading.get_ident`; or `UNKNOWN_THREAD`, where
            TensorFlow does.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    callers = 0
    for ident, frame in sys._current_frames().items():
        if ident == waiting or names.get(ident, "").startswith(_OURS):
            continue
        if _is_pythons(waiting) or not frame.f_code.co_filename.endswith(_IN_TENSORFLOW):
            return False
        callers += 1
    return callers == (0 if _is_pythons(waiting) else 1)


def is_in_pipeline() -> bool:
    """Whether this is part of a `tf.data` pipeline, whose threads nobody sees.

    Either a function of one that is being traced, or Python that a thread of TensorFlow calls
    outside of any graph of ours.
    """
    if isinstance(threading.current_thread(), threading._DummyThread):
        return True
    frame: FrameType | None = sys._getframe()
    while frame is not None and _IN_TF_DATA not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


def find_user_line(waiting: int) -> str:
    """The line of the user's program that has led to an operation, for people.

    Args:
        waiting: the thread that waits in it.

    Returns:
        "train.py, line 17: loss = step(x)"; "" where it isn't known.
    """
    frames = sys._current_frames()
    ident = waiting if _is_pythons(waiting) else threading.main_thread().ident
    frame = frames.get(ident or 0)
    while frame is not None and not _is_users(frame):
        frame = frame.f_back
    if frame is None:
        return ""
    name, number = frame.f_code.co_filename, frame.f_lineno
    line = linecache.getline(name, number).strip()
    return f"{name}, line {number}" + (f": {line}" if line else "")


def _is_pythons(ident: int) -> bool:
    """Whether Python has made a thread; otherwise TensorFlow has, to run a graph."""
    return any(
        thread.ident == ident and not isinstance(thread, threading._DummyThread)
        for thread in threading.enumerate()
    )


def _is_users(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return not name.startswith((*_LIBRARIES, "<frozen")) and "/site-packages/" not in name
