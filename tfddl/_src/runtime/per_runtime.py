"""What upper layers keep for each runtime, without the runtime knowing of it."""

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from tfddl._src.runtime.context import Runtime, current

_T = TypeVar("_T")


class PerRuntime(Generic[_T]):
    """A value of a module's own for each runtime; it is gone when the runtime is.

    Usage::

        _COUNTS: PerRuntime[dict[str, int]] = PerRuntime(lambda runtime: {})

        _COUNTS.current()["steps"] = 1
    """

    def __init__(self, make: Callable[[Runtime], _T]) -> None:
        """Makes nothing yet.

        Args:
            make: Makes the value of a runtime, when it is first asked for.
        """
        self._make = make
        self._values: weakref.WeakKeyDictionary[Runtime, _T] = weakref.WeakKeyDictionary()

    def of(self, runtime: Runtime) -> _T:
        """The value of a runtime."""
        value = self._values.get(runtime)
        # Where two threads are first, setdefault lets both have the same.
        return self._values.setdefault(runtime, self._make(runtime)) if value is None else value

    def hand_over(self, value: _T, runtime: Runtime) -> None:
        """Makes a value that of a runtime, which takes the place of another one."""
        self._values[runtime] = value

    def current(self) -> _T:
        """The value of the runtime of this process.

        Raises:
            NotInitializedError: There is none.
        """
        return self.of(current())
