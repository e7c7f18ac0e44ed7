"""The cores of this machine, shared out among workers."""

from collections.abc import Sequence


def share_of_cores(cores: Sequence[int], rank: int, size: int) -> tuple[int, ...]:
    """The cores that one worker of a host has to itself; all workers get the same number.

    Cores that don't divide stay idle. With more workers than cores several share one.

    >>> share_of_cores([0, 1, 2, 3, 4], rank=1, size=2)
    (2, 3)

    Args:
        cores: The numbers of the cores that there are, at least one.
        rank: Of the worker within its host, 0 <= rank < size.
        size: How many workers the host has.
    """
    each = len(cores) // size
    if not each:
        return (cores[rank % len(cores)],)
    return tuple(cores[rank * each : (rank + 1) * each])
