"""Deprecation warnings that show the modern line, once each."""

import sys
import warnings

import tfddl

_LIBRARIES = ("tfddl.", "keras.", "tensorflow.", "contextlib", "functools")


class Keras2Warning(UserWarning):
    """A script uses an idiom of Keras 2."""


class DeprecationWarnings:
    """Warns of each idiom once."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def warn_once(self, old: str, modern: str) -> None:
        """Warns of an idiom the first time; after `tfddl.init` on rank 0 only.

        Args:
            old: The idiom, as in the script.
            modern: What replaces it in Keras 3.
        """
        if old in self._warned:
            return
        self._warned.add(old)
        if not tfddl.is_initialized() or tfddl.rank() == 0:
            message = f"{old} is of Keras 2; write {modern}"
            warnings.warn(message, Keras2Warning, stacklevel=_level_of_script())


def _level_of_script() -> int:
    """The stacklevel of the script's own line, for a caller of this."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_LIBRARIES):
        level, frame = level + 1, frame.f_back
    return level


PATCH_MARK = "_tfddl_keras2"
"""An attribute of what has been patched."""
