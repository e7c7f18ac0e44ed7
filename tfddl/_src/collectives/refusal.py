"""Where no operation of all workers can be called: not every worker would come there as often."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tfddl.errors import UnsupportedError

# Of the thread: others (of checkpoints, of data) go on with operations of their own.
_REASON: ContextVar[str] = ContextVar("tfddl_refuses_collectives", default="")


@contextmanager
def collectives_refused(reason: str) -> Iterator[None]:
    """Within it, operations of all workers raise an `UnsupportedError`.

    Args:
        reason: The end of its text: why, what was expected, and a HINT. Empty lets them be called.
    """
    token = _REASON.set(reason)
    try:
        yield
    finally:
        _REASON.reset(token)


def check_not_refused(operation: object) -> None:
    """Raises within `collectives_refused`.

    Args:
        operation: What was called; texts begin with it.

    Raises:
        UnsupportedError: It was called there.
    """
    if reason := _REASON.get():
        raise UnsupportedError(f"{operation} was called {reason}")
