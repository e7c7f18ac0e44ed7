"""Deprecation warnings that show the modern line, once each."""

import sys
import warnings
from types import FrameType

import tfddl

_LIBRARIES = (
    "tfddl.",
    "keras.",
    "tensorflow.",
    "contextlib",
    "functools",
    "importlib",
    "_frozen_importlib",
)

_ASKING_FOR_OTHERS = (__package__ or "", "tensorflow.python.util.lazy_loader")
"""One module of this package asks another; and TensorFlow loads ``tf.losses`` when it is used."""


class Keras2Warning(UserWarning):
    """A script uses an idiom of Keras 2, or of TensorFlow 1."""


class DeprecationWarnings:
    """Warns of each idiom once."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def warn_once(self, old: str, modern: str, *, of: str = "Keras 2") -> None:
        """Warns of an idiom the first time; after `tfddl.init` on rank 0 only.

        Args:
            old: The idiom, as in the script.
            modern: What replaces it.
            of: The library that had it.
        """
        if old in self._warned:
            return
        self._warned.add(old)
        if not tfddl.is_initialized() or tfddl.rank() == 0:
            frame = _frame_of_script()
            warnings.warn_explicit(
                f"{old} is of {of}; write {modern}",
                Keras2Warning,
                frame.f_code.co_filename,
                frame.f_lineno,
                module=frame.f_globals.get("__name__"),
                registry=frame.f_globals.setdefault("__warningregistry__", {}),
            )


def is_called_by_script() -> bool:
    """Whether the caller of our caller is the user's code, not TensorFlow's or Keras' own.

    Libraries ask modules for names that they may not have, and must get the answer that they know.
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_ASKING_FOR_OTHERS):
        frame = frame.f_back
    return frame is not None and not _is_library(frame)


def _frame_of_script() -> FrameType:
    """The innermost frame of the script itself."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_library(frame):
        frame = frame.f_back
    return frame


def _is_library(frame: FrameType) -> bool:
    name: str = frame.f_globals.get("__name__", "")
    return name.startswith(_LIBRARIES) or name in ("keras", "tensorflow")


PATCH_MARK = "_tfddl_keras2"
"""An attribute of what has been patched."""
