"""Warnings that show the modern line, each once."""

import warnings

import tfddl


class Keras2Warning(UserWarning):
    """A script says something that Keras 3 doesn't know."""


class Telling:
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
            warnings.warn(f"{old} is of Keras 2; write {modern}", Keras2Warning, stacklevel=3)


MARK = "_tfddl_keras2"
"""Set on what has been put in place."""
