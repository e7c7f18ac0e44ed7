"""Ctrl-C that reaches TensorFlow while it makes an exception of its own."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def keyboard_interrupts() -> Iterator[None]:
    """Raises the KeyboardInterrupt that pybind11 has turned into a RuntimeError.

    Where Python's handler of SIGINT runs while TensorFlow's C++ converts an error to Python (a
    peer was interrupted first, and its end fails the step here), pybind11 finds another exception
    than the one that it began with, and raises a RuntimeError of which only the text says so
    (`error_fetch_and_normalize` in pybind11/pytypes.h). Scripts catch KeyboardInterrupt to save.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "error_already_set" in text and "REPLACED BY KeyboardInterrupt" in text:
            raise KeyboardInterrupt from error
        raise
