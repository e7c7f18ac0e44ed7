"""Warnings that show the modern line, each once."""

import sys
import warnings

import tfddl

_LIBRARIES = ("tfddl.", "keras.", "tensorflow.", "contextlib", "functools")


class Keras2Warning(UserWarning):
    """A script says something that Keras 3 doesn't know."""


class DeprecationWarnings:
    """Tells a user of each old line once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def once(self, old: str, modern: str) -> None:
        """Warns of an old line, the first time; rank 0 is enough, where ranks are known.

        Args:
            old: What the script says.
            modern: What it should say for Keras 3.
        """
        if old in self._told:
            return
        self._told.add(old)
        if not tfddl.is_initialized() or tfddl.rank() == 0:
            message = f"{old} is of Keras 2; write {modern}"
            warnings.warn(message, Keras2Warning, stacklevel=_level_of_script())


def _level_of_script() -> int:
    """How far up the script's own line is, seen from the caller of this."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_LIBRARIES):
        level, frame = level + 1, frame.f_back
    return level


PATCH_MARK = "_tfddl_keras2"
"""Set on what has been put in place."""
